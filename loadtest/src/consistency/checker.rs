//! Checks a [`History`] against the promises of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::history::{Failure, History, Outcome};

/// SQLSTATEs by which a server, or the sidecar before it, says why it ends or refuses a session: all
/// of them ask the client to connect again.
///
/// 57P01 admin_shutdown, 57P02 crash_shutdown, 57P03 cannot_connect_now, 08006
/// connection_failure, 08001 sqlclient_unable_to_establish_sqlconnection, 53300
/// too_many_connections, 25006 read_only_sql_transaction (a leader that was demoted during the
/// statement), 57014 query_canceled, 40001 serialization_failure (a conflict with recovery).
/// [PostgreSQL, appendix A]
const REASONS: [&str; 9] = [
    "57P01", "57P02", "57P03", "08006", "08001", "53300", "25006", "57014", "40001",
];

/// Maximum number of examples of one violation in a report.
const MAX_EXAMPLES: usize = 5;

/// A promise that the history breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An acknowledged write is not in the table.
    Lost {
        /// Who wrote it.
        writer: u32,
        /// What.
        number: u64,
    },
    /// The table has a row that no writer wrote, or whose write was refused.
    Invented {
        /// The writer in the row.
        writer: u32,
        /// The number in the row.
        number: u64,
    },
    /// A write was accepted on an old timeline after another member had acknowledged one on a newer.
    TwoLeaders {
        /// Who wrote it.
        writer: u32,
        /// What.
        number: u64,
        /// The timeline that accepted it.
        timeline: u32,
        /// The newer timeline.
        newer: u32,
    },
    /// On one connection the highest number of a writer decreased.
    Backwards {
        /// The reader's connection.
        connection: u64,
        /// Whose numbers it read.
        writer: u32,
        /// What it had seen.
        from: u64,
        /// What it saw next.
        to: u64,
    },
    /// A client was refused without a reason that it knows.
    NoReason(Failure),
    /// A connection ended without a word although nothing was broken.
    Unexplained(Failure),
}

/// A time in which a fault was in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultWindow {
    /// The beginning, since the start of the run.
    pub from: Duration,
    /// The end, with the time that the cluster has to recover.
    pub until: Duration,
}

/// Checks `history`. `table` has the rows that are there in the end, as writer and number. Connections may end without
/// a word within `faults` only.
#[must_use]
pub fn check(
    history: &History,
    table: &BTreeSet<(u32, u64)>,
    faults: &[FaultWindow],
) -> Vec<Violation> {
    let mut violations = check_table(history, table);
    violations.extend(check_leaders(history));
    violations.extend(check_reads(history));
    violations.extend(check_failures(&history.failures, faults));
    violations
}

fn check_table(history: &History, table: &BTreeSet<(u32, u64)>) -> Vec<Violation> {
    let mut possible = BTreeSet::new();
    let mut violations = Vec::new();
    for write in &history.writes {
        let key = (write.writer, write.number);
        match write.outcome {
            Outcome::Refused => {}
            Outcome::Unknown => {
                possible.insert(key);
            }
            Outcome::Acknowledged { .. } => {
                possible.insert(key);
                if !table.contains(&key) {
                    let (writer, number) = key;
                    violations.push(Violation::Lost { writer, number });
                }
            }
        }
    }
    let invented = table.difference(&possible);
    violations.extend(invented.map(|(writer, number)| Violation::Invented {
        writer: *writer,
        number: *number,
    }));
    violations
}

