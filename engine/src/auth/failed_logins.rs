//! Exponential back-off for attested peers that present wrong secrets.
//!
//! A wrong secret of an attested peer is always logged, so that an operator sees it. This bounds how many such lines
//! there can be: each further wrong secret of a peer is answered later, and one after the other. A right secret is
//! never delayed. It ends the back-off only if all wrong ones were for its role: a peer that knows one secret could guess
//! another without delay otherwise. The table of a shard is bounded; the entry whose back-off ends first makes room.
//!
//! It must not tell a wrong secret from an unknown or wrong role.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use attest::AttestedPeer;

use crate::auth::role::Role;

/// Peers that one shard remembers.
const MAX_PEERS: usize = 1_024;
/// Wrong secrets that are answered immediately: mistakes of people.
const FREE_FAILURES: u32 = 3;
/// The delay of the first answer after them. Doubled for each further one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay. A login has 5 s.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// A peer without another failure is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// Identifies a peer: its instance id if its event log proves one, else the fingerprint of its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerIdentity([u8; 32]);

impl PeerIdentity {
    pub(crate) fn of(peer: &AttestedPeer) -> Self {
        let Some(id) = peer.instance_id() else {
            return Self(peer.fingerprint().0);
        };
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(id.0) {
            *to = from;
        }
        Self(bytes)
    }
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    /// When the last failure is answered.
    answered_at: Instant,
    /// The role of all failures; `None` if there were several, or one that does not exist.
    role: Option<Role>,
}

/// The wrong secrets of a shard's attested peers.
#[derive(Default)]
pub(crate) struct FailedLogins(RefCell<HashMap<PeerIdentity, Failures>>);

impl FailedLogins {
    /// Records a wrong secret for `role`, and returns how long to wait before it is answered, which does not depend
    /// on the role.
    pub(crate) fn failed(&self, peer: PeerIdentity, role: Option<Role>, now: Instant) -> Duration {
        let mut peers = self.0.borrow_mut();
        if !peers.contains_key(&peer) && peers.len() >= MAX_PEERS {
            let oldest = peers
                .iter()
                .min_by_key(|(_, failures)| failures.answered_at);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                peers.remove(&oldest);
            }
        }
        let failures = peers.entry(peer).or_insert(Failures {
            count: 0,
            answered_at: now,
            role,
        });
        if now.saturating_duration_since(failures.answered_at) > FORGET_AFTER {
            (failures.count, failures.role) = (0, role);
        }
        if failures.role != role {
            failures.role = None;
        }
        failures.count = failures.count.saturating_add(1);
        let earliest = failures.answered_at.max(now);
        failures.answered_at = earliest + delay(failures.count);
        failures.answered_at.saturating_duration_since(now)
    }

    /// Records a right secret for `role`.
    pub(crate) fn succeeded(&self, peer: PeerIdentity, role: Option<Role>) {
        let mut peers = self.0.borrow_mut();
        let failures = peers.get(&peer);
        if role.is_some() && failures.is_some_and(|failures| failures.role == role) {
            peers.remove(&peer);
        }
    }
}

/// The delay of the `count`th answer.
fn delay(count: u32) -> Duration {
    match count.checked_sub(FREE_FAILURES + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_DELAY
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(MAX_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Option<Role> = Some(Role::Read);

    fn peer(number: u16) -> PeerIdentity {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PeerIdentity(bytes)
    }

    #[test]
    fn answers_to_one_peer_are_spaced() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        let waits: Vec<u128> = (0..10)
            .map(|_| table.failed(peer(1), READ, now).as_millis())
            .collect();
        // All at the same time: each waits for the one before.
        assert_eq!(waits, [0, 0, 0, 100, 300, 700, 1_500, 3_100, 5_100, 7_100]);
        let other = table.failed(peer(2), READ, now);
        assert_eq!(other, Duration::ZERO, "another peer");
        let later = now + Duration::from_secs(60);
        assert_eq!(table.failed(peer(1), READ, later), MAX_DELAY);
        table.succeeded(peer(1), READ);
        assert_eq!(table.failed(peer(1), READ, later), Duration::ZERO);
    }

    /// A peer that knows the read secret must not guess another one without delay.
    #[test]
    fn a_right_secret_ends_the_back_off_of_its_role_only() {
        let now = Instant::now();
        for roles in [
            [Some(Role::Superuser); 3],
            [None; 3],
            [READ, Some(Role::Superuser), READ],
        ] {
            let table = FailedLogins::default();
            for role in roles {
                assert_eq!(table.failed(peer(1), role, now), Duration::ZERO);
            }
            table.succeeded(peer(1), READ);
            assert_eq!(table.failed(peer(1), READ, now), FIRST_DELAY, "{roles:?}");
        }
    }

    #[test]
    fn failures_are_forgotten() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        for _ in 0..5 {
            table.failed(peer(1), READ, now);
        }
        let later = now + FORGET_AFTER + Duration::from_secs(1);
        assert_eq!(table.failed(peer(1), READ, later), Duration::ZERO);
    }

    #[test]
    fn the_table_is_bounded() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        for number in 0..5_000 {
            let now = now + Duration::from_millis(u64::from(number));
            table.failed(peer(number), READ, now);
        }
        assert_eq!(table.0.borrow().len(), MAX_PEERS);
        let mut waits = (0..4).map(|_| table.failed(peer(4_999), READ, now));
        assert!(waits.any(|wait| wait >= FIRST_DELAY), "the newest is known");
    }
}
