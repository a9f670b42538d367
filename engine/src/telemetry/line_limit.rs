//! The rate limit of a log line that others can cause at any rate: one in each interval, with the number of those left out.

use std::time::{Duration, Instant};

/// How often the line is written.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// When the last line was written, and how many have been left out since.
#[derive(Default)]
pub(crate) struct LineLimit {
    written: Option<Instant>,
    suppressed: u64,
}

impl LineLimit {
    /// Whether a line is due. Gives the number of lines that were left out since the last one.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |at| now.saturating_duration_since(at) < INTERVAL;
        if self.written.is_some_and(is_recent) {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.written = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_line_in_an_interval() {
        let (mut limit, start) = (LineLimit::default(), Instant::now());
        assert_eq!(limit.take(start), Some(0));
        assert_eq!(limit.take(start), None);
        let almost = INTERVAL.saturating_sub(Duration::from_millis(1));
        assert_eq!(limit.take(start + almost), None);
        assert_eq!(limit.take(start + INTERVAL), Some(2));
        assert_eq!(limit.take(start + INTERVAL), None);
        assert_eq!(limit.take(start + 2 * INTERVAL), Some(1));
    }
}