/// Real time is compared as linearizability does: a write is on the wrong side only if it *began* after
/// the newer timeline's first acknowledgement had arrived.
fn check_leaders(history: &History) -> Vec<Violation> {
    let mut first: BTreeMap<u32, Duration> = BTreeMap::new();
    for write in &history.writes {
        if let Outcome::Acknowledged { at, timeline } = write.outcome {
            first
                .entry(timeline)
                .and_modify(|first| *first = at.min(*first))
                .or_insert(at);
        }
    }
    let newer_before = |timeline: u32, begun: Duration| {
        let newer = first.range(timeline.saturating_add(1)..);
        newer
            .filter(|(_, at)| **at < begun)
            .map(|(newer, _)| *newer)
            .next()
    };
    let violation = |write: &super::history::Write| {
        let Outcome::Acknowledged { timeline, .. } = write.outcome else {
            return None;
        };
        Some(Violation::TwoLeaders {
            writer: write.writer,
            number: write.number,
            timeline,
            newer: newer_before(timeline, write.begun)?,
        })
    };
    history.writes.iter().filter_map(violation).collect()
}

fn check_reads(history: &History) -> Vec<Violation> {
    let mut seen: BTreeMap<(u64, u32), u64> = BTreeMap::new();
    let mut violations = Vec::new();
    for read in &history.reads {
        let last = seen.entry((read.connection, read.writer)).or_default();
        if read.number < *last {
            violations.push(Violation::Backwards {
                connection: read.connection,
                writer: read.writer,
                from: *last,
                to: read.number,
            });
        }
        *last = read.number;
    }
    violations
}

fn check_failures(failures: &[Failure], faults: &[FaultWindow]) -> Vec<Violation> {
    let explained = |failure: &Failure| {
        let within = |fault: &FaultWindow| (fault.from..=fault.until).contains(&failure.at);
        faults.iter().any(within)
    };
    let violation = |failure: &Failure| match &failure.sqlstate {
        Some(sqlstate) if REASONS.contains(&sqlstate.as_str()) => None,
        Some(_) => Some(Violation::NoReason(failure.clone())),
        None if explained(failure) => None,
        None => Some(Violation::Unexplained(failure.clone())),
    };
    failures.iter().filter_map(violation).collect()
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { writer, number } => {
                write!(
                    f,
                    "lost: writer {writer}'s acknowledged {number} is not there"
                )
            }
            Self::Invented { writer, number } => {
                write!(
                    f,
                    "invented: writer {writer} never wrote {number}, or was refused"
                )
            }
            Self::TwoLeaders {
                writer,
                number,
                timeline,
                newer,
            } => write!(
                f,
                "two leaders: writer {writer}'s {number} was accepted on timeline {timeline} after one on {newer}"
            ),
            Self::Backwards {
                connection,
                writer,
                from,
                to,
            } => write!(
                f,
                "backwards: connection {connection} saw writer {writer} at {from} and then at {to}"
            ),
            Self::NoReason(failure) => write!(
                f,
                "no reason: at {:?} SQLSTATE {}: {}",
                failure.at,
                failure.sqlstate.as_deref().unwrap_or("none"),
                failure.text
            ),
            Self::Unexplained(failure) => {
                write!(f, "unexplained: at {:?}: {}", failure.at, failure.text)
            }
        }
    }
}

