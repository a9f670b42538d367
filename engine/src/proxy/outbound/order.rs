//! The order in which a forwarder tries its servers, and the time that each may take.
//!
//! As in libpq: as configured, or a random order for each connection. A server that failed a moment ago comes last,
//! so that a dead one delays the connection that notices it and not all that follow. It is still tried if all others fail:
//! penalties must never refuse a connection.
//!
//! Penalties are in a list behind an atomic pointer, because a shard must not wait for a lock. It is copied on a failure, and
//! is empty otherwise.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::io::target::{HostOrder, MAX_ADDRESSES, MAX_TARGETS};

/// How long a server comes last after its first failure: as long as `connect_timeout`, which an attempt to reach a dead
/// server takes by default.
const PENALTY: Duration = Duration::from_secs(5);
/// With each further failure the time doubles up to this, so that a server that stays dead seldom delays a connection, and one
/// that returns is used again within a minute.
const MAX_PENALTY: Duration = Duration::from_secs(60);
/// How long after its end a penalty is remembered for the next one.
const MEMORY: Duration = Duration::from_secs(600);
/// The most penalties at a time: all servers, and all their addresses.
const MAX_PENALTIES: usize = MAX_TARGETS * (1 + MAX_ADDRESSES);

/// What has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The server with this number.
    Target(usize),
    /// One of the addresses of a server.
    Address(SocketAddr),
}

#[derive(Clone, Copy)]
struct Penalty {
    failed: Failed,
    until: Instant,
    length: Duration,
}

/// What has failed, and for how long that counts: exponential back-off.
#[derive(Default)]
pub(crate) struct Penalties(ArcSwap<Vec<Penalty>>);

impl Penalties {
    /// Penalizes a server or an address from `now` on.
    pub(super) fn impose(&self, failed: Failed, now: Instant) {
        self.0.rcu(|all| {
            let length = match all.iter().find(|penalty| penalty.failed == failed) {
                None => PENALTY,
                // The same failure, or that of another connection at the same time.
                Some(current) if current.until > now => current.length,
                Some(last) => (last.length * 2).min(MAX_PENALTY),
            };
            let others = all
                .iter()
                .filter(|penalty| penalty.until + MEMORY > now && penalty.failed != failed);
            let mut next: Vec<_> = others.copied().collect();
            if next.len() >= MAX_PENALTIES {
                next.remove(0);
            }
            next.push(Penalty {
                failed,
                until: now + length,
                length,
            });
            next
        });
    }

    /// Ends the penalty of a server or an address that works.
    pub(super) fn lift(&self, works: Failed) {
        if self.0.load().iter().any(|penalty| penalty.failed == works) {
            self.0.rcu(|all| {
                let others = all.iter().filter(|penalty| penalty.failed != works);
                others.copied().collect::<Vec<_>>()
            });
        }
    }

    pub(super) fn applies(&self, to: Failed, now: Instant) -> bool {
        let all = self.0.load();
        all.iter()
            .any(|penalty| penalty.failed == to && penalty.until > now)
    }
}

/// `items` in the order in which they are tried. `random` returns a random number.
pub(super) fn in_order<T>(
    mut items: Vec<T>,
    order: HostOrder,
    is_penalized: impl Fn(&T) -> bool,
    mut random: impl FnMut() -> u32,
) -> Vec<T> {
    if order == HostOrder::Random {
        // Fisher and Yates. With at most eight items the remainder is as good as fair.
        for last in (1..items.len()).rev() {
            items.swap(last, random() as usize % (last + 1));
        }
    }
    // The sort is stable.
    items.sort_by_key(is_penalized);
    items
}

/// When an attempt must have succeeded, so that each of the `others` that come after it has as much time until
/// `deadline`. The last one has all that is left: `None`, because that deadline is enforced already.
pub(super) fn fair_share(now: Instant, deadline: Instant, others: usize) -> Option<Instant> {
    let attempts = u32::try_from(others).unwrap_or(u32::MAX).checked_add(1)?;
    (others > 0).then(|| now + deadline.saturating_duration_since(now) / attempts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(&usize) -> bool = |_| false;

    #[test]
    fn penalized_servers_come_last_and_stay() {
        let never = || panic!("no randomness is needed");
        let all = || (0..4).collect::<Vec<usize>>();
        let order = |is: fn(&usize) -> bool| in_order(all(), HostOrder::Given, is, never);
        assert_eq!(order(NONE), [0, 1, 2, 3]);
        assert_eq!(order(|index| *index == 0), [1, 2, 3, 0]);
        assert_eq!(order(|index| *index != 2), [2, 0, 1, 3]);
        assert_eq!(order(|_| true), [0, 1, 2, 3]);
    }

    #[test]
    fn a_random_order_has_each_server_at_each_place() {
        let mut state = 1_u32;
        // Numerical Recipes' linear congruential generator; its low bits are poor.
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let mut seen = [[0; 3]; 3];
        for _ in 0..900 {
            let order = in_order(vec![0, 1, 2], HostOrder::Random, NONE, &mut random);
            for (place, server) in order.into_iter().enumerate() {
                seen[place][server] += 1;
            }
        }
        assert!(
            seen.iter()
                .flatten()
                .all(|count| (200..400).contains(count)),
            "{seen:?}"
        );
        let order = in_order(
            vec![0, 1, 2],
            HostOrder::Random,
            |index| *index == 1,
            random,
        );
        assert_eq!(order[2], 1);
    }

    #[test]
    fn a_penalty_ends_after_its_time_or_with_a_success() {
        let (penalties, now) = (Penalties::default(), Instant::now());
        let address = Failed::Address(SocketAddr::from(([192, 0, 2, 1], 5433)));
        for failed in [Failed::Target(1), address] {
            penalties.impose(failed, now);
            assert!(penalties.applies(failed, now));
            assert!(!penalties.applies(failed, now + PENALTY));
            assert!(!penalties.applies(Failed::Target(0), now));
        }
        // Another failure prolongs it.
        penalties.impose(address, now + PENALTY / 2);
        assert!(penalties.applies(address, now + PENALTY));
        // A failure after its end doubles it, up to a limit.
        let mut next = now + PENALTY * 2;
        for length in [10, 20, 40, 60, 60].map(Duration::from_secs) {
            penalties.impose(address, next);
            let end = next + length;
            assert!(penalties.applies(address, end - Duration::from_millis(1)));
            assert!(!penalties.applies(address, end));
            next = end;
        }
        penalties.lift(address);
        penalties.impose(address, now);
        assert!(!penalties.applies(address, now + PENALTY));
        assert!(penalties.applies(Failed::Target(1), now));
        for index in 0..2 * MAX_PENALTIES {
            penalties.impose(Failed::Target(index), now);
        }
        assert_eq!(penalties.0.load().len(), MAX_PENALTIES);
    }

    #[test]
    fn each_attempt_has_a_fair_share_of_the_time() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(30);
        assert_eq!(
            fair_share(now, deadline, 2),
            Some(now + Duration::from_secs(10))
        );
        let later = now + Duration::from_secs(10);
        assert_eq!(
            fair_share(later, deadline, 1),
            Some(now + Duration::from_secs(20))
        );
        assert_eq!(fair_share(later, deadline, 0), None);
        assert_eq!(
            fair_share(deadline + PENALTY, deadline, 1),
            Some(deadline + PENALTY)
        );
    }
}
