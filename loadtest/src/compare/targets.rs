//! The targets, and what the measurements say of each.

use super::cases::IN_MEMORY;
use super::many::{ACTIVE, ATTESTED, growth_arm};
use crate::arithmetic::Spread;
use crate::peers::Kind;
use crate::report::{Bound, Case, Report, Target};

/// Fewer idle connections than these say nothing of the target.
const IDLE_LEAST: usize = 5_000;

pub(super) fn all(report: &Report) -> Vec<Target> {
    let mut targets = queries(report);
    targets.extend(copies(report));
    targets.extend(entries(report));
    targets.extend(verdicts(report));
    targets.extend(crowds(report));
    targets
}

fn target(what: &str, bound: Bound, measured: Option<Spread>, note: &str) -> Target {
    Target {
        what: what.to_owned(),
        bound,
        measured,
        note: note.to_owned(),
    }
}

fn queries(report: &Report) -> Vec<Target> {
    let cpu = |peer| over(report, "select-16", peer, "cpu");
    let unix = || {
        report
            .case("select-16")?
            .ratio("sidecar-unix", "twin", "cpu")
    };
    let added = |arm, column| added(report.case("select-1")?, arm, column);
    let note = "over direct, in units of what the twin adds in the median round; below zero: \
                faster than direct";
    vec![
        target(
            "CPU per query, 16 clients ÷ twin",
            Bound::Most(0.60),
            cpu("twin"),
            "",
        ),
        target(
            "CPU per query, 16 clients ÷ PgBouncer",
            Bound::Most(0.55),
            cpu("pgbouncer"),
            "",
        ),
        target(
            "the same with Postgres on its Unix socket ÷ twin",
            Bound::Most(0.60),
            unix(),
            "an operator's choice; the twin dials TCP",
        ),
        target(
            "added latency, 1 client, p50 ÷ twin's",
            Bound::Most(0.7),
            added("sidecar", "p50"),
            note,
        ),
        target(
            "added latency, 1 client, p99 ÷ twin's",
            Bound::Most(0.7),
            added("sidecar", "p99"),
            note,
        ),
    ]
}

fn copies(report: &Report) -> Vec<Target> {
    let both = |(key, what): (&str, &str)| {
        [
            target(
                &format!("{what}: CPU per GB ÷ twin"),
                Bound::Most(0.55),
                over(report, key, "twin", "cpu"),
                "",
            ),
            target(
                &format!("{what}: throughput ÷ direct"),
                Bound::Least(0.95),
                over(report, key, "direct", "rate"),
                "the proxy's core is shared with Postgres and the load unless kept apart",
            ),
        ]
    };
    let ways = [("copy-out", "COPY OUT"), ("copy-in", "COPY IN")];
    ways.into_iter().flat_map(both).collect()
}

/// Handshakes and logins.
fn entries(report: &Report) -> Vec<Target> {
    vec![
        target(
            "mutual handshakes per core ÷ rustls in memory",
            Bound::Least(0.75),
            over(report, "handshake", IN_MEMORY, "per-core"),
            "cached verdict",
        ),
        target(
            "mutual handshakes per core ÷ HAProxy",
            Bound::Least(1.5),
            over(report, "handshake", "haproxy", "per-core"),
            "HAProxy without its dial; it checks the chain each time, ours has the verdict cached",
        ),
        target(
            "logins a second, SCRAM to Postgres, ÷ direct",
            Bound::Least(0.95),
            over(report, "login", "direct", "rate"),
            "the direct client caches its SCRAM keys too",
        ),
    ]
}

fn verdicts(report: &Report) -> Vec<Target> {
    vec![
        target(
            "verdict from the cache, µs",
            Bound::Most(1.0),
            figures(report, "verdicts", "attest", "cached"),
            "",
        ),
        target(
            "first verification ÷ dcap-qvl",
            Bound::Most(1.2),
            first_verification(report),
            "of a thread that remembers nothing",
        ),
        target(
            "storm: sessions' p99 ÷ quiet",
            Bound::Most(2.0),
            stormy(report),
            "over the median quiet; an upper bound: the strangers' own CPU is in it",
        ),
        target(
            "storm: refused who should enter",
            Bound::Most(0.0),
            worst(report, "storm", "sidecar", "refused"),
            "in the worst round",
        ),
    ]
}

fn crowds(report: &Report) -> Vec<Target> {
    let (idle, idle_note) = idle(report);
    let (growth, growth_note) = growth(report);
    vec![
        target(
            "idle TLS connection, KB",
            Bound::Most(8.0),
            idle,
            &idle_note,
        ),
        target(
            "growth: CPU per query ÷ with 16 connections",
            Bound::Most(1.15),
            growth,
            &growth_note,
        ),
    ]
}

fn over(report: &Report, key: &str, peer: &str, column: &str) -> Option<Spread> {
    report.case(key)?.ratio("sidecar", peer, column)
}

fn figures(report: &Report, key: &str, arm: &str, column: &str) -> Option<Spread> {
    report.case(key)?.spread(arm, column)
}

/// The greatest of all rounds, for what must not happen in any.
fn worst(report: &Report, key: &str, arm: &str, column: &str) -> Option<Spread> {
    let worst = figures(report, key, arm, column)?.high;
    Spread::of([worst])
}

