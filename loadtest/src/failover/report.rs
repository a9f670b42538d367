//! The results: median and worst outage, lost writes, and writes on two timelines at the same time.

use std::collections::HashSet;
use std::fmt;

use super::writer::{Ledger, Write};

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
    pub(super) backup: Option<f64>,
    acknowledged: usize,
    lost: usize,
    overlaps: usize,
}

impl Report {
    pub(super) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn check(&mut self, ledger: &Ledger, existing: &HashSet<i64>) {
        let writes = ledger.writes();
        self.acknowledged = writes.len();
        self.lost = writes
            .iter()
            .filter(|write| !existing.contains(&write.id))
            .count();
        self.overlaps = overlaps(&writes);
    }

    /// Whether no acknowledged write was lost, and no two members took writes at the same time.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let has_rounds = !self.failovers.is_empty() || !self.switchovers.is_empty();
        (self.acknowledged > 0 || !has_rounds) && self.lost == 0 && self.overlaps == 0
    }
}

/// The number of writes that an old leader took after a new one had acknowledged a write.
fn overlaps(writes: &[Write]) -> usize {
    let late = |write: &&Write| {
        let newer =
            |other: &Write| other.timeline > write.timeline && other.acknowledged < write.sent;
        writes.iter().any(newer)
    };
    writes.iter().filter(late).count()
}

/// The median and the worst of some values.
fn summary(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0,
        _ => *values.get(middle)?,
    };
    Some((median, *values.last()?))
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
            let values = |value: fn(&Outage) -> f64| summary(outages.iter().map(value).collect());
            if let (Some(command), Some(gap)) = (values(|o| o.from_command), values(|o| o.gap)) {
                writeln!(
                    f,
                    "{label}: {what}, {} rounds: median {:.2} s, worst {:.2} s; without writes: median {:.2} s, worst {:.2} s",
                    outages.len(),
                    command.0,
                    command.1,
                    gap.0,
                    gap.1
                )?;
            }
        }
        if let Some(percent) = self.idle_percent {
            writeln!(
                f,
                "{label}: CPU of all idle sidecars together: {percent:.2} % of a core"
            )?;
        }
        if let Some(rate) = self.backup {
            writeln!(f, "{label}: base backup by a standby: {rate:.0} MiB/s")?;
        }
        write!(
            f,
            "{label}: {} acknowledged writes, {} lost, {} on an old timeline after a new one",
            self.acknowledged, self.lost, self.overlaps
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn write(start: Instant, id: i64, timeline: u32, sent: u64) -> Write {
        let sent = start + Duration::from_millis(sent);
        Write {
            id,
            timeline,
            sent,
            acknowledged: sent + Duration::from_millis(5),
        }
    }

    #[test]
    fn median_and_worst() {
        assert_eq!(summary(vec![]), None);
        assert_eq!(summary(vec![3.0, 1.0, 2.0]), Some((2.0, 3.0)));
        assert_eq!(summary(vec![4.0, 1.0]), Some((2.5, 4.0)));
    }

    #[test]
    fn a_write_of_an_old_leader_after_one_of_the_new_is_an_overlap() {
        let start = Instant::now();
        let old_after_new = [
            write(start, 1, 1, 0),
            write(start, 2, 2, 10),
            write(start, 3, 1, 20),
        ];
        assert_eq!(overlaps(&old_after_new), 1);
        let acknowledged_late = [write(start, 1, 1, 12), write(start, 2, 2, 10)];
        assert_eq!(overlaps(&acknowledged_late), 0);
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
