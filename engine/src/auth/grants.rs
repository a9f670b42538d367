//! What an attested client may do: the grants of its policy entry, and the number of its entry's sessions.
//!
//! The gate says that a client is admitted, and by which entry of the policy. What the entry grants is checked once
//! the StartupMessage is known, before the client's secret is asked for, and again when the policy changes.
//!
//! Sessions are counted per entry name over all shards, each for the entry that admits its client now: a session whose
//! entry has another name or place after a reload moves to the count of the entry that admits it then. The counters
//! outlive a change of the policy. No lock is taken: a shard finds the counter in a map that only the control thread
//! replaces.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use attest::policy::{Grants, PeerEntry, Policy};
use wire::startup::Startup;

use crate::auth::role::Role;

/// What a client asks for in its StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestedSession {
    /// The role; `None` if it is not one of the cluster's, which is refused with the secret.
    pub(crate) role: Option<Role>,
    /// The database; `None` for physical replication, which uses none.
    pub(crate) database: Option<Box<[u8]>>,
}

/// What an entry does not grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotGranted {
    Role,
    Database,
}

impl RequestedSession {
    pub(crate) fn of(startup: &Startup) -> Self {
        let parameter = |name: &[u8]| {
            let found = startup.parameters().filter(|(key, _)| *key == name);
            // Postgres uses the last one.
            found.last().map(|(_, value)| value)
        };
        // The default is the role's name. [PostgreSQL documentation, StartupMessage]
        let database = parameter(b"database").filter(|name| !name.is_empty());
        let database = database.unwrap_or(startup.role().as_bytes());
        Self {
            role: Role::from_name(startup.role()),
            database: (!is_physical_replication(parameter(b"replication")))
                .then(|| database.into()),
        }
    }

    /// Compares this with the grants of an entry.
    ///
    /// # Errors
    /// [`NotGranted`].
    pub(crate) fn check(&self, grants: &Grants) -> Result<(), NotGranted> {
        if let (Some(granted), Some(role)) = (&grants.roles, self.role)
            && !granted.iter().any(|granted| **granted == *role.name())
        {
            return Err(NotGranted::Role);
        }
        let Some(granted) = &grants.databases else {
            return Ok(());
        };
        match &self.database {
            Some(database) if granted.iter().any(|name| name.as_bytes() == &**database) => Ok(()),
            Some(_) | None => Err(NotGranted::Database),
        }
    }
}

/// Whether the parameter `replication` asks for a walsender without a database: every value except `database` and
/// those that Postgres reads as false. [PostgreSQL `backend_startup.c`]
fn is_physical_replication(value: Option<&[u8]>) -> bool {
    let is = |other: &str| value.is_some_and(|value| value.eq_ignore_ascii_case(other.as_bytes()));
    value.is_some() && !["database", "false", "off", "no", "0"].into_iter().any(is)
}

/// The numbers of sessions of all entries.
#[derive(Default)]
pub(crate) struct EntrySessions(ArcSwap<HashMap<Arc<str>, Arc<AtomicU32>>>);

/// A session's place in the count of its entry, returned when dropped. Empty for an entry without a name.
#[derive(Debug)]
pub(crate) struct EntryPermit(Option<Arc<AtomicU32>>);