/// What ours adds to direct's latency, over what the twin adds.
///
/// A round's own ratio would mean nothing: in some the twin adds next to nothing,
/// or less. So all rounds are over the twin's median, and `None` where that is
/// not above direct.
fn added(case: &Case, arm: &str, column: &str) -> Option<Spread> {
    let direct = case.figures("direct", column);
    let over_direct = |arm: &str| {
        let figures = case.figures(arm, column).into_iter().zip(&direct);
        let added = figures.filter_map(|(figure, direct)| Some(figure? - (*direct)?));
        added.collect::<Vec<_>>()
    };
    let twin = Spread::of(over_direct("twin"))?.median;
    let ours = over_direct(arm).into_iter();
    (twin > 0.0)
        .then(|| Spread::of(ours.map(|added| added / twin)))
        .flatten()
}

/// The sessions' p99 while strangers came, over the one in the quiet.
///
/// The two are some seconds apart, so that a round's own ratio has the noise of both. All
/// rounds are over the quiet's median.
fn stormy(report: &Report) -> Option<Spread> {
    let quiet = figures(report, "storm", "sidecar", "quiet")?.median;
    let stormy = report.case("storm")?.figures("sidecar", "stormy");
    Spread::of(stormy.into_iter().flatten().map(|p99| p99 / quiet))
}

fn first_verification(report: &Report) -> Option<Spread> {
    let case = report.case("verdicts")?;
    let (first, bare) = (
        case.figures("attest", "first"),
        case.figures("attest", "bare"),
    );
    Spread::of(crate::arithmetic::ratios(&first, &bare))
}

/// Of attested clients, as they are in production.
fn idle(report: &Report) -> (Option<Spread>, String) {
    let Some(climb) = report.idle.iter().find(|climb| climb.arm == ATTESTED) else {
        return (None, String::new());
    };
    let (outcome, rested) = (&climb.outcome, climb.outcome.rested);
    if rested.connections < IDLE_LEAST {
        let note = format!("only {} connections: too few to judge", rested.connections);
        return (None, note);
    }
    let each = outcome.per_connection(rested);
    let note = format!(
        "{} attested connections, after a rest, PSS",
        rested.connections
    );
    (Spread::of([each]), note)
}

fn growth(report: &Report) -> (Option<Spread>, String) {
    let Some(case) = report.case("growth") else {
        return (None, String::new());
    };
    let few = growth_arm(Kind::Sidecar, ACTIVE);
    let prefix = format!("{}, ", Kind::Sidecar);
    let arms = case.arms.iter().map(|samples| &samples.arm);
    let many = arms
        .filter(|arm| arm.starts_with(&prefix))
        .find(|arm| **arm != few);
    let Some(many) = many else {
        return (None, String::new());
    };
    let connections = many.trim_start_matches(&prefix);
    let note = format!("{connections} connections, {ACTIVE} active, fake Postgres");
    (case.ratio(many, &few, "cpu"), note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, Sample, Samples, Verdict};

    fn case(direct: &[f64], twin: &[f64], sidecar: &[f64]) -> Case {
        let sample = |figure: &f64| {
            Some(Sample {
                figures: vec![Some(*figure)],
                latency: None,
            })
        };
        let arms = [("direct", direct), ("twin", twin), ("sidecar", sidecar)];
        Case {
            key: "select-1".to_owned(),
            title: String::new(),
            columns: vec![Column {
                key: "p50".to_owned(),
                title: String::new(),
            }],
            arms: arms
                .into_iter()
                .map(|(arm, figures)| Samples {
                    arm: arm.to_owned(),
                    rounds: figures.iter().map(sample).collect(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_round_in_which_the_twin_adds_nothing_counts_too() {
        let case = case(&[10.0, 10.0, 10.0], &[14.0, 9.0, 14.0], &[12.0, 18.0, 13.0]);
        let added = added(&case, "sidecar", "p50").unwrap();
        assert_eq!((added.low, added.median, added.high), (0.5, 0.75, 2.0));
    }

    #[test]
    fn one_round_that_refuses_strangers_is_one_too_many() {
        let verdict = |refused: [f64; 3]| {
            let mut storm = case(&[], &[], &refused);
            storm.key = "storm".to_owned();
            storm.columns[0].key = "refused".to_owned();
            let report = Report {
                cases: vec![storm],
                ..Report::default()
            };
            let mut targets = all(&report).into_iter();
            let target = targets.find(|target| target.what.contains("refused"));
            target.unwrap().verdict()
        };
        assert_eq!(verdict([0.0, 0.0, 0.0]), Verdict::Met);
        assert_eq!(verdict([0.0, 661.0, 0.0]), Verdict::Missed);
    }

    #[test]
    fn storms_are_over_the_quiet_of_all_rounds() {
        let mut storm = case(&[], &[], &[]);
        storm.key = "storm".to_owned();
        storm.columns = ["quiet", "stormy"]
            .map(|key| Column {
                key: key.to_owned(),
                title: String::new(),
            })
            .to_vec();
        let round = |quiet, stormy| {
            Some(Sample {
                figures: vec![Some(quiet), Some(stormy)],
                latency: None,
            })
        };
        storm.arms[2].rounds = vec![round(10.0, 30.0), round(20.0, 10.0), round(40.0, 40.0)];
        let report = Report {
            cases: vec![storm],
            ..Report::default()
        };
        let ratio = stormy(&report).unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 1.5, 2.0));
    }

    #[test]
    fn a_twin_that_adds_nothing_is_no_measure() {
        let case = case(&[10.0], &[10.0], &[12.0]);
        assert_eq!(added(&case, "sidecar", "p50"), None);
    }
}
