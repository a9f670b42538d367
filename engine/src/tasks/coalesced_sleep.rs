//! Sleeps of periodic tasks that end together: timer coalescing, as `round_jiffies` does in Linux.
//!
//! Little else wakes the control thread of an idle sidecar, and a wake-up costs more than what the task then does. It
//! must not be used for deadlines, nor between attempts: those have to end when they say.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Sleeps end at multiples of this since the first one.
const STEP: Duration = Duration::from_millis(250);

/// Sleeps for `period`, half a [`STEP`] longer or shorter. A `period` of at least two steps keeps its rate: the time that
/// the task itself takes is rounded away.
pub(crate) async fn sleep(period: Duration) {
    sleep_until(end(period)).await;
}

/// When such a sleep ends that begins now.
pub(super) fn end(period: Duration) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let now = Instant::now();
    let first = *FIRST.get_or_init(|| now);
    first + rounded(now.saturating_duration_since(first) + period)
}

/// The nearest multiple of [`STEP`].
fn rounded(since_first: Duration) -> Duration {
    let steps = (since_first + STEP / 2).as_millis() / STEP.as_millis();
    STEP * u32::try_from(steps).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_step() {
        let rounded = |milliseconds| rounded(Duration::from_millis(milliseconds)).as_millis();
        assert_eq!(rounded(1_000), 1_000);
        assert_eq!(rounded(1_124), 1_000);
        assert_eq!(rounded(1_125), 1_250);
        assert_eq!(rounded(876), 1_000);
    }

    #[test]
    fn sleeps_that_began_at_different_times_end_together() {
        let since_first = Duration::from_millis(4_010);
        let later = since_first + Duration::from_millis(40);
        let period = Duration::from_secs(1);
        assert_eq!(rounded(since_first + period), rounded(later + period));
        assert_eq!(rounded(since_first + period), Duration::from_secs(5));
    }
}