impl Drop for EntryPermit {
    fn drop(&mut self) {
        if let Some(counter) = &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An entry has as many sessions as its `max_sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryIsFull;

impl EntrySessions {
    pub(crate) fn of(policy: &Policy) -> Self {
        let sessions = Self::default();
        sessions.set_policy(policy);
        sessions
    }

    /// Counts the entries of `policy` from now on. Entries that have the name of an earlier one keep its count, also
    /// if a policy between them had no such entry: its sessions may go on if the entry is back in time.
    pub(crate) fn set_policy(&self, policy: &Policy) {
        let known = self.0.load();
        let in_use = known
            .iter()
            .filter(|(_, counter)| counter.load(Ordering::Relaxed) > 0);
        let mut counters: HashMap<_, _> = in_use
            .map(|(name, counter)| (Arc::clone(name), Arc::clone(counter)))
            .collect();
        for name in policy.entries().filter_map(|entry| entry.name.clone()) {
            let counter = known.get(&name).cloned().unwrap_or_default();
            counters.insert(name, counter);
        }
        self.0.store(Arc::new(counters));
    }

    /// The number of sessions of each entry that has a name.
    pub(crate) fn counts(&self) -> Vec<(Arc<str>, u32)> {
        let counters = self.0.load();
        let counts = counters
            .iter()
            .map(|(name, counter)| (Arc::clone(name), counter.load(Ordering::Relaxed)));
        counts.collect()
    }

    /// Takes a place for a session of `entry`. An entry without a name has no limit.
    ///
    /// # Errors
    /// [`EntryIsFull`].
    pub(crate) fn acquire(&self, entry: &PeerEntry) -> Result<EntryPermit, EntryIsFull> {
        let limit = entry.grants.max_sessions.unwrap_or(u32::MAX);
        let (permit, before) = self.take(entry);
        if before < limit {
            Ok(permit)
        } else {
            Err(EntryIsFull)
        }
    }

    /// Moves a session's place to the entry that admits its client now. That may exceed the entry's limit: no session
    /// ends because an entry has become smaller.
    pub(crate) fn move_to(&self, entry: &PeerEntry, permit: &mut EntryPermit) {
        let counters = self.0.load();
        let counter = entry.name.as_ref().and_then(|name| counters.get(name));
        if permit.0.as_ref().map(Arc::as_ptr) != counter.map(Arc::as_ptr) {
            *permit = self.take(entry).0;
        }
    }

    /// Takes a place without regard to the limit. Also returns how many were taken before.
    fn take(&self, entry: &PeerEntry) -> (EntryPermit, u32) {
        let counters = self.0.load();
        let counter = entry.name.as_ref().and_then(|name| counters.get(name));
        let before = counter.map_or(0, |counter| counter.fetch_add(1, Ordering::Relaxed));
        (EntryPermit(counter.map(Arc::clone)), before)
    }
}

#[cfg(test)]
mod tests {
    use attest::policy::Settings;
    use wire::frontend::{AwaitStartup, StartupStep};

    use super::*;

    fn requested(parameters: &[(&str, &str)]) -> RequestedSession {
        let mut list = vec![0, 3, 0, 0];
        for (name, value) in parameters {
            list.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        list.push(0);
        let length = u32::try_from(list.len() + 4).unwrap();
        let packet = [&length.to_be_bytes()[..], &list].concat();
        match AwaitStartup::new().advance(&packet) {
            StartupStep::Startup { message, .. } => RequestedSession::of(&message.to_owned()),
            _ => panic!("no StartupMessage"),
        }
    }

    fn grants(roles: &[&str], databases: &[&str]) -> Grants {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).into()).collect());
        Grants {
            roles: list(roles),
            databases: list(databases),
            max_sessions: None,
        }
    }

    #[test]
    fn roles_and_databases_are_compared() {
        let orders = grants(&["teesql_read"], &["orders"]);
        let check = |parameters: &[(&str, &str)]| requested(parameters).check(&orders);
        let (reader, writer) = (("user", "teesql_read"), ("user", "teesql_readwrite"));
        assert_eq!(check(&[reader, ("database", "orders")]), Ok(()));
        assert_eq!(
            check(&[writer, ("database", "orders")]),
            Err(NotGranted::Role)
        );
        assert_eq!(check(&[("user", "postgres")]), Err(NotGranted::Role));
        assert_eq!(
            check(&[reader, ("database", "other")]),
            Err(NotGranted::Database)
        );
        assert_eq!(
            check(&[reader, ("database", "ordersx")]),
            Err(NotGranted::Database)
        );
        // The last one counts, and an empty or missing one is the role's name.
        let twice = [reader, ("database", "orders"), ("database", "other")];
        assert_eq!(check(&twice), Err(NotGranted::Database));
        assert_eq!(
            check(&[reader, ("database", "")]),
            Err(NotGranted::Database)
        );
        assert_eq!(check(&[reader]), Err(NotGranted::Database));
        let own = grants(&["teesql_read"], &["teesql_read"]);
        assert_eq!(requested(&[reader]).check(&own), Ok(()));
        assert_eq!(requested(&[reader, ("database", "")]).check(&own), Ok(()));
        // An unknown role is refused with the secret.
        assert_eq!(
            check(&[("user", "unknown"), ("database", "orders")]),
            Ok(())
        );
        assert_eq!(requested(&[writer]).check(&Grants::default()), Ok(()));
    }

    #[test]
    fn physical_replication_is_no_database() {
        let orders = grants(&["postgres"], &["orders"]);
        let check = |value: &str| {
            let parameters = [
                ("user", "postgres"),
                ("database", "orders"),
                ("replication", value),
            ];
            requested(&parameters).check(&orders)
        };
        for value in ["true", "on", "yes", "1", "TRUE", "t", ""] {
            assert_eq!(check(value), Err(NotGranted::Database), "{value}");
        }
        for value in ["database", "false", "off", "no", "0"] {
            assert_eq!(check(value), Ok(()), "{value}");
        }
    }

    #[test]
    fn sessions_are_counted_by_entry_across_policies() {
        let entry = |name: &str, max_sessions| PeerEntry {
            name: Some(name.into()),
            grants: Grants {
                max_sessions,
                ..Grants::default()
            },
            ..PeerEntry::default()
        };
        let policy = |peers: &[PeerEntry]| {
            Policy::new(Settings {
                peers: peers.to_vec(),
                ..Settings::default()
            })
        };
        let (two, other) = (entry("a", Some(2)), entry("b", Some(1)));
        let sessions = EntrySessions::default();
        sessions.set_policy(&policy(&[two.clone(), other.clone()]));
        let first = sessions.acquire(&two).unwrap();
        let second = sessions.acquire(&two).unwrap();
        assert_eq!(sessions.acquire(&two).unwrap_err(), EntryIsFull);
        drop(sessions.acquire(&other).unwrap());
        drop(second);
        let again = sessions.acquire(&two).unwrap();
        // A refused session leaves no trace, and a new policy keeps the count.
        let three = entry("a", Some(3));
        sessions.set_policy(&policy(std::slice::from_ref(&three)));
        let third = sessions.acquire(&three).unwrap();
        assert_eq!(sessions.acquire(&three).unwrap_err(), EntryIsFull);
        assert_eq!(
            sessions
                .counts()
                .into_iter()
                .find(|(name, _)| **name == *"a")
                .unwrap()
                .1,
            3
        );
        // So does an entry that a policy in between does not have.
        sessions.set_policy(&policy(std::slice::from_ref(&other)));
        sessions.set_policy(&policy(std::slice::from_ref(&three)));
        assert_eq!(sessions.acquire(&three).unwrap_err(), EntryIsFull);
        drop((first, again, third));
        let one = entry("a", Some(1));
        let only = sessions.acquire(&one).unwrap();
        assert_eq!(sessions.acquire(&one).unwrap_err(), EntryIsFull);
        let unnamed = sessions.acquire(&PeerEntry::default()).unwrap();
        assert!(unnamed.0.is_none());
        drop((only, unnamed));
    }

    /// After a reload a session is counted for the entry that admits its client then.
    #[test]
    fn a_session_moves_to_the_entry_that_admits_it_now() {
        let entry = |name: &str| PeerEntry {
            name: Some(name.into()),
            grants: Grants {
                max_sessions: Some(1),
                ..Grants::default()
            },
            ..PeerEntry::default()
        };
        let policy = |peers: &[PeerEntry]| {
            Policy::new(Settings {
                peers: peers.to_vec(),
                ..Settings::default()
            })
        };
        let (old, new, unnamed) = (entry("old"), entry("new"), PeerEntry::default());
        let sessions = EntrySessions::of(&policy(std::slice::from_ref(&old)));
        let is_full = |entry: &PeerEntry| sessions.acquire(entry).is_err();
        let mut first = sessions.acquire(&old).unwrap();
        sessions.set_policy(&policy(&[new.clone(), old.clone()]));
        assert!(is_full(&old) && !is_full(&new));
        sessions.move_to(&new, &mut first);
        assert!(is_full(&new) && !is_full(&old));
        // It is counted once, however often it is looked at, and also if its entry is full.
        sessions.move_to(&new, &mut first);
        let mut second = sessions.acquire(&old).unwrap();
        sessions.move_to(&new, &mut second);
        drop(first);
        assert!(is_full(&new) && !is_full(&old));
        // One that had no entry with a name has one now, and the reverse.
        sessions.move_to(&unnamed, &mut second);
        assert!(!is_full(&new));
        let mut third = sessions.acquire(&unnamed).unwrap();
        sessions.move_to(&new, &mut third);
        assert!(is_full(&new));
        drop((second, third));
        assert!(!is_full(&new) && !is_full(&old));
    }
}