/// A report of `violations`: how many there are of each kind, with some examples.
#[must_use]
pub fn report(violations: &[Violation]) -> String {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for violation in violations {
        let text = violation.to_string();
        let kind = text.split(':').next().unwrap_or_default().to_owned();
        kinds.entry(kind).or_default().push(text);
    }
    let mut lines = Vec::new();
    for (kind, texts) in kinds {
        lines.push(format!("{} × {kind}", texts.len()));
        lines.extend(
            texts
                .into_iter()
                .take(MAX_EXAMPLES)
                .map(|text| format!("  {text}")),
        );
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::consistency::history::{Read, Write};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn acknowledged(writer: u32, number: u64, begun: u64, timeline: u32) -> Write {
        Write {
            writer,
            number,
            begun: at(begun),
            outcome: Outcome::Acknowledged {
                at: at(begun + 1),
                timeline,
            },
        }
    }

    fn check_writes(writes: Vec<Write>, table: &[(u32, u64)]) -> Vec<Violation> {
        let history = History {
            writes,
            ..History::default()
        };
        check(&history, &table.iter().copied().collect(), &[])
    }

    #[test]
    fn acknowledged_writes_are_in_the_table_and_no_others() {
        let unknown = Write {
            outcome: Outcome::Unknown,
            ..acknowledged(1, 2, 2, 1)
        };
        let refused = Write {
            outcome: Outcome::Refused,
            ..acknowledged(1, 3, 4, 1)
        };
        let writes = vec![acknowledged(1, 1, 0, 1), unknown, refused];
        assert_eq!(check_writes(writes.clone(), &[(1, 1)]), []);
        assert_eq!(check_writes(writes.clone(), &[(1, 1), (1, 2)]), []);
        let lost = Violation::Lost {
            writer: 1,
            number: 1,
        };
        assert_eq!(check_writes(writes.clone(), &[(1, 2)]), [lost]);
        let invented = Violation::Invented {
            writer: 1,
            number: 3,
        };
        assert_eq!(check_writes(writes, &[(1, 1), (1, 3)]), [invented]);
    }

    #[test]
    fn an_old_timeline_accepts_nothing_after_a_newer_one_has() {
        let table = [(1, 1), (2, 1), (2, 2)];
        let newer = acknowledged(1, 1, 10, 2);
        let concurrent = acknowledged(2, 1, 11, 1);
        assert_eq!(
            check_writes(vec![newer.clone(), concurrent.clone()], &table[..2]),
            []
        );
        let late = acknowledged(2, 2, 12, 1);
        let violation = Violation::TwoLeaders {
            writer: 2,
            number: 2,
            timeline: 1,
            newer: 2,
        };
        assert_eq!(
            check_writes(vec![newer, concurrent, late], &table),
            [violation]
        );
    }

    #[test]
    fn a_connection_never_reads_backwards() {
        let read = |connection, number| Read {
            connection,
            writer: 1,
            number,
            at: at(number),
        };
        let mut history = History {
            reads: vec![read(1, 1), read(1, 5), read(2, 4), read(2, 4)],
            ..History::default()
        };
        assert_eq!(check_reads(&history), []);
        history.reads.push(read(1, 4));
        let violation = Violation::Backwards {
            connection: 1,
            writer: 1,
            from: 5,
            to: 4,
        };
        assert_eq!(check_reads(&history), [violation]);
    }

    #[test]
    fn a_failure_has_a_reason_or_a_fault_that_explains_it() {
        let failure = |seconds, sqlstate: Option<&str>| Failure {
            at: at(seconds),
            sqlstate: sqlstate.map(str::to_owned),
            text: "failed".to_owned(),
        };
        let fault = FaultWindow {
            from: at(10),
            until: at(20),
        };
        let check = |failure| check_failures(&[failure], &[fault]);
        assert_eq!(check(failure(1, Some("57P03"))), []);
        assert_eq!(check(failure(15, None)), []);
        let wrong = failure(15, Some("XX000"));
        assert_eq!(check(wrong.clone()), [Violation::NoReason(wrong)]);
        let silent = failure(21, None);
        assert_eq!(check(silent.clone()), [Violation::Unexplained(silent)]);
    }

    proptest! {
        /// Whichever acknowledged write is missing, it is found, and nothing else is reported.
        #[test]
        fn finds_each_lost_write(count in 1_u64..50, lost in 0_u64..50) {
            let lost = lost % count + 1;
            let writes = (1..=count).map(|number| acknowledged(7, number, number, 1)).collect();
            let table: Vec<_> = (1..=count).filter(|number| *number != lost).map(|number| (7, number)).collect();
            prop_assert_eq!(check_writes(writes, &table), [Violation::Lost { writer: 7, number: lost }]);
        }
    }

    #[test]
    fn a_report_counts_each_kind() {
        let lost = |number| Violation::Lost { writer: 1, number };
        let violations: Vec<_> = (1..=7).map(lost).collect();
        let report = report(&violations);
        assert!(
            report.starts_with("7 × lost\n  lost: writer 1's acknowledged 1 "),
            "{report}"
        );
        assert_eq!(report.lines().count(), 1 + MAX_EXAMPLES);
    }
}
