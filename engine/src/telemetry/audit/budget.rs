//! Budgets of lines in the audit log: token buckets.
//!
//! They exist because anybody who reaches the port could fill the disk otherwise. What exceeds them must be counted.

use std::time::{Duration, Instant};

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
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
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
}
