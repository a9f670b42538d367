//! Whether the machine is fit to be measured on.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::threads::{on_core, with_background_load};
use crate::error::Result;
use crate::machine::CpuTicks;
use crate::peers::workspace;
use crate::process_usage;
use crate::progress::Progress;
use crate::stats::Spread;

/// A machine is quiet while others use no more of its processors, 0 to 1.
pub(super) const IDLE_THRESHOLD: f64 = 0.03;
/// How long to look.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// Workload takes so many times as long on cores that are real ones, at the most.
const MAX_SLOWDOWN: f64 = 1.15;
/// How long a comparison waits for real cores, all rounds together.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Between two looks meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Pieces of work, the fastest_piece of which counts: nothing else can make it faster.
const PIECES: usize = 3;
/// Pieces of the other core's, which is not to be done before.
const BACKGROUND_PIECES: usize = 2 * PIECES + 2;
/// Turns of a piece: some 20 ms.
const ITERATIONS: u64 = 10_000_000;

/// Waits until nothing else uses the processors; says what part of them others had in
/// the last second.
pub(super) fn wait_until_idle(most: Duration, progress: &Progress) -> Result<f64> {
    let deadline = Instant::now() + most;
    loop {
        let before = CpuTicks::now();
        progress.sleep_until(Instant::now() + SAMPLE_TIME, "waiting for a quiet machine")?;
        let busy = CpuTicks::now().busy_since(before);
        if busy <= IDLE_THRESHOLD || Instant::now() >= deadline {
            return Ok(busy);
        }
    }
}

/// Two virtual cores may be two real ones for some minutes and share one for others. What
/// is measured then is another machine, and no ratio of a run that saw both can be had again.
pub(super) struct CoreCheck {
    /// The proxies' and another one; `None` where there is only one.
    pair: Option<[String; 2]>,
    wait_left: Duration,
    slowdowns: Vec<f64>,
}

impl CoreCheck {
    pub(super) fn new(cores: &workspace::Cores) -> Self {
        let mut others = cores.others.split(',');
        let other = others.find(|core| *core != cores.proxy);
        Self {
            pair: other.map(|other| [cores.proxy.clone(), other.to_owned()]),
            wait_left: TIMEOUT,
            slowdowns: Vec::new(),
        }
    }

    /// Before a round: waits for real cores while there is deadline wait_left.
    pub(super) fn wait(&mut self, progress: &Progress) -> Result<()> {
        while let Some(pair) = &self.pair {
            let slowdown = measure_slowdown(pair)?;
            if slowdown <= MAX_SLOWDOWN || self.wait_left.is_zero() {
                self.slowdowns.push(slowdown);
                return Ok(());
            }
            let pause = RETRY_INTERVAL.min(self.wait_left);
            self.wait_left = self.wait_left.saturating_sub(pause);
            let what = "waiting while two virtual cores share a real one";
            progress.sleep_until(Instant::now() + pause, what)?;
        }
        Ok(())
    }

    /// How many times as long work took with_background_load other work, over the rounds.
    pub(super) fn spread(&self) -> Option<Spread> {
        Spread::of(self.slowdowns.iter().copied())
    }

    /// What takes belief away.
    pub(super) fn remark(&self) -> Option<String> {
        let shared = self
            .slowdowns
            .iter()
            .filter(|slowdown| **slowdown > MAX_SLOWDOWN)
            .count();
        (shared > 0).then(|| {
            format!(
                "Before {shared} of {} rounds the processors were not real ones: work on \
                 one took longer beside work on another. Look at the ranges.",
                self.slowdowns.len()
            )
        })
    }
}

/// How many times as long one core takes for the same work while the other works too.
fn measure_slowdown([one, other]: &[String; 2]) -> Result<f64> {
    let alone = on_core(one, || Ok(fastest_piece()))?;
    let with_background_load = with_background_load(
        1,
        || {
            on_core(other, || {
                Ok((0..BACKGROUND_PIECES).map(|_| work_piece()).sum())
            })
        },
        || {
            on_core(one, || {
                // Until the other one has started.
                work_piece();
                Ok(fastest_piece())
            })
        },
    )?;
    Ok(with_background_load.as_secs_f64() / alone.as_secs_f64().max(1e-9))
}

fn fastest_piece() -> Duration {
    let pieces = (0..PIECES).map(|_| work_piece());
    pieces.min().unwrap_or_default()
}

/// The CPU time of a piece of work that keeps all of a core busy: sums that do not wait
/// for each other.
fn work_piece() -> Duration {
    let started = process_usage::thread_cpu();
    let mut sums = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for turn in 0..ITERATIONS {
        for sum in &mut sums {
            *sum = sum.wrapping_add(turn) ^ turn;
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
        let mut cores = CoreCheck::new(&workspace::Cores::assign(false).unwrap());
        cores.wait_left = Duration::ZERO;
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
        let mut cores = CoreCheck::new(&workspace::Cores {
            proxy: "3".to_owned(),
            others: "3".to_owned(),
            count: 1,
        });
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!((cores.spread(), cores.remark()), (None, None));
    }

    #[test]
    fn shared_cores_are_reported_when_the_wait_is_exhausted() {
        let cores = |slowdowns: &[f64]| CoreCheck {
            pair: None,
            wait_left: Duration::ZERO,
            slowdowns: slowdowns.to_vec(),
        };
        assert_eq!(cores(&[1.0, 1.1]).remark(), None);
        let shared = cores(&[1.0, 1.6, 1.4]);
        assert!(shared.remark().unwrap().starts_with("Before 2 of 3 rounds"));
        assert_eq!(shared.spread().unwrap().high, 1.6);
    }
}
