//! Which Postgres a CancelRequest is for: a table of the cancel keys of sessions that were carried to the leader.
//!
//! A CancelRequest arrives on a separate connection, on any shard, and only the Postgres that issued its key can tell
//! what it cancels. The table is open addressing over atomics, so that no shard waits for another. It holds hashes
//! under a random key, never the keys, which are secrets. A key that is not in it is one of the own Postgres.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::ClusterState;

/// Slots for each session that the process may have. At most a quarter is in use up to 65,536 sessions. A session that
/// finds no free slot among [`PROBES`] cannot be cancelled.
const SLOTS_PER_SESSION: usize = 4;
/// Maximum number of slots: 2 MiB.
const MAX_SLOTS: usize = 1 << 18;
/// Slots in which a key can be.
const PROBES: usize = 16;
/// The bits of a slot that hold the leader's position plus one; the others are bits of the hash.
const POSITION_BITS: u64 = 0xff;

/// The table. A slot of 0 is free.
pub(crate) struct CarriedKeys {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl CarriedKeys {
    /// A table for this number of sessions.
    pub(crate) fn new(max_sessions: usize) -> Self {
        let slots = max_sessions.saturating_mul(SLOTS_PER_SESSION);
        let slots = slots.clamp(PROBES, MAX_SLOTS).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Notes that the Postgres of the member at position `leader` issued `key`, the content of BackendKeyData. Returns
    /// what [`Self::remove`] takes; `None` if there is no room, and the session cannot be cancelled then.
    fn insert(&self, key: &[u8], leader: usize) -> Option<u64> {
        let position = u64::try_from(leader).ok()?.checked_add(1)?;
        if position > POSITION_BITS {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let entry = hash & !POSITION_BITS | position;
        let mut slots = self.slots_of(hash);
        let free = |slot: &&AtomicU64| {
            slot.compare_exchange(0, entry, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        slots.find(free).map(|_| entry)
    }

    fn remove(&self, entry: u64) {
        let taken = |slot: &&AtomicU64| {
            slot.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let _ = self.slots_of(entry).find(taken);
    }

    /// The member whose Postgres issued `key`, if the session was carried to it.
    pub(crate) fn leader_of(&self, key: &[u8]) -> Option<usize> {
        let hash = self.hasher.hash_one(key);
        let mut slots = self.slots_of(hash);
        let position = slots.find_map(|slot| {
            let entry = slot.load(Ordering::Acquire);
            let same = entry & !POSITION_BITS == hash & !POSITION_BITS;
            same.then_some(entry & POSITION_BITS)
                .filter(|position| *position > 0)
        })?;
        usize::try_from(position - 1).ok()
    }

    /// The slots for a hash. The bits of the position do not count.
    fn slots_of(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.slots.len() - 1;
        let start = usize::try_from(hash >> 8 & 0xffff_ffff).unwrap_or_default();
        (0..PROBES).filter_map(move |step| self.slots.get(start.wrapping_add(step) & mask))
    }
}

/// A session that was carried to the leader. It is counted, and its cancel key known, until this is dropped.
pub(crate) struct CarriedSession {
    state: Arc<ClusterState>,
    entry: Option<u64>,
}

impl CarriedSession {
    /// Counts a session. `key` is the content of the BackendKeyData that the leader sent.
    pub(crate) fn new(state: &Arc<ClusterState>, leader: usize, key: Option<&[u8]>) -> Self {
        state.carried_sessions.increment(1.0);
        Self {
            state: Arc::clone(state),
            entry: key.and_then(|key| state.carried_keys.insert(key, leader)),
        }
    }
}

impl Drop for CarriedSession {
    fn drop(&mut self) {
        self.state.carried_sessions.decrement(1.0);
        if let Some(entry) = self.entry {
            self.state.carried_keys.remove(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_to_the_member_that_issued_it_until_it_is_removed() {
        let keys = CarriedKeys::new(100);
        let key = |number: u32| [number.to_be_bytes(), [7; 4]].concat();
        let entries: Vec<_> = (0..100)
            .map(|number| keys.insert(&key(number), number as usize % 3).unwrap())
            .collect();
        for number in 0..100 {
            assert_eq!(keys.leader_of(&key(number)), Some(number as usize % 3));
        }
        assert_eq!(keys.leader_of(&key(100)), None);
        keys.remove(entries[5]);
        assert_eq!(keys.leader_of(&key(5)), None);
        assert_eq!(keys.leader_of(&key(6)), Some(0));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let keys = CarriedKeys::new(1);
        let inserted = (0..100_u32).filter_map(|key| keys.insert(&key.to_be_bytes(), 0));
        assert_eq!(inserted.count(), PROBES);
        assert_eq!(CarriedKeys::new(1).insert(b"key", 255), None);
        assert!(CarriedKeys::new(1).insert(b"key", 254).is_some());
    }
}
