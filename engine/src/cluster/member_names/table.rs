//! The table of bindings: which VM has which name. Claims and the time in, a decision out.
//!
//! A binding is held while the VM has links with this member, and for [`HOLD`] after the last one, so that the name goes
//! to no other VM while the first may still hold the leader lock. The number of bindings is limited. No I/O, no clock.

use std::time::{Duration, Instant};

use attest::values::InstanceId;
use wire::link::{BootId, MemberName};

use crate::config::MAX_MEMBERS;

/// How long a name stays with a VM whose last link has ended: twice Patroni's default `ttl` of 30 s, and three times that
/// of `cluster config`. A leader that cannot renew its lock demotes Postgres before `ttl` has passed since the last
/// renewal [Patroni, "DCS failsafe mode": "the old primary is demoted before the leader lock expires"], and it renews the
/// lock through links.
pub(crate) const HOLD: Duration = Duration::from_secs(60);

/// The most names that are bound and not in `cluster_members`. There are such names while a member is added.
const MAX_OTHER_NAMES: usize = MAX_MEMBERS;

/// A VM, as a member knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// What the VM's evidence proves. A host can give it to several VMs: dstack derives it from a seed that the host
    /// keeps.
    pub(crate) instance: InstanceId,
    /// What the sidecar in the VM says, which is measured software. A host cannot choose it.
    pub(crate) boot_id: BootId,
}

/// Why a name is not bound to a VM: there are two VMs with one name, or one VM with two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameConflict {
    /// It is this member's own name.
    #[error(
        "instance {instance} calls itself {name}, which is this member's own name: each VM needs a cluster_member of \
         its own"
    )]
    Own {
        name: MemberName,
        instance: InstanceId,
    },
    /// An instance with another id has it.
    #[error(
        "instance {instance} calls itself {name}, which is the name of instance {holder}: stop one of the two, or give \
         it a cluster_member of its own; if it replaces the other one, the name is free {} s after the last link of \
         that has ended",
        HOLD.as_secs()
    )]
    OtherInstance {
        name: MemberName,
        instance: InstanceId,
        holder: InstanceId,
    },
    /// A VM with the same instance id has it.
    #[error(
        "instance {instance} calls itself {name}, which is the name of another VM with this instance id, or of the VM \
         before its restart: stop the copy; after a restart the name is free {} s after the last link of before has ended",
        HOLD.as_secs()
    )]
    OtherBoot {
        name: MemberName,
        instance: InstanceId,
    },
    /// The instance has another name already.
    #[error(
        "instance {instance} calls itself {name}, and its name is {held}: two VMs have one instance id, or its \
         cluster_member has changed, which is accepted {} s after its last link as {held} has ended",
        HOLD.as_secs()
    )]
    OtherName {
        name: MemberName,
        instance: InstanceId,
        held: MemberName,
    },
}

/// Why a name is not bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotBound {
    Conflict(Box<NameConflict>),
    /// [`MAX_OTHER_NAMES`] is reached.
    TooMany,
}

impl From<NameConflict> for NotBound {
    fn from(conflict: NameConflict) -> Self {
        Self::Conflict(Box::new(conflict))
    }
}

/// A name and the VM that has it.
#[derive(Clone, Copy, Debug)]
struct Binding {
    /// Names a binding for as long as it is in the table.
    id: u64,
    name: MemberName,
    /// Whether the name is in `cluster_members`.
    is_listed: bool,
    holder: Holder,
    /// The open links.
    links: u32,
    /// When a link was opened or ended last.
    last: Instant,
}

impl Binding {
    fn is_held(&self, now: Instant) -> bool {
        self.links > 0 || now.saturating_duration_since(self.last) < HOLD
    }
}

/// The bindings.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    bindings: Vec<Binding>,
    next_id: u64,
}

