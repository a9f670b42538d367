//! Sleeps of periodic tasks that end together: timer coalescing, as `round_jiffies` does in Linux.
//!
//! Little else wakes the control thread of an idle sidecar, and a wake-up costs more than what the task then does. It
//! must not be used for deadlines, back-off or the least time between two attempts: those have to end when they say.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// Sleeps end at multiples of this since the first one. All periods are multiples of it, so that tasks that started at
/// different times end their sleeps together from the second one on.
const STEP: Duration = Duration::from_secs(1);

/// By how much a sleep may be longer than its period: the time that a task itself takes is rounded away, up to this.
pub(super) const MAX_DELAY: Duration = Duration::from_millis(125);

/// Sleeps for `period`, up to [`MAX_DELAY`] longer or up to a second shorter; for less than a second exactly.
pub(crate) async fn sleep(period: Duration) {
    sleep_until(end(period)).await;
}

/// When such a sleep ends that begins now.
pub(super) fn end(period: Duration) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let now = Instant::now();
    if period < STEP {
        return now + period;
    }
    let first = *FIRST.get_or_init(|| now);
    first + rounded(now.saturating_duration_since(first) + period)
}

/// Waits until `next`, or for a request: then until `earliest`, which limits how often a task runs on request.
pub(super) async fn sleep_unless(requested: impl Future, next: Instant, earliest: Instant) {
    if timeout_at(next, requested).await.is_ok() {
        sleep_until(earliest).await;
    }
}

/// The last multiple of [`STEP`] that is at most [`MAX_DELAY`] later.
fn rounded(since_first: Duration) -> Duration {
    let steps = (since_first + MAX_DELAY).as_secs() / STEP.as_secs();
    STEP * u32::try_from(steps).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_down_except_for_a_short_delay() {
        let rounded = |milliseconds| rounded(Duration::from_millis(milliseconds)).as_millis();
        assert_eq!(rounded(2_000), 2_000);
        assert_eq!(rounded(2_874), 2_000);
        assert_eq!(rounded(2_875), 3_000);
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
        let second = Duration::from_secs(1);
        let mut ends = [10, 870].map(Duration::from_millis);
        for round in 1..5_u32 {
            // What the tasks do takes some time.
            ends = ends.map(|end| rounded(end + Duration::from_millis(3) + second));
            assert_eq!(ends, [second * round; 2], "round {round}");
        }
    }

    #[test]
    fn a_sleep_is_never_longer_than_the_delay_allows_and_never_over_at_once() {
        for began in 0..1_000 {
            let began = Duration::from_millis(began);
            for period in [1, 5, 60].map(Duration::from_secs) {
                let end = rounded(began + period);
                assert!(end > began && end <= began + period + MAX_DELAY);
            }
        }
    }
}
