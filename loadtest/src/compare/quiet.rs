//! Whether the machine is fit to be measured on.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::arithmetic::Spread;
use crate::cpu;
use crate::error::Result;
use crate::machine::Ticks;
use crate::progress::Progress;

/// A machine is quiet while others use no more of its processors, 0 to 1.
pub(super) const QUIET: f64 = 0.03;
/// How long to look.
const LOOK: Duration = Duration::from_secs(1);
/// Work takes so many times as long on cores that are real ones, at the most.
const REAL: f64 = 1.15;
/// How long a comparison waits for real cores, all rounds together.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks meanwhile.
const PAUSE: Duration = Duration::from_secs(3);
/// Pieces of work, the fastest of which counts: nothing else can make it faster.
const PIECES: usize = 3;
/// Turns of a piece: some 20 ms.
const TURNS: u64 = 10_000_000;

/// Waits until nothing else uses the processors; says what part of them others had in
/// the last second.
pub(super) fn settle(most: Duration, progress: &Progress) -> Result<f64> {
    let patience = Instant::now() + most;
    loop {
        let before = Ticks::now();
        progress.sleep_until(Instant::now() + LOOK, "waiting for a quiet machine")?;
        let busy = Ticks::now().busy_since(before);
        if busy <= QUIET || Instant::now() >= patience {
            return Ok(busy);
        }
    }
}

/// Two virtual cores may be two real ones for some minutes and share one for others. What
/// is measured then is another machine, and no ratio of a run that saw both can be had again.
pub(super) struct Cores {
    several: bool,
    left: Duration,
    seen: Vec<f64>,
}

impl Cores {
    pub(super) fn new(count: usize) -> Self {
        Self {
            several: count > 1,
            left: PATIENCE,
            seen: Vec::new(),
        }
    }

    /// Before a round: waits for real cores while there is patience left.
    pub(super) fn wait(&mut self, progress: &Progress) -> Result<()> {
        while self.several {
            let slower = company();
            if slower <= REAL || self.left.is_zero() {
                self.seen.push(slower);
                return Ok(());
            }
            let pause = PAUSE.min(self.left);
            self.left = self.left.saturating_sub(pause);
            let what = "waiting while two virtual cores share a real one";
            progress.sleep_until(Instant::now() + pause, what)?;
        }
        Ok(())
    }

    /// How many times as long work took beside other work, over the rounds.
    pub(super) fn spread(&self) -> Option<Spread> {
        Spread::of(self.seen.iter().copied())
    }

    /// What takes belief away.
    pub(super) fn remark(&self) -> Option<String> {
        let shared = self.seen.iter().filter(|slower| **slower > REAL).count();
        (shared > 0).then(|| {
            format!(
                "Before {shared} of {} rounds the processors were not real ones: work on \
                 one took longer beside work on another. Look at the ranges.",
                self.seen.len()
            )
        })
    }
}

/// How many times as long a core takes for the same work while another works too.
fn company() -> f64 {
    let alone = fastest();
    let over = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        // Until the other one has begun.
        work();
        let beside = fastest();
        over.store(true, Ordering::Relaxed);
        beside
    });
    beside.as_secs_f64() / alone.as_secs_f64().max(1e-9)
}

fn fastest() -> Duration {
    let pieces = (0..PIECES).map(|_| work());
    pieces.min().unwrap_or_default()
}

/// The CPU time of a piece of work that keeps all of a core busy: sums that do not wait
/// for each other.
fn work() -> Duration {
    let begun = cpu::thread();
    let mut sums = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for turn in 0..TURNS {
        for sum in &mut sums {
            *sum = sum.wrapping_add(turn) ^ turn;
        }
        sums = black_box(sums);
    }
    cpu::thread().saturating_sub(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_beside_other_work_or_longer() {
        let slower = company();
        assert!((0.5..20.0).contains(&slower), "{slower}");
    }

    #[test]
    fn one_core_has_no_company() {
        let mut cores = Cores::new(1);
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!((cores.spread(), cores.remark()), (None, None));
    }

    #[test]
    fn without_patience_it_says_what_it_saw() {
        let cores = |seen: &[f64]| Cores {
            several: true,
            left: Duration::ZERO,
            seen: seen.to_vec(),
        };
        assert_eq!(cores(&[1.0, 1.1]).remark(), None);
        let shared = cores(&[1.0, 1.6, 1.4]);
        assert!(shared.remark().unwrap().starts_with("Before 2 of 3 rounds"));
        assert_eq!(shared.spread().unwrap().high, 1.6);
    }
}
