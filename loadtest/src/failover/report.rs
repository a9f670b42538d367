//! The results: median and worst outage, lost writes, and writes on two timelines at the same time.

use std::collections::BTreeSet;
use std::fmt;

use super::throughput::Throughput;
use super::writer::acknowledged;
use crate::consistency::checker::{self, Violation};
use crate::consistency::history::{History, Write};
use crate::stats::Spread;

/// How long writes stopped, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outage {
    /// From the kill, or the request of a switchover, to the first acknowledged write on the new timeline.
    pub(super) from_command: f64,
    /// From the last acknowledged write on the old timeline to that write.
    pub(super) gap: f64,
}

/// All results of one cluster.
#[derive(Clone, Debug, Default)]
pub struct Report {
    label: String,
    pub(super) failovers: Vec<Outage>,
    pub(super) switchovers: Vec<Outage>,
    pub(super) idle_percent: Option<f64>,
    pub(super) throughput: Option<Throughput>,
    acknowledged: usize,
    lost: usize,
    invented: usize,
    overlaps: usize,
}

impl Report {
    pub(super) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    /// Checks what was acknowledged against the rows that exist.
    pub(super) fn check(&mut self, writes: Vec<Write>, table: &BTreeSet<(u32, u64)>) {
        self.acknowledged = writes.iter().filter_map(acknowledged).count();
        let history = History {
            writes,
            ..History::default()
        };
        for violation in checker::check(&history, table, &[]) {
            match violation {
                Violation::TwoLeaders { .. } => self.overlaps += 1,
                Violation::Lost { .. } => self.lost += 1,
                // No writes are refused here, and there are no readers.
                _ => self.invented += 1,
            }
        }
    }

    /// Whether no acknowledged write was lost, and no two members took writes at the same time.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let has_rounds = !self.failovers.is_empty() || !self.switchovers.is_empty();
        (self.acknowledged > 0 || !has_rounds) && self.lost + self.invented + self.overlaps == 0
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s, without writes {:.2} s",
            self.from_command, self.gap
        )
    }
}

impl fmt::Display for Report {
    /// One line for each result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = &self.label;
        for (what, outages) in [
            ("failover", &self.failovers),
            ("switchover", &self.switchovers),
        ] {
            let spread = |value: fn(&Outage) -> f64| Spread::of(outages.iter().map(value));
            if let (Some(command), Some(gap)) = (spread(|o| o.from_command), spread(|o| o.gap)) {
                writeln!(
                    f,
                    "{label}: {what}, {} rounds: median {:.2} s, worst {:.2} s; without writes: median {:.2} s, worst {:.2} s",
                    outages.len(),
                    command.median,
                    command.high,
                    gap.median,
                    gap.high
                )?;
            }
        }
        if let Some(percent) = self.idle_percent {
            writeln!(
                f,
                "{label}: CPU of all idle sidecars together: {percent:.2} % of a core"
            )?;
        }
        if let Some(Throughput { backup, copy }) = self.throughput {
            writeln!(
                f,
                "{label}: base backup by a standby: {backup:.0} MiB/s, {:.2} of a client's COPY: {copy:.0} MiB/s",
                backup / copy
            )?;
        }
        write!(
            f,
            "{label}: {} acknowledged writes, {} lost, {} rows that were not written, {} on an old timeline after a new one",
            self.acknowledged, self.lost, self.invented, self.overlaps
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::consistency::history::Outcome;

    #[test]
    fn lost_writes_and_those_of_an_old_leader_are_counted() {
        let write = |number, timeline| Write {
            writer: 0,
            number,
            begun: Duration::from_secs(10 * number),
            outcome: Outcome::Acknowledged {
                at: Duration::from_secs(10 * number + 1),
                timeline,
            },
        };
        let mut report = Report::new("x");
        let table = [(0, 1), (0, 2)].into();
        report.check(vec![write(1, 1), write(2, 2), write(3, 1)], &table);
        assert_eq!(
            (report.acknowledged, report.lost, report.overlaps),
            (3, 1, 1)
        );
        assert!(!report.is_sound());
    }

    #[test]
    fn a_report_without_writes_is_not_sound() {
        let mut report = Report::new("x");
        report.failovers.push(Outage {
            from_command: 1.0,
            gap: 1.0,
        });
        assert!(!report.is_sound());
        report.acknowledged = 1;
        assert!(report.is_sound());
        report.lost = 1;
        assert!(!report.is_sound());
    }
}
