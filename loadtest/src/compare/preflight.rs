//! Checks before a measurement: is the machine idle, and do its virtual cores share a physical one?

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::threads::{on_core, with_background_load};
use crate::error::Result;
use crate::machine::CpuTicks;
use crate::peers::workspace;
use crate::process_usage;
use crate::progress::Progress;
use crate::stats::Spread;

/// A machine is idle while other processes use at most this share of its CPU time, 0 to 1.
pub(super) const IDLE_THRESHOLD: f64 = 0.03;
/// Time over which the CPU share is sampled.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// Maximum slowdown of work on one core, while another one works, on separate physical cores.
const MAX_SLOWDOWN: f64 = 1.15;
/// Interval between two checks while waiting.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Repetitions of the work. The fastest one counts, because disturbances can only slow it down.
const PIECES: usize = 3;
/// Repetitions on the other core, which must not finish earlier.
const BACKGROUND_PIECES: usize = 2 * PIECES + 2;
/// CPU time of one piece of work.
const PIECE_TIME: Duration = Duration::from_millis(20);
/// Iterations that are timed to find how many a piece has.
const TRIAL_ITERATIONS: u64 = 100_000;

/// Waits until the machine is idle, for at most `max_wait`. Returns the CPU share that other
/// processes used in the last second.
pub(super) fn wait_until_idle(max_wait: Duration, progress: &Progress) -> Result<f64> {
    let deadline = Instant::now() + max_wait;
    loop {
        let before = CpuTicks::now();
        progress.sleep_until(Instant::now() + SAMPLE_TIME, "waiting for an idle machine")?;
        let busy = CpuTicks::now().busy_since(before);
        if busy <= IDLE_THRESHOLD || Instant::now() >= deadline {
            return Ok(busy);
        }
    }
}

/// Two virtual cores may run on two physical cores for some minutes, and share one (SMT) for
/// others. Measurements in the two states are of two different machines: ratios of a run that saw
/// both cannot be reproduced.
pub(super) struct CoreCheck {
    /// The proxies' core and another one. `None` on a single core.
    pair: Option<[String; 2]>,
    /// Iterations of one piece of work, which take about `PIECE_TIME`.
    iterations: u64,
    wait_left: Duration,
    slowdowns: Vec<f64>,
}

impl CoreCheck {
    /// `max_wait` limits the sum of all waits for separate cores.
    pub(super) fn new(cores: &workspace::Cores, max_wait: Duration) -> Self {
        let mut others = cores.others.split(',');
        let other = others.find(|core| *core != cores.proxy);
        Self {
            pair: other.map(|other| [cores.proxy.clone(), other.to_owned()]),
            iterations: piece_iterations(),
            wait_left: max_wait,
            slowdowns: Vec::new(),
        }
    }

    /// Waits before a round until the cores are separate, or until the total wait is exhausted.
    pub(super) fn wait(&mut self, progress: &Progress) -> Result<()> {
        while let Some(pair) = &self.pair {
            let slowdown = measure_slowdown(pair, self.iterations)?;
            if slowdown <= MAX_SLOWDOWN || self.wait_left.is_zero() {
                self.slowdowns.push(slowdown);
                return Ok(());
            }
            let pause = RETRY_INTERVAL.min(self.wait_left);
            self.wait_left = self.wait_left.saturating_sub(pause);
            let what = "waiting: two virtual cores share a physical one";
            progress.sleep_until(Instant::now() + pause, what)?;
        }
        Ok(())
    }

    /// Slowdown of work on one core while another one works, over all rounds.
    pub(super) fn spread(&self) -> Option<Spread> {
        Spread::of(self.slowdowns.iter().copied())
    }

    /// A remark for the report, if cores were shared in any round.
    pub(super) fn remark(&self) -> Option<String> {
        let shared = self
            .slowdowns
            .iter()
            .filter(|slowdown| **slowdown > MAX_SLOWDOWN)
            .count();
        (shared > 0).then(|| {
            format!(
                "Before {shared} of {} rounds two virtual cores shared a physical one: work on one \
                 core slowed down while the other worked. Check the ranges.",
                self.slowdowns.len()
            )
        })
    }
}

/// Measures by which factor one core slows down while the other works too.
fn measure_slowdown([one, other]: &[String; 2], iterations: u64) -> Result<f64> {
    let work_piece = || work(iterations);
    let fastest_piece = || {
        let pieces = (0..PIECES).map(|_| work_piece());
        pieces.min().unwrap_or_default()
    };
    let alone = on_core(one, || Ok(fastest_piece()))?;
    let loaded = with_background_load(
        1,
        || {
            on_core(other, || {
                Ok((0..BACKGROUND_PIECES).map(|_| work_piece()).sum())
            })
        },
        || {
            on_core(one, || {
                // Wait until the other core has started.
                work_piece();
                Ok(fastest_piece())
            })
        },
    )?;
    Ok(loaded.as_secs_f64() / alone.as_secs_f64().max(1e-9))
}

/// Calibrates a piece of work: an iteration takes thirty times as long in an unoptimised build.
fn piece_iterations() -> u64 {
    let trial = work(TRIAL_ITERATIONS).max(Duration::from_nanos(1));
    let trials = PIECE_TIME.as_nanos() / trial.as_nanos();
    TRIAL_ITERATIONS * u64::try_from(trials).unwrap_or(1).max(1)
}

/// Fully occupies a core, with independent sums, and returns the CPU time that it took.
fn work(iterations: u64) -> Duration {
    let started = process_usage::thread_cpu();
    let mut sums = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for iteration in 0..iterations {
        for sum in &mut sums {
            *sum = sum.wrapping_add(iteration) ^ iteration;
        }
        sums = black_box(sums);
    }
    process_usage::thread_cpu().saturating_sub(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowdown_is_measured_once_per_round() {
        let assigned = workspace::Cores::assign(workspace::Placement::Shared).unwrap();
        let mut cores = CoreCheck::new(&assigned, Duration::ZERO);
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!(cores.slowdowns.len(), usize::from(cores.pair.is_some()));
        assert!(
            cores
                .slowdowns
                .iter()
                .all(|slowdown| (0.5..20.0).contains(slowdown))
        );
    }

    #[test]
    fn slowdown_is_not_measured_on_a_single_core() {
        let single = workspace::Cores {
            proxy: "3".to_owned(),
            others: "3".to_owned(),
            usable: vec![3],
        };
        let mut cores = CoreCheck::new(&single, Duration::ZERO);
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!((cores.spread(), cores.remark()), (None, None));
    }

    #[test]
    fn shared_cores_are_reported_when_the_wait_is_exhausted() {
        let cores = |slowdowns: &[f64]| CoreCheck {
            pair: None,
            iterations: 1,
            wait_left: Duration::ZERO,
            slowdowns: slowdowns.to_vec(),
        };
        assert_eq!(cores(&[1.0, 1.1]).remark(), None);
        let shared = cores(&[1.0, 1.6, 1.4]);
        assert!(shared.remark().unwrap().starts_with("Before 2 of 3 rounds"));
        assert_eq!(shared.spread().unwrap().high, 1.6);
    }
}
