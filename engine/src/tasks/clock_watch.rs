//! Watches the wall clock: whether it is behind its floor ([`crate::io::clock`]), and whether it is set.
//!
//! Runs on the control thread. It only reports: everything that depends on the time reads the clock itself, at most a
//! second later.

use std::time::{Duration, Instant, SystemTime};

use admin::Latch;

use crate::io::clock::clock_behind_floor;
use crate::tasks::coalesced_sleep;

/// How often the clock is read.
const INTERVAL: Duration = Duration::from_secs(1);
/// A smaller difference between both clocks is adjustment or a late wake-up.
const MIN_STEP: Duration = Duration::from_secs(5);

/// Reports the clock in `latch` and in the log for as long as the process runs.
pub(crate) async fn run(latch: Latch) {
    let mut was_behind = false;
    let mut last = (Instant::now(), SystemTime::now());
    loop {
        match clock_behind_floor() {
            None => latch.set_ready(),
            Some(behind) => {
                let reason = format!("{behind}: set it");
                if !was_behind {
                    tracing::error!("{reason}");
                }
                latch.set_not_ready(reason);
            }
        }
        was_behind = clock_behind_floor().is_some();
        coalesced_sleep::sleep(INTERVAL).await;
        let now = (Instant::now(), SystemTime::now());
        if let Some(step) = step_of(now.0.saturating_duration_since(last.0), last.1, now.1) {
            tracing::warn!(seconds = step, "the clock of this machine was set");
        }
        last = now;
    }
}

/// By how many seconds the clock was set while `elapsed` passed; `None` if it was not.
fn step_of(elapsed: Duration, before: SystemTime, after: SystemTime) -> Option<i64> {
    let expected = before.checked_add(elapsed)?;
    let (sign, step) = match after.duration_since(expected) {
        Ok(forward) => (1, forward),
        Err(back) => (-1, back.duration()),
    };
    (step >= MIN_STEP).then(|| sign * i64::try_from(step.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_step_is_told_from_time_that_passes() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let second = Duration::from_secs(1);
        assert_eq!(step_of(second, at(1_000), at(1_001)), None);
        assert_eq!(step_of(second, at(1_000), at(1_004)), None);
        assert_eq!(step_of(second, at(1_000), at(4_601)), Some(3_600));
        assert_eq!(step_of(second, at(4_600), at(1_001)), Some(-3_600));
        // The process was stopped for an hour.
        assert_eq!(step_of(3_600 * second, at(1_000), at(4_600)), None);
    }
}
