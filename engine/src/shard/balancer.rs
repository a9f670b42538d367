//! Which shard serves a connection.
//!
//! The kernel spreads connections over the shards' listeners by a hash of their
//! addresses and ports. Of two busy clients before two shards, every other pair would
//! share one of them. So the shard that accepts a connection hands it to the one that
//! has the fewest, unless they are as good as even: with hundreds of connections the
//! hash does well, and a hand-over costs a wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A shard hands over only while it is ahead by more than this part of what it has.
const MAX_IMBALANCE: usize = 8;

/// How many connections each shard has. Touched at accept and at close only.
pub(crate) struct Balancer {
    shards: Vec<Count>,
}

/// On a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Count(AtomicUsize);

/// A connection's assignment on a shard, given back when dropped.
pub(crate) struct ShardAssignment {
    balancer: Arc<Balancer>,
    shard: usize,
}

impl Balancer {
    pub(crate) fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: std::iter::repeat_with(Count::default)
                .take(shards)
                .collect(),
        })
    }

    /// Takes a assignment for a connection that `own` has accepted.
    pub(crate) fn assign(self: &Arc<Self>, own: usize) -> ShardAssignment {
        let counts = self
            .shards
            .iter()
            .map(|count| count.0.load(Ordering::Relaxed));
        let fewest = counts.enumerate().min_by_key(|(_, count)| *count);
        let (fewest, least) = fewest.unwrap_or((own, 0));
        let mine = self
            .count(own)
            .map_or(0, |count| count.load(Ordering::Relaxed));
        let is_even = mine.saturating_sub(least) <= mine / MAX_IMBALANCE;
        let shard = if is_even { own } else { fewest };
        if let Some(count) = self.count(shard) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        ShardAssignment {
            balancer: Arc::clone(self),
            shard,
        }
    }

    fn count(&self, shard: usize) -> Option<&AtomicUsize> {
        self.shards.get(shard).map(|count| &count.0)
    }
}

impl ShardAssignment {
    /// The shard's number.
    pub(crate) fn shard(&self) -> usize {
        self.shard
    }
}

impl Drop for ShardAssignment {
    fn drop(&mut self) {
        if let Some(count) = self.balancer.count(self.shard) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_are_spread_whoever_accepts_them() {
        let balancer = Balancer::new(4);
        let places: Vec<_> = (0..8).map(|_| balancer.assign(2)).collect();
        for shard in 0..4 {
            let here = places
                .iter()
                .filter(|assignment| assignment.shard() == shard)
                .count();
            assert_eq!(here, 2, "shard {shard}");
        }
    }

    #[test]
    fn many_stay_where_they_are_while_it_is_as_good_as_even() {
        let balancer = Balancer::new(2);
        let mut places: Vec<_> = (0..100).map(|n| balancer.assign(n % 2)).collect();
        let kept = (0..6).map(|_| balancer.assign(0));
        places.extend(kept);
        assert!(
            places
                .iter()
                .skip(100)
                .all(|assignment| assignment.shard() == 0)
        );
        assert_eq!(balancer.assign(0).shard(), 0);
        places.extend((0..2).map(|_| balancer.assign(0)));
        assert_eq!(balancer.assign(0).shard(), 1);
    }

    #[test]
    fn a_place_is_given_back() {
        let balancer = Balancer::new(2);
        let first = balancer.assign(0);
        assert_eq!(balancer.assign(0).shard(), 1);
        drop(first);
        assert_eq!(balancer.assign(0).shard(), 0);
    }
}
