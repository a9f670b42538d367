//! Which VM has the name of which member: bindings that all shards share, in a table that is replaced as a whole
//! (read-copy-update).
//!
//! A member has its name from its configuration, which its host can change, and all members prove the same software. If
//! two VMs had one name, Patroni on both would take the leader lock for its own, and both would lead. So each member binds
//! a name to the VM with which it has links by that name, in either direction, and refuses any other
//! (docs/adr/0030-names-of-members.md). It also notes which members refuse its own name.
//!
//! No thread waits for another here. A name must never go to a second VM while the first may hold the leader lock.

mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use attest::values::InstanceId;
use wire::link::MemberName;

use table::Table;
pub(crate) use table::{HOLD, Holder, NameConflict, NotBound};

/// How long a refusal counts that is not repeated. Patroni and etcd try again every few seconds.
const REFUSAL_LASTS: Duration = Duration::from_secs(30);

/// The bindings, and who refuses the name of this member.
pub(crate) struct MemberNames {
    own: MemberName,
    /// The names in `cluster_members`.
    listed: Box<[MemberName]>,
    /// What this member's own evidence proves, once it is known.
    own_instance: ArcSwapOption<InstanceId>,
    table: ArcSwap<Table>,
    /// When each member, by position, has refused the name of this one: milliseconds since `started`, plus one. Zero if it
    /// does not.
    refused: Box<[AtomicU64]>,
    started: Instant,
}

/// A link whose other member is bound to its VM, until this is dropped.
pub(crate) struct BoundName {
    names: Arc<MemberNames>,
    id: u64,
}

impl Drop for BoundName {
    fn drop(&mut self) {
        let now = Instant::now();
        self.names.change(|table| table.release(self.id, now));
    }
}

impl MemberNames {
    /// Nothing is bound yet. `listed` are the names in `cluster_members`.
    pub(super) fn new(own: MemberName, listed: impl IntoIterator<Item = MemberName>) -> Arc<Self> {
        let listed: Box<[_]> = listed.into_iter().collect();
        Arc::new(Self {
            own,
            refused: listed.iter().map(|_| AtomicU64::new(0)).collect(),
            listed,
            own_instance: ArcSwapOption::empty(),
            table: ArcSwap::default(),
            started: Instant::now(),
        })
    }

    /// What this member's own evidence proves. `None` if it is not known, or is no instance id.
    pub(crate) fn own_instance(&self) -> Option<InstanceId> {
        self.own_instance.load().as_deref().copied()
    }

    /// Notes what this member's own evidence proves.
    pub(crate) fn set_own_instance(&self, instance: Option<InstanceId>) {
        self.own_instance.store(instance.map(Arc::new));
    }

    /// Binds the name that the other side of a link has to its VM, for as long as the link is open and [`HOLD`] longer.
    ///
    /// # Errors
    /// The name belongs to another VM, or the VM has another name.
    pub(crate) fn bind(
        self: &Arc<Self>,
        name: MemberName,
        holder: Holder,
        now: Instant,
    ) -> Result<BoundName, NotBound> {
        let instance = holder.instance;
        if name == self.own {
            return Err(NotBound::from(NameConflict::Own { name, instance }));
        }
        if self.own_instance() == Some(instance) {
            return Err(NotBound::from(NameConflict::OtherName {
                name,
                instance,
                held: self.own,
            }));
        }
        let is_listed = self.listed.contains(&name);
        let id = self.change(|table| table.bind(name, is_listed, holder, now))?;
        Ok(BoundName {
            names: Arc::clone(self),
            id,
        })
    }

    /// Replaces the table by a changed copy. `change` may be called again if another thread was faster.
    fn change<T>(&self, change: impl Fn(&mut Table) -> T) -> T {
        let mut current = self.table.load();
        loop {
            let mut next = Table::clone(&current);
            let result = change(&mut next);
            let previous = self.table.compare_and_swap(&*current, Arc::new(next));
            if Arc::ptr_eq(&*previous, &*current) {
                return result;
            }
            current = previous;
        }
    }