impl Table {
    /// Notes a link of `holder`, which calls itself `name`. Returns what [`Self::release`] takes.
    ///
    /// # Errors
    /// Nothing has changed, except that bindings have gone that were not held any more.
    pub(super) fn bind(
        &mut self,
        name: MemberName,
        is_listed: bool,
        holder: Holder,
        now: Instant,
    ) -> Result<u64, NotBound> {
        self.bindings.retain(|binding| binding.is_held(now));
        let mut bindings = self.bindings.iter_mut();
        if let Some(binding) = bindings.find(|binding| binding.name == name) {
            if binding.holder != holder {
                return Err(conflict(binding, holder).into());
            }
            binding.links = binding.links.saturating_add(1);
            binding.last = now;
            return Ok(binding.id);
        }
        let mut bindings = self.bindings.iter();
        let instance = holder.instance;
        if let Some(other) = bindings.find(|binding| binding.holder.instance == instance) {
            return Err(NotBound::from(NameConflict::OtherName {
                name,
                instance,
                held: other.name,
            }));
        }
        let others = self.bindings.iter().filter(|binding| !binding.is_listed);
        if !is_listed && others.count() >= MAX_OTHER_NAMES {
            return Err(NotBound::TooMany);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.bindings.push(Binding {
            id,
            name,
            is_listed,
            holder,
            links: 1,
            last: now,
        });
        Ok(id)
    }

    /// Notes the end of a link.
    pub(super) fn release(&mut self, id: u64, now: Instant) {
        let mut bindings = self.bindings.iter_mut();
        if let Some(binding) = bindings.find(|binding| binding.id == id) {
            binding.links = binding.links.saturating_sub(1);
            binding.last = now;
        }
    }

    /// The VM that has a name.
    pub(super) fn holder(&self, name: MemberName, now: Instant) -> Option<Holder> {
        let mut bindings = self.bindings.iter();
        let binding = bindings.find(|binding| binding.name == name)?;
        binding.is_held(now).then_some(binding.holder)
    }
}

fn conflict(binding: &Binding, claimant: Holder) -> NameConflict {
    let (name, instance) = (binding.name, claimant.instance);
    let holder = binding.holder.instance;
    match holder == instance {
        true => NameConflict::OtherBoot { name, instance },
        false => NameConflict::OtherInstance {
            name,
            instance,
            holder,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A table with a clock that the test sets.
    struct Bindings {
        table: Table,
        now: Instant,
    }

    impl Bindings {
        fn new() -> Self {
            Self {
                table: Table::default(),
                now: Instant::now(),
            }
        }

        fn bind(&mut self, name: &str, holder: Holder) -> Result<u64, NotBound> {
            self.table.bind(self::name(name), true, holder, self.now)
        }

        fn bind_other(&mut self, name: &str, holder: Holder) -> Result<u64, NotBound> {
            self.table.bind(self::name(name), false, holder, self.now)
        }

        fn release(&mut self, id: u64) {
            self.table.release(id, self.now);
        }

        fn instance_of(&self, name: &str) -> Option<InstanceId> {
            let holder = self.table.holder(self::name(name), self.now)?;
            Some(holder.instance)
        }
    }

    fn name(text: &str) -> MemberName {
        text.parse().unwrap()
    }

    fn instance(byte: u8) -> InstanceId {
        InstanceId([byte; 20])
    }

    fn vm(byte: u8, boot: u8) -> Holder {
        Holder {
            instance: instance(byte),
            boot_id: BootId::new([boot; 16]),
        }
    }

    fn other_instance(claimant: u8, holder: u8) -> NotBound {
        NotBound::from(NameConflict::OtherInstance {
            name: name("a"),
            instance: instance(claimant),
            holder: instance(holder),
        })
    }

    #[test]
    fn a_name_has_one_instance_while_links_are_open_and_until_the_leader_lock_is_lost() {
        let mut bindings = Bindings::new();
        let first = bindings.bind("a", vm(1, 1)).unwrap();
        let second = bindings.bind("a", vm(1, 1)).unwrap();
        assert_eq!(bindings.instance_of("a"), Some(instance(1)));
        bindings.now += 1000 * SECOND;
        assert_eq!(bindings.bind("a", vm(2, 2)), Err(other_instance(2, 1)));
        bindings.release(first);
        bindings.now += 1000 * SECOND;
        assert_eq!(bindings.bind("a", vm(2, 2)), Err(other_instance(2, 1)));
        bindings.release(second);
        bindings.now += HOLD - SECOND;
        assert_eq!(bindings.bind("a", vm(2, 2)), Err(other_instance(2, 1)));
        assert_eq!(bindings.instance_of("a"), Some(instance(1)));
        // A refused claim does not prolong it.
        bindings.now += SECOND;
        assert_eq!(bindings.instance_of("a"), None);
        assert!(bindings.bind("a", vm(2, 2)).is_ok());
        assert_eq!(bindings.bind("a", vm(1, 1)), Err(other_instance(1, 2)));
    }

    #[test]
    fn the_hold_time_begins_with_the_end_of_the_last_link() {
        let mut bindings = Bindings::new();
        let link = bindings.bind("a", vm(1, 1)).unwrap();
        bindings.release(link);
        bindings.now += HOLD - SECOND;
        // It is back in time, and gone again.
        let link = bindings.bind("a", vm(1, 1)).unwrap();
        bindings.release(link);
        bindings.now += HOLD - SECOND;
        assert_eq!(bindings.bind("a", vm(2, 2)), Err(other_instance(2, 1)));
        bindings.now += SECOND;
        assert!(bindings.bind("a", vm(2, 2)).is_ok());
    }

    #[test]
    fn a_copy_of_a_vm_and_a_restarted_one_are_other_vms() {
        let mut bindings = Bindings::new();
        let link = bindings.bind("a", vm(1, 1)).unwrap();
        let refused = NotBound::from(NameConflict::OtherBoot {
            name: name("a"),
            instance: instance(1),
        });
        assert_eq!(bindings.bind("a", vm(1, 2)), Err(refused.clone()));
        bindings.release(link);
        assert_eq!(bindings.bind("a", vm(1, 2)), Err(refused));
        // The sidecar of the same VM may restart.
        assert!(bindings.bind("a", vm(1, 1)).is_ok());
    }

    #[test]
    fn an_instance_has_one_name() {
        let mut bindings = Bindings::new();
        let link = bindings.bind("a", vm(1, 1)).unwrap();
        let refused = NotBound::from(NameConflict::OtherName {
            name: name("b"),
            instance: instance(1),
            held: name("a"),
        });
        assert_eq!(bindings.bind("b", vm(1, 1)), Err(refused.clone()));
        assert_eq!(bindings.bind("b", vm(1, 2)), Err(refused));
        assert!(bindings.bind("b", vm(2, 2)).is_ok());
        bindings.release(link);
        bindings.now += HOLD;
        assert!(bindings.bind("c", vm(1, 1)).is_ok());
    }

    #[test]
    fn other_names_take_no_place_of_members() {
        let mut bindings = Bindings::new();
        for number in 0..MAX_OTHER_NAMES {
            let byte = u8::try_from(number).unwrap();
            let link = bindings.bind_other(&format!("x{number}"), vm(byte, 0));
            bindings.release(link.unwrap());
        }
        let refused = bindings.bind_other("y", vm(200, 0));
        assert_eq!(refused, Err(NotBound::TooMany));
        assert!(bindings.bind("a", vm(201, 0)).is_ok());
        bindings.now += HOLD;
        assert!(bindings.bind_other("y", vm(200, 0)).is_ok());
        assert_eq!(bindings.table.bindings.len(), 2, "the others have gone");
    }

    #[test]
    fn the_end_of_a_link_of_an_earlier_binding_changes_nothing() {
        let mut bindings = Bindings::new();
        let link = bindings.bind("a", vm(1, 1)).unwrap();
        bindings.release(link);
        bindings.now += HOLD;
        bindings.bind("a", vm(2, 2)).unwrap();
        bindings.release(link);
        bindings.now += HOLD;
        assert_eq!(bindings.bind("a", vm(1, 1)), Err(other_instance(1, 2)));
    }
}
