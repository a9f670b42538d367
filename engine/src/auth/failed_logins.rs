//! Exponential back-off for attested peers that present wrong secrets.
//!
//! A wrong secret of an attested peer is always logged, so that an operator sees it. This bounds how many such lines
//! there can be: each further wrong secret of a peer is answered later, and one after the other. A right secret is
//! never delayed. The table of a shard is bounded; the entry whose back-off ends first makes room.
//!
//! It must not tell a wrong secret from an unknown or wrong role.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use attest::AttestedPeer;

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
}

/// The wrong secrets of a shard's attested peers.
#[derive(Default)]
pub(crate) struct FailedLogins(RefCell<HashMap<PeerIdentity, Failures>>);

impl FailedLogins {
    /// Records a wrong secret, and returns how long to wait before it is answered.
    pub(crate) fn failed(&self, peer: PeerIdentity, now: Instant) -> Duration {
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
        });
        if now.saturating_duration_since(failures.answered_at) > FORGET_AFTER {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        let earliest = failures.answered_at.max(now);
        failures.answered_at = earliest + delay(failures.count);
        failures.answered_at.saturating_duration_since(now)
    }

    /// Records a right secret.
    pub(crate) fn succeeded(&self, peer: PeerIdentity) {
        self.0.borrow_mut().remove(&peer);
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

    fn peer(number: u16) -> PeerIdentity {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PeerIdentity(bytes)
    }

    #[test]
    fn answers_to_one_peer_are_spaced() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        let waits: Vec<u128> = (0..10)
            .map(|_| table.failed(peer(1), now).as_millis())
            .collect();
        // All at the same time: each waits for the one before.
        assert_eq!(waits, [0, 0, 0, 100, 300, 700, 1_500, 3_100, 5_100, 7_100]);
        assert_eq!(table.failed(peer(2), now), Duration::ZERO, "another peer");
        let later = now + Duration::from_secs(60);
        assert_eq!(table.failed(peer(1), later), MAX_DELAY);
        table.succeeded(peer(1));
        assert_eq!(table.failed(peer(1), later), Duration::ZERO);
    }

    #[test]
    fn failures_are_forgotten() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        for _ in 0..5 {
            table.failed(peer(1), now);
        }
        let later = now + FORGET_AFTER + Duration::from_secs(1);
        assert_eq!(table.failed(peer(1), later), Duration::ZERO);
    }

    #[test]
    fn the_table_is_bounded() {
        let (table, now) = (FailedLogins::default(), Instant::now());
        for number in 0..5_000 {
            let now = now + Duration::from_millis(u64::from(number));
            table.failed(peer(number), now);
        }
        assert_eq!(table.0.borrow().len(), MAX_PEERS);
        let mut waits = (0..4).map(|_| table.failed(peer(4_999), now));
        assert!(waits.any(|wait| wait >= FIRST_DELAY), "the newest is known");
    }
}
