//! Latency histograms, and the fixed schedule of an open loop.
//!
//! **Coordinated omission.** A closed loop sends the next request when the last one was answered.
//! While the server stalls it sends nothing, and the stall is recorded once instead of once for
//! each request that would have been sent. An open loop therefore sends at times that are fixed in
//! advance ([`Schedule`]), and measures every latency from the intended start, whether or not a
//! connection was free at that time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Range of the histogram, in ns.
const SHORTEST: u64 = 1_000;
const LONGEST: u64 = 100_000_000_000;
/// Significant digits.
const DIGITS: u8 = 3;

/// Histogram of the latencies of one load, from 1 µs to 100 s.
#[derive(Clone, Debug)]
pub struct LatencyHistogram(Histogram<u64>);

impl LatencyHistogram {
    /// Creates an empty histogram.
    ///
    /// # Errors
    /// Never: the bounds are constants.
    pub fn new() -> Result<Self> {
        let histogram = Histogram::new_with_bounds(SHORTEST, LONGEST, DIGITS);
        let wrong = |error| Error::Usage(format!("a histogram: {error}"));
        histogram.map(Self).map_err(wrong)
    }

    /// Records one latency. Latencies above 100 s are recorded as 100 s.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Adds the histogram of another thread.
    pub fn add(&mut self, other: &Self) {
        // Cannot fail: the bounds are equal.
        let _ = self.0.add(&other.0);
    }

    /// Number of recorded latencies.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency at percentile `percent`, in µs.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> f64 {
        micros(self.0.value_at_percentile(percent))
    }

    /// Summarizes the histogram for the report.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            mean: self.0.mean() / 1e3,
            max: micros(self.0.max()),
            curve: CURVE
                .map(|percent| (percent, self.percentile(percent)))
                .to_vec(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "100 s in ns fit")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// The percentiles of a plotted distribution, denser towards the tail.
pub const CURVE: [f64; 16] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95,
    99.99,
];

/// Summary of a distribution. Latencies are in µs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of latencies.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Maximum.
    #[serde(alias = "most")]
    pub max: f64,
    /// Percentile and latency, for each percentile of [`CURVE`].
    pub curve: Vec<(f64, f64)>,
}

impl Summary {
    /// The latency at `percent`, which must be one of [`CURVE`].
    #[must_use]
    pub fn at(&self, percent: f64) -> Option<f64> {
        let found = self.curve.iter().find(|point| point.0 == percent);
        found.map(|point| point.1)
    }
}

/// Intended starts of an open loop: `rate` per second from `start` on.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    rate: f64,
}

impl Schedule {
    /// `rate` is per second and must be above 0.
    #[must_use]
    pub fn new(start: Instant, rate: f64) -> Self {
        Self { start, rate }
    }

    /// The intended start of request `number`. It does not depend on earlier requests.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn intended(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_accurate_to_three_digits() {
        let mut latencies = LatencyHistogram::new().unwrap();
        (1..=1000).for_each(|n| latencies.record(Duration::from_micros(n * 10)));
        assert_eq!(latencies.count(), 1000);
        for (percent, micros) in [(50.0, 5_000.0), (99.0, 9_900.0), (99.9, 9_990.0)] {
            let found = latencies.percentile(percent);
            assert!((found / micros - 1.0).abs() < 0.002, "{percent}: {found}");
        }
    }

    #[test]
    fn histograms_of_threads_add_up() {
        let (mut one, mut two) = (
            LatencyHistogram::new().unwrap(),
            LatencyHistogram::new().unwrap(),
        );
        one.record(Duration::from_micros(100));
        two.record(Duration::from_secs(1000));
        one.add(&two);
        assert_eq!(one.count(), 2);
        // Saturates at 100 s.
        assert!((one.summary().max / 100e6 - 1.0).abs() < 0.002);
    }

    /// A server that responds in 1 ms and stalls once for 1 s, queried 100 times per second over
    /// one connection. Latencies measured from the actual send omit the requests that could not be
    /// sent.
    #[test]
    fn open_loop_latencies_include_the_wait_that_a_closed_loop_omits() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 100.0);
        let (stop, go) = (
            start + Duration::from_secs(1),
            start + Duration::from_secs(2),
        );
        let answer = |sent: Instant| match sent >= stop && sent < go {
            true => go + Duration::from_millis(1),
            false => sent + Duration::from_millis(1),
        };
        let (mut closed, mut open) = (
            LatencyHistogram::new().unwrap(),
            LatencyHistogram::new().unwrap(),
        );
        let mut free = start;
        for number in 0..500 {
            let intended = schedule.intended(number);
            let sent = intended.max(free);
            free = answer(sent);
            closed.record(free - sent);
            open.record(free - intended);
        }
        assert!(closed.percentile(99.0) < 1_100.0);
        // A fifth of the requests fell into the stall, and waited for half of it on average.
        assert!(open.percentile(50.0) < 1_100.0);
        let p90 = open.percentile(90.0);
        assert!((p90 / 500_000.0 - 1.0).abs() < 0.2, "{p90}");
        assert!((open.percentile(99.9) / 1_000_000.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn intended_starts_do_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3.0);
        assert_eq!(schedule.intended(0), start);
        let later = schedule.intended(3_000_000) - start;
        assert!((later.as_secs_f64() - 1e6).abs() < 1e-3);
    }
}
