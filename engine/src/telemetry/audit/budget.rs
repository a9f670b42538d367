//! Budgets of lines in the audit log: token buckets, for a reason or for an address.
//!
//! They exist because anybody who reaches the port could fill the disk otherwise. What exceeds them must be counted.
//! The table of addresses must never grow beyond its cap.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Lines of one address: this many at once, and one more for each [`ADDRESS_REFILL`].
const ADDRESS_BURST: u32 = 10;
const ADDRESS_REFILL: Duration = Duration::from_secs(1);
/// Lines of all addresses together.
const TOTAL_BURST: u32 = 100;
const TOTAL_REFILL: Duration = Duration::from_millis(100);
/// Addresses that are remembered. One whose bucket is full again is forgotten.
const MAX_ADDRESSES: usize = 1_024;

/// A budget that one address cannot use up for the others: a token bucket for each, and one for all.
pub(super) struct AddressBudget {
    /// By IPv4 address or IPv6 /64 network; `None` for Unix sockets.
    addresses: HashMap<Option<IpAddr>, TokenBucket>,
    total: TokenBucket,
}

impl AddressBudget {
    pub(super) fn new() -> Self {
        Self {
            addresses: HashMap::new(),
            total: TokenBucket::new(TOTAL_BURST),
        }
    }

    /// Whether there may be a line for a client at `address`.
    pub(super) fn take(&mut self, address: Option<IpAddr>, now: Instant) -> bool {
        // First, so that a flood from many addresses neither fills the table nor takes tokens for lines that are not
        // written: no more addresses enter than have a line.
        if !self.total.has_token(now, TOTAL_BURST, TOTAL_REFILL) {
            return false;
        }
        let source = address.map(admin::source_of);
        if !self.addresses.contains_key(&source) && self.addresses.len() >= MAX_ADDRESSES {
            self.addresses
                .retain(|_, bucket| !bucket.is_full(now, ADDRESS_BURST, ADDRESS_REFILL));
            if self.addresses.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let bucket = self.addresses.entry(source);
        let bucket = bucket.or_insert_with(|| TokenBucket::new(ADDRESS_BURST));
        bucket.take(now, ADDRESS_BURST, ADDRESS_REFILL)
            && self.total.take(now, TOTAL_BURST, TOTAL_REFILL)
    }
}

/// A token bucket: `burst` tokens at most, one more for each interval.
pub(super) struct TokenBucket {
    tokens: u32,
    /// When the last token was added.
    refilled: Option<Instant>,
}

impl TokenBucket {
    pub(super) fn new(burst: u32) -> Self {
        Self {
            tokens: burst,
            refilled: None,
        }
    }

    pub(super) fn take(&mut self, now: Instant, burst: u32, refill: Duration) -> bool {
        self.refill(now, burst, refill);
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    fn has_token(&mut self, now: Instant, burst: u32, refill: Duration) -> bool {
        self.refill(now, burst, refill);
        self.tokens > 0
    }

    fn is_full(&mut self, now: Instant, burst: u32, refill: Duration) -> bool {
        self.refill(now, burst, refill);
        self.tokens == burst
    }

    fn refill(&mut self, now: Instant, burst: u32, refill: Duration) {
        let since = *self.refilled.get_or_insert(now);
        let intervals = now.saturating_duration_since(since).as_nanos() / refill.as_nanos().max(1);
        if intervals > 0 {
            let added = u32::try_from(intervals).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(added).min(burst);
            self.refilled = Some(match refill.checked_mul(added) {
                Some(whole) if added < u32::MAX => since.checked_add(whole).unwrap_or(now),
                _ => now,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_burst_and_then_one_token_for_each_interval() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = TokenBucket::new(3);
        let mut taken = |at: Duration| {
            let now = start + at;
            (0..10).filter(|_| bucket.take(now, 3, second)).count()
        };
        assert_eq!(taken(Duration::ZERO), 3);
        assert_eq!(taken(Duration::from_millis(900)), 0);
        assert_eq!(taken(Duration::from_millis(1900)), 1);
        // The half of the interval that has passed counts.
        assert_eq!(taken(Duration::from_millis(2000)), 1);
        assert_eq!(taken(Duration::from_secs(3600)), 3);
    }

    #[test]
    fn an_address_uses_up_its_own_budget_first() {
        let now = Instant::now();
        let mut budget = AddressBudget::new();
        let ipv4 = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let mut taken = |address| (0..50).filter(|_| budget.take(address, now)).count();
        assert_eq!(taken(ipv4(1)), 10);
        assert_eq!(taken(ipv4(1)), 0);
        assert_eq!(taken(ipv4(2)), 10);
        assert_eq!(taken(None), 10);
        // One IPv6 network is one address.
        assert_eq!(taken("2001:db8::1".parse().ok()), 10);
        assert_eq!(taken("2001:db8::2".parse().ok()), 0);
        // All of them together have a budget too.
        let rest: usize = (3..40).map(|last| taken(ipv4(last))).sum();
        assert_eq!(rest, 60);
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let start = Instant::now();
        let mut budget = AddressBudget::new();
        let address = |number: u32| Some(IpAddr::from(number.to_be_bytes()));
        for number in 0..5_000 {
            budget.take(address(number), start);
        }
        // No more than have a line.
        assert_eq!(budget.addresses.len(), TOTAL_BURST as usize);
        for number in 5_000..20_000 {
            let now = start + TOTAL_REFILL * (number - 5_000);
            budget.take(address(number), now);
            assert!(budget.addresses.len() <= MAX_ADDRESSES, "{number}");
        }
        // They have their tokens again after a while, and make room.
        assert!(budget.take(address(30_000), start + TOTAL_REFILL * 20_000));
    }
}