    /// The instance that has the name of a member.
    pub(crate) fn instance_of(&self, name: MemberName, now: Instant) -> Option<InstanceId> {
        match name == self.own {
            true => self.own_instance(),
            false => Some(self.table.load().holder(name, now)?.instance),
        }
    }

    /// The member at this position says that another VM has the name of this one.
    pub(crate) fn refused_by(&self, member: usize, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_millis();
        let at = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        self.set_refused(member, at);
    }

    /// The member at this position has accepted a link of this one.
    pub(crate) fn accepted_by(&self, member: usize) {
        self.set_refused(member, 0);
    }

    fn set_refused(&self, member: usize, at: u64) {
        if let Some(slot) = self.refused.get(member) {
            slot.store(at, Ordering::Relaxed);
        }
    }

    /// The positions of the members that refuse the name of this one.
    pub(crate) fn refusing(&self, now: Instant) -> impl Iterator<Item = usize> {
        let counts = move |at: u64| {
            let at = self.started + Duration::from_millis(at - 1);
            now.saturating_duration_since(at) < REFUSAL_LASTS
        };
        let slots = self.refused.iter().map(|at| at.load(Ordering::Relaxed));
        let refusing = slots.enumerate();
        refusing.filter_map(move |(member, at)| (at > 0 && counts(at)).then_some(member))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use wire::link::BootId;

    use super::*;

    fn names() -> Arc<MemberNames> {
        MemberNames::new(name("a"), ["a", "b"].map(name))
    }

    fn name(text: &str) -> MemberName {
        text.parse().unwrap()
    }

    fn vm(byte: u8) -> Holder {
        Holder {
            instance: InstanceId([byte; 20]),
            boot_id: BootId::new([byte; 16]),
        }
    }

    #[test]
    fn the_own_name_belongs_to_this_member() {
        let (names, now) = (names(), Instant::now());
        let instance = InstanceId([2; 20]);
        let refused = names.bind(name("a"), vm(2), now).err();
        let own = NameConflict::Own {
            name: name("a"),
            instance,
        };
        assert_eq!(refused, Some(NotBound::from(own)));
        // A copy of this VM with another name.
        names.set_own_instance(Some(instance));
        assert_eq!(names.instance_of(name("a"), now), Some(instance));
        let refused = names.bind(name("b"), vm(2), now).err();
        let other = NameConflict::OtherName {
            name: name("b"),
            instance,
            held: name("a"),
        };
        assert_eq!(refused, Some(NotBound::from(other)));
        assert!(names.bind(name("b"), vm(3), now).is_ok());
    }

    #[test]
    fn a_name_is_bound_while_links_are_open() {
        let (names, now) = (names(), Instant::now());
        let link = names.bind(name("b"), vm(3), now).ok();
        let later = now + 2 * HOLD;
        assert!(names.bind(name("b"), vm(4), later).is_err());
        assert_eq!(
            names.instance_of(name("b"), later),
            Some(InstanceId([3; 20]))
        );
        drop(link);
        let later = Instant::now() + HOLD;
        assert_eq!(names.instance_of(name("b"), later), None);
        assert!(names.bind(name("b"), vm(4), later).is_ok());
    }

    #[test]
    fn links_are_counted_from_all_threads() {
        let (names, now) = (names(), Instant::now());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        drop(names.bind(name("b"), vm(3), now).ok().unwrap());
                    }
                });
            }
        });
        // None is left open.
        let later = Instant::now() + HOLD;
        assert!(names.bind(name("b"), vm(4), later).is_ok());
    }

    #[test]
    fn a_refusal_counts_until_the_member_accepts_or_repeats_it_no_more() {
        let (names, now) = (names(), Instant::now());
        let refusing = |at| names.refusing(at).collect::<Vec<_>>();
        assert!(refusing(now).is_empty());
        names.refused_by(1, now);
        assert_eq!(refusing(now), [1]);
        names.accepted_by(1);
        assert!(refusing(now).is_empty());
        names.refused_by(1, now);
        assert_eq!(refusing(now + REFUSAL_LASTS / 2), [1]);
        assert!(refusing(now + REFUSAL_LASTS + Duration::from_secs(1)).is_empty());
        // There is no such member.
        names.refused_by(7, now);
    }
}
