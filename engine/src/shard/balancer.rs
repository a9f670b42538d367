//! Least-connections load balancing between the shards of a process.
//!
//! The kernel distributes connections over the shards' listeners by a hash of their
//! addresses and ports. Of two busy clients on two shards, every other pair would share
//! one. So the shard that accepts a connection hands it to the one with the fewest
//! connections, unless they are nearly even: with hundreds of connections the hash
//! distributes well, and a hand-off costs a wake-up
//! (docs/adr/0010-connection-balancing.md). It must never be touched on the data path, and never hand a
//! connection to a shard that would have to displace another one for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A shard hands a connection off only if it is ahead by more than this fraction of its count.
const MAX_IMBALANCE: usize = 8;

/// The number of connections of each shard.
pub(crate) struct Balancer {
    shards: Vec<Count>,
}

/// Aligned to a cache line, so that shards do not share one.
#[repr(align(64))]
#[derive(Default)]
struct Count {
    connections: AtomicUsize,
    /// Whether the shard has no place for another unattested connection.
    is_full: Arc<AtomicBool>,
}

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

    /// Assigns a connection that the shard `own` has accepted.
    pub(crate) fn assign(self: &Arc<Self>, own: usize) -> ShardAssignment {
        let counts = self.shards.iter().enumerate();
        let open = counts.filter(|(_, count)| !count.is_full.load(Ordering::Relaxed));
        let counts = open.map(|(shard, count)| (shard, count.connections.load(Ordering::Relaxed)));
        let fewest = counts.min_by_key(|(_, count)| *count);
        let mine = self
            .count(own)
            .map_or(0, |count| count.load(Ordering::Relaxed));
        let (fewest, least) = fewest.unwrap_or((own, mine));
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

    /// Where the shard says that it has no place for another unattested connection.
    pub(crate) fn full_flag(&self, shard: usize) -> Arc<AtomicBool> {
        let count = self.shards.get(shard);
        count.map_or_else(Arc::default, |count| Arc::clone(&count.is_full))
    }

    fn count(&self, shard: usize) -> Option<&AtomicUsize> {
        self.shards.get(shard).map(|count| &count.connections)
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
    fn few_connections_are_distributed_evenly() {
        let balancer = Balancer::new(4);
        let assignments: Vec<_> = (0..8).map(|_| balancer.assign(2)).collect();
        for shard in 0..4 {
            let here = assignments
                .iter()
                .filter(|assignment| assignment.shard() == shard)
                .count();
            assert_eq!(here, 2, "shard {shard}");
        }
    }

    #[test]
    fn nearly_even_shards_keep_their_connections() {
        let balancer = Balancer::new(2);
        let mut assignments: Vec<_> = (0..100).map(|n| balancer.assign(n % 2)).collect();
        let kept = (0..6).map(|_| balancer.assign(0));
        assignments.extend(kept);
        assert!(
            assignments
                .iter()
                .skip(100)
                .all(|assignment| assignment.shard() == 0)
        );
        assert_eq!(balancer.assign(0).shard(), 0);
        assignments.extend((0..2).map(|_| balancer.assign(0)));
        assert_eq!(balancer.assign(0).shard(), 1);
    }

    #[test]
    fn a_full_shard_gets_no_connection_of_another() {
        let balancer = Balancer::new(3);
        let [first, second] = [1, 2].map(|shard| balancer.full_flag(shard));
        first.store(true, Ordering::Relaxed);
        let mut assignments: Vec<_> = (0..4).map(|_| balancer.assign(0)).collect();
        let shards: Vec<_> = assignments.iter().map(ShardAssignment::shard).collect();
        assert_eq!(shards, [0, 2, 0, 2]);
        second.store(true, Ordering::Relaxed);
        assignments.extend((0..4).map(|_| balancer.assign(0)));
        assert!(assignments.iter().skip(4).all(|other| other.shard() == 0));
        first.store(false, Ordering::Relaxed);
        assert_eq!(balancer.assign(0).shard(), 1);
    }

    #[test]
    fn a_dropped_assignment_no_longer_counts() {
        let balancer = Balancer::new(2);
        let first = balancer.assign(0);
        assert_eq!(balancer.assign(0).shard(), 1);
        drop(first);
        assert_eq!(balancer.assign(0).shard(), 0);
    }
}
