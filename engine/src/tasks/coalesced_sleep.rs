//! Sleeps of periodic tasks that end together: timer coalescing, as `round_jiffies` does in Linux.
//!
//! Little else wakes the control thread of an idle sidecar, and a wake-up costs more than what the task then does. It
//! must not be used for deadlines, back-off or the least time between two attempts: those have to end when they say.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// Sleeps end at multiples of this since the first one.
const STEP: Duration = Duration::from_millis(250);

/// By how much a sleep may be longer or shorter than its period.
pub(super) const MAX_DEVIATION: Duration = Duration::from_millis(125);

/// Sleeps for `period`, up to [`MAX_DEVIATION`] longer or shorter. A `period` of at least two steps keeps its rate: the time that
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

/// Waits until `next`, or for a request: then until `earliest`, which limits how often a task runs on request.
pub(super) async fn sleep_unless(requested: impl Future, next: Instant, earliest: Instant) {
    if timeout_at(next, requested).await.is_ok() {
        sleep_until(earliest).await;
    }
}

/// The nearest multiple of [`STEP`].
fn rounded(since_first: Duration) -> Duration {
    let steps = (since_first + MAX_DEVIATION).as_millis() / STEP.as_millis();
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

    #[tokio::test]
    async fn a_request_ends_the_sleep_but_not_before_the_earliest_time() {
        let now = Instant::now();
        let (next, earliest) = (
            now + Duration::from_secs(60),
            now + Duration::from_millis(20),
        );
        sleep_unless(std::future::ready(()), next, earliest).await;
        let ended = Instant::now();
        assert!(ended >= earliest && ended < next);
        sleep_unless(std::future::pending::<()>(), ended, next).await;
        assert!(Instant::now() < next);
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
