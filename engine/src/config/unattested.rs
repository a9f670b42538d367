//! The limits on connections of clients that are not attested yet.

use super::reader::Reader;
use super::settings;

/// Of a forwarder, also with a small `max_connections`: a driver opens a connection for a CancelRequest.
const MIN_OF_DRIVERS: usize = 64;

/// How many connections of clients that are not attested yet there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnattestedLimits {
    /// In all.
    pub total: usize,
    /// Of one address.
    pub per_address: usize,
}

impl UnattestedLimits {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let total = reader.read(&settings::MAX_UNATTESTED_CONNECTIONS);
        let per_address = reader.read(&settings::MAX_UNATTESTED_PER_ADDRESS);
        let (total, per_address) = (total?, per_address?);
        Some(Self {
            total,
            per_address: per_address.unwrap_or_else(|| auto_per_address(total)),
        })
    }

    /// Those of a forwarder, whose drivers are all on this machine: as many connections may be about to open
    /// as there may be sessions.
    pub(crate) fn of_drivers(max_connections: usize) -> Self {
        let total = max_connections.max(MIN_OF_DRIVERS);
        Self {
            total,
            per_address: total,
        }
    }

    /// Lowers the total, and with it the part of one address.
    pub(crate) fn lower_total(&mut self, total: usize) {
        self.total = total;
        self.per_address = self.per_address.min(auto_per_address(total));
    }

    /// The share of each shard: connections are spread evenly.
    pub(crate) fn of_each_shard(self, shards: usize) -> Self {
        Self {
            total: self.total.div_ceil(shards),
            per_address: self.per_address.div_ceil(shards),
        }
    }
}

/// Five eighths: an address that has half of the connections keeps them all, although the kernel's hash gives one shard up
/// to a quarter more than its share. With half, 63 of 1,000 on two shards lost their places.
fn auto_per_address(total: usize) -> usize {
    (5 * total).div_ceil(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_may_have_half_of_the_connections_on_uneven_shards() {
        let (total, shards) = (2_000, 2);
        let limits = UnattestedLimits {
            total,
            per_address: auto_per_address(total),
        };
        let of_shard = limits.of_each_shard(shards);
        let share = total / 2 / shards;
        assert_eq!(of_shard.per_address, share + share / 4);
        assert!(of_shard.per_address < of_shard.total, "others have places");
    }

    #[test]
    fn a_lower_total_leaves_places_to_others() {
        let mut limits = UnattestedLimits {
            total: 2_000,
            per_address: 1_500,
        };
        limits.lower_total(800);
        assert_eq!((limits.total, limits.per_address), (800, 500));
    }
}
