//! Whether the machine is fit to be measured on.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::threads::{beside, on_core};
use crate::error::Result;
use crate::machine::Ticks;
use crate::peers::workspace;
use crate::process_usage;
use crate::progress::Progress;
use crate::stats::Spread;

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
/// Pieces of the other core's, which is not to be done before.
const LONGER: usize = 2 * PIECES + 2;
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
    /// The proxies' and another one; `None` where there is only one.
    pair: Option<[String; 2]>,
    left: Duration,
    seen: Vec<f64>,
}

impl Cores {
    pub(super) fn new(cores: &workspace::Cores) -> Self {
        let mut others = cores.others.split(',');
        let other = others.find(|core| *core != cores.proxy);
        Self {
            pair: other.map(|other| [cores.proxy.clone(), other.to_owned()]),
            left: PATIENCE,
            seen: Vec::new(),
        }
    }

    /// Before a round: waits for real cores while there is patience left.
    pub(super) fn wait(&mut self, progress: &Progress) -> Result<()> {
        while let Some(pair) = &self.pair {
            let slower = company(pair)?;
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

/// How many times as long one core takes for the same work while the other works too.
fn company([one, other]: &[String; 2]) -> Result<f64> {
    let alone = on_core(one, || Ok(fastest()))?;
    let beside = beside(
        1,
        || on_core(other, || Ok((0..LONGER).map(|_| work()).sum())),
        || {
            on_core(one, || {
                // Until the other one has begun.
                work();
                Ok(fastest())
            })
        },
    )?;
    Ok(beside.as_secs_f64() / alone.as_secs_f64().max(1e-9))
}

fn fastest() -> Duration {
    let pieces = (0..PIECES).map(|_| work());
    pieces.min().unwrap_or_default()
}

/// The CPU time of a piece of work that keeps all of a core busy: sums that do not wait
/// for each other.
fn work() -> Duration {
    let begun = process_usage::thread();
    let mut sums = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for turn in 0..TURNS {
        for sum in &mut sums {
            *sum = sum.wrapping_add(turn) ^ turn;
        }
        sums = black_box(sums);
    }
    process_usage::thread().saturating_sub(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_beside_other_work_or_longer() {
        let mut cores = Cores::new(&workspace::Cores::take(false).unwrap());
        cores.left = Duration::ZERO;
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!(cores.seen.len(), usize::from(cores.pair.is_some()));
        assert!(cores.seen.iter().all(|slower| (0.5..20.0).contains(slower)));
    }

    #[test]
    fn one_core_has_no_company() {
        let mut cores = Cores::new(&workspace::Cores {
            proxy: "3".to_owned(),
            others: "3".to_owned(),
            count: 1,
        });
        cores.wait(&Progress::silent()).unwrap();
        assert_eq!((cores.spread(), cores.remark()), (None, None));
    }

    #[test]
    fn without_patience_it_says_what_it_saw() {
        let cores = |seen: &[f64]| Cores {
            pair: None,
            left: Duration::ZERO,
            seen: seen.to_vec(),
        };
        assert_eq!(cores(&[1.0, 1.1]).remark(), None);
        let shared = cores(&[1.0, 1.6, 1.4]);
        assert!(shared.remark().unwrap().starts_with("Before 2 of 3 rounds"));
        assert_eq!(shared.spread().unwrap().high, 1.6);
    }
}
