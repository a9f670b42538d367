//! The performance targets, and their evaluation on a report.

use super::cases::IN_MEMORY;
use super::open_loop::target_key;
use super::scalability::{ACTIVE, ATTESTED, growth_arm};
use crate::peers::PeerKind;
use crate::report::{Bound, Report, Target};
use crate::stats::{Spread, ratios};

/// Maximum share of the latency added by the tokio baseline that the sidecar may add.
const MAX_ADDED_SHARE: f64 = 0.7;
/// Minimum number of idle connections for evaluating the memory target.
const MIN_IDLE_CONNECTIONS: usize = 5_000;

pub(super) fn all(report: &Report) -> Vec<Target> {
    let mut targets = queries(report);
    targets.extend(dedicated_core(report));
    targets.extend(fixed_rates(report));
    targets.extend(copies(report));
    targets.extend(handshakes_and_logins(report));
    targets.extend(verdicts(report));
    targets.extend(scalability(report));
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
    let cpu = |peer| ratio_to(report, "select-16", peer, "cpu");
    let unix = || {
        report
            .case("select-16")?
            .ratio("sidecar-unix", "tokio-baseline", "cpu")
    };
    let (p50, p50_note) = latency(report, "p50");
    let (p99, p99_note) = latency(report, "p99");
    vec![
        target(
            "CPU per query, 16 clients ÷ tokio baseline",
            Bound::AtMost(0.80),
            cpu("tokio-baseline"),
            "",
        ),
        target(
            "CPU per query, 16 clients ÷ PgBouncer",
            Bound::AtMost(0.70),
            cpu("pgbouncer"),
            "",
        ),
        target(
            "CPU per query, 16 clients ÷ relay without TLS",
            Bound::AtMost(1.05),
            cpu("plain-relay"),
            "",
        ),
        target(
            "CPU per query, 16 clients, Postgres on its Unix socket ÷ tokio baseline",
            Bound::AtMost(0.70),
            unix(),
            "only the sidecar uses the Unix socket; the tokio baseline uses TCP",
        ),
        target(
            "latency, 1 client, p50 ÷ its bound",
            Bound::AtMost(1.0),
            p50,
            &p50_note,
        ),
        target(
            "latency, 1 client, p99 ÷ its bound",
            Bound::AtMost(1.0),
            p99,
            &p99_note,
        ),
    ]
}

/// CPU per query with Postgres and the load off the proxy's core.
fn dedicated_core(report: &Report) -> Vec<Target> {
    let number = |clients: u32| {
        let key = format!("apart-{clients}");
        [
            ("tokio baseline", "tokio-baseline", 0.90),
            ("PgBouncer", "pgbouncer", 0.85),
        ]
        .map(|(name, peer, most)| {
            target(
                &format!("CPU per query, dedicated core, {clients} clients ÷ {name}"),
                Bound::AtMost(most),
                ratio_to(report, &key, peer, "cpu"),
                "",
            )
        })
    };
    [4, 16, 64].into_iter().flat_map(number).collect()
}

/// Latencies at fixed rates, where neither arm may be saturated.
fn fixed_rates(report: &Report) -> Vec<Target> {
    let (open, open_note) = at_rate(report, "sidecar", &target_key(), "p99");
    let (polling, polling_note) = at_rate(report, "sidecar-poll", &target_key(), "p99");
    let (mixture, mixture_note) = at_rate(report, "sidecar", "mixture", "p99.9");
    vec![
        target(
            "open loop at 60 % of direct, dedicated core, 64 clients: p99 ÷ tokio baseline",
            Bound::AtMost(0.80),
            open,
            &open_note,
        ),
        target(
            "open loop at 60 % of direct, dedicated core, 64 clients, busy_poll = 50us: p99 ÷ tokio baseline",
            Bound::AtMost(0.80),
            polling,
            &polling_note,
        ),
        target(
            "5 % results of 1 MB: p99.9 of the short queries ÷ tokio baseline",
            Bound::AtMost(0.50),
            mixture,
            &mixture_note,
        ),
    ]
}

/// The ratio of `arm` to the tokio baseline over the rounds in which neither was saturated, unless these are
/// fewer than half: the others would have been the slow ones.
fn at_rate(report: &Report, arm: &str, key: &str, column: &str) -> (Option<Spread>, String) {
    const BASELINE: &str = "tokio-baseline";
    let Some(case) = report.case(key) else {
        return (None, String::new());
    };
    let (ours, theirs) = (case.figures(arm, column), case.figures(BASELINE, column));
    let ratios = ratios(&ours, &theirs);
    let saturated = [(arm, &ours), (BASELINE, &theirs)].into_iter();
    let saturated = saturated.filter(|(_, figures)| figures.iter().any(Option::is_none));
    let saturated: Vec<_> = saturated.map(|(arm, _)| arm).collect();
    let note = match saturated.is_empty() {
        true => String::new(),
        false => format!("saturated in some rounds: {}", saturated.join(", ")),
    };
    let enough = ratios.len() * 2 >= ours.len();
    (Spread::of(ratios).filter(|_| enough), note)
}

fn copies(report: &Report) -> Vec<Target> {
    let both = |(key, what): (&str, &str)| {
        [
            target(
                &format!("{what}: CPU per GB ÷ tokio baseline"),
                Bound::AtMost(0.55),
                ratio_to(report, key, "tokio-baseline", "cpu"),
                "",
            ),
            target(
                &format!("{what}: throughput ÷ direct"),
                Bound::AtLeast(0.95),
                ratio_to(report, key, "direct", "rate"),
                "the proxy shares its core with Postgres and the load, except with --apart",
            ),
        ]
    };
    let directions = [("copy-out", "COPY OUT"), ("copy-in", "COPY IN")];
    let unix = report.case("copy-out");
    let unix = unix.and_then(|case| case.ratio("sidecar-unix", "sidecar", "cpu"));
    let mut targets: Vec<_> = directions.into_iter().flat_map(both).collect();
    targets.push(target(
        "COPY OUT: CPU per GB, Postgres on its Unix socket ÷ over TCP",
        Bound::AtMost(1.1),
        unix,
        "both are the sidecar",
    ));
    targets.push(target(
        "COPY IN: CPU per GB ÷ relay without TLS",
        Bound::AtMost(1.15),
        ratio_to(report, "copy-in", "plain-relay", "cpu"),
        "",
    ));
    targets
}

/// Targets for handshakes and logins.
fn handshakes_and_logins(report: &Report) -> Vec<Target> {
    // Postgres and both ends of a direct login use two cores up: what the sidecar takes is missing there.
    let least = if report.machine.cores > 2 { 0.95 } else { 0.80 };
    vec![
        target(
            "mutual handshakes per core ÷ rustls in memory",
            Bound::AtLeast(0.75),
            ratio_to(report, "handshake", IN_MEMORY, "per-core"),
            "cached verdict",
        ),
        target(
            "mutual handshakes per core ÷ HAProxy",
            Bound::AtLeast(1.5),
            ratio_to(report, "handshake", "haproxy", "per-core"),
            "HAProxy without its connection to Postgres; it verifies the chain each time, the sidecar has the verdict cached",
        ),
        target(
            "logins per second, SCRAM on both sides, ÷ direct",
            Bound::AtLeast(least),
            ratio_to(report, "login", "direct", "rate"),
            "the direct client caches its SCRAM keys as well; 0.95 with more than two cores, else 0.80",
        ),
    ]
}

fn verdicts(report: &Report) -> Vec<Target> {
    vec![
        target(
            "time of a verdict from the cache, µs",
            Bound::AtMost(1.0),
            figures(report, "verdicts", "attest", "cached"),
            "",
        ),
        target(
            "time of a first verification ÷ dcap-qvl",
            Bound::AtMost(1.2),
            first_verification(report),
            "on a thread without cached signatures",
        ),
        target(
            "connection storm: p99 of the sessions ÷ p99 before",
            Bound::AtMost(2.0),
            storm_p99(report),
            "relative to the median before all storms; an upper bound, since it includes the clients' own CPU use",
        ),
        target(
            "connection storm: valid clients refused",
            Bound::AtMost(0.0),
            worst(report, "storm", "sidecar", "refused"),
            "in the worst round",
        ),
    ]
}

fn scalability(report: &Report) -> Vec<Target> {
    let (idle, idle_note) = idle(report);
    let (growth, growth_note) = growth(report);
    vec![
        target(
            "memory of an idle TLS connection, KB",
            Bound::AtMost(7.0),
            idle,
            &idle_note,
        ),
        target(
            "CPU per query, 16 clients and many idle connections ÷ without the idle ones",
            Bound::AtMost(1.15),
            growth,
            &growth_note,
        ),
    ]
}

fn ratio_to(report: &Report, key: &str, peer: &str, column: &str) -> Option<Spread> {
    report.case(key)?.ratio("sidecar", peer, column)
}

fn figures(report: &Report, key: &str, arm: &str, column: &str) -> Option<Spread> {
    report.case(key)?.spread(arm, column)
}

/// The maximum over all rounds, for what must not happen in any of them.
fn worst(report: &Report, key: &str, arm: &str, column: &str) -> Option<Spread> {
    let worst = figures(report, key, arm, column)?.high;
    Spread::of([worst])
}

/// The latency of one client, divided by its bound: direct's latency and [`MAX_ADDED_SHARE`] of
/// what the tokio baseline adds to it.
///
/// The quotient of the two added latencies would have the same bound, but is one of small
/// differences: two runs whose latencies agreed to 2 % had quotients of -0.59 and -0.48. It is
/// given in the note.
fn latency(report: &Report, column: &str) -> (Option<Spread>, String) {
    let Some(case) = report.case("select-1") else {
        return (None, String::new());
    };
    let figures = |arm| case.figures(arm, column);
    let (direct, baseline, ours) = (
        figures("direct"),
        figures("tokio-baseline"),
        figures("sidecar"),
    );
    let bounds = direct.iter().zip(&baseline).map(|(direct, baseline)| {
        let (direct, baseline) = ((*direct)?, (*baseline)?);
        Some(direct + MAX_ADDED_SHARE * (baseline - direct))
    });
    let bounds: Vec<_> = bounds.collect();
    let measured = Spread::of(ratios(&ours, &bounds));
    let note = added(&ours, &direct)
        .zip(added(&baseline, &direct))
        .filter(|(_, baseline)| *baseline > 0.0)
        .map(|(ours, baseline)| {
            let share = ours / baseline;
            let faster = if share < 0.0 { ": faster than direct" } else { "" };
            format!("bound: direct plus 0.7 of what the tokio baseline adds; the sidecar adds {share:.2} of that{faster}")
        });
    (measured, note.unwrap_or_default())
}

/// The median over the rounds of `figures` minus `direct`.
fn added(figures: &[Option<f64>], direct: &[Option<f64>]) -> Option<f64> {
    let pairs = figures.iter().zip(direct);
    let added = pairs.filter_map(|(value, direct)| Some((*value)? - (*direct)?));
    Some(Spread::of(added)?.median)
}

/// The sessions' p99 during storms, divided by their p99 before.
///
/// The two are some seconds apart, so that a ratio within one round would have the noise of both.
/// All rounds are therefore divided by the median before.
fn storm_p99(report: &Report) -> Option<Spread> {
    let before = figures(report, "storm", "sidecar", "p99-before")?.median;
    let during = report.case("storm")?.figures("sidecar", "p99-during");
    Spread::of(during.into_iter().flatten().map(|p99| p99 / before))
}

fn first_verification(report: &Report) -> Option<Spread> {
    let case = report.case("verdicts")?;
    let (first, dcap_qvl) = (
        case.figures("attest", "first"),
        case.figures("attest", "dcap-qvl"),
    );
    Spread::of(ratios(&first, &dcap_qvl))
}

/// Memory of idle attested connections, the case of production.
fn idle(report: &Report) -> (Option<Spread>, String) {
    let Some(idle_memory) = report
        .idle
        .iter()
        .find(|idle_memory| idle_memory.arm == ATTESTED)
    else {
        return (None, String::new());
    };
    let (outcome, after_idle) = (&idle_memory.outcome, idle_memory.outcome.after_idle);
    if after_idle.connections < MIN_IDLE_CONNECTIONS {
        let note = format!(
            "only {} connections: too few to evaluate",
            after_idle.connections
        );
        return (None, note);
    }
    let each = outcome.per_connection(after_idle);
    let note = format!(
        "{} attested connections, after the idle time, PSS",
        after_idle.connections
    );
    (Spread::of([each]), note)
}

fn growth(report: &Report) -> (Option<Spread>, String) {
    let Some(case) = report.case("growth") else {
        return (None, String::new());
    };
    let few = growth_arm(PeerKind::Sidecar, ACTIVE);
    let prefix = format!("{}, ", PeerKind::Sidecar);
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
    use crate::report::{Case, Column, Sample, Samples, Verdict};

    fn case(direct: &[f64], baseline: &[f64], sidecar: &[f64]) -> Case {
        let sample = |value: &f64| {
            Some(Sample {
                figures: vec![Some(*value)],
                latency: None,
            })
        };
        let arms = [
            ("direct", direct),
            ("tokio-baseline", baseline),
            ("sidecar", sidecar),
        ];
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
    fn latency_is_divided_by_its_bound() {
        let evaluate = |direct: &[f64], baseline: &[f64], ours: &[f64]| {
            let report = Report {
                cases: vec![case(direct, baseline, ours)],
                ..Report::default()
            };
            let (measured, note) = latency(&report, "p50");
            (measured.unwrap(), note)
        };
        // The sidecar adds 7; the baseline adds 10, 20 and 0.
        let (measured, note) = evaluate(&[10.0; 3], &[20.0, 30.0, 10.0], &[17.0; 3]);
        let near = |one: f64, other: f64| (one - other).abs() < 1e-9;
        assert!(near(measured.median, 1.0), "{measured:?}");
        assert!(near(measured.low, 17.0 / 24.0), "{measured:?}");
        assert!(near(measured.high, 1.7), "{measured:?}");
        assert!(note.ends_with("adds 0.70 of that"), "{note}");

        let (measured, note) = evaluate(&[10.0], &[20.0], &[5.0]);
        assert!(near(measured.median, 5.0 / 17.0), "{measured:?}");
        assert!(
            note.ends_with("-0.50 of that: faster than direct"),
            "{note}"
        );
        // There is no share of an addition of 0.
        assert_eq!(evaluate(&[10.0], &[10.0], &[12.0]).1, "");
    }

    #[test]
    fn a_target_at_a_fixed_rate_needs_rounds_without_saturation() {
        let evaluate = |baseline: &[Option<f64>]| {
            let mut mixture = case(&[], &[], &[5.0; 3]);
            mixture.key = "mixture".to_owned();
            mixture.columns[0].key = "p99.9".to_owned();
            let sample = |value: &Option<f64>| {
                Some(Sample {
                    figures: vec![*value],
                    latency: None,
                })
            };
            mixture.arms[1].rounds = baseline.iter().map(sample).collect();
            let report = Report {
                cases: vec![mixture],
                ..Report::default()
            };
            let (measured, note) = at_rate(&report, "sidecar", "mixture", "p99.9");
            (measured.map(|ratio| ratio.median), note)
        };
        let note = "saturated in some rounds: tokio-baseline".to_owned();
        assert_eq!(evaluate(&[Some(10.0); 3]), (Some(0.5), String::new()));
        let once = evaluate(&[Some(10.0), None, Some(10.0)]);
        assert_eq!(once, (Some(0.5), note.clone()));
        assert_eq!(evaluate(&[None, None, Some(10.0)]), (None, note));
    }

    #[test]
    fn a_refusal_in_one_round_misses_the_target() {
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
    fn storm_p99_is_divided_by_the_median_p99_before() {
        let mut storm = case(&[], &[], &[]);
        storm.key = "storm".to_owned();
        storm.columns = ["p99-before", "p99-during"]
            .map(|key| Column {
                key: key.to_owned(),
                title: String::new(),
            })
            .to_vec();
        let round = |before, during| {
            Some(Sample {
                figures: vec![Some(before), Some(during)],
                latency: None,
            })
        };
        storm.arms[2].rounds = vec![round(10.0, 30.0), round(20.0, 10.0), round(40.0, 40.0)];
        let report = Report {
            cases: vec![storm],
            ..Report::default()
        };
        let ratio = storm_p99(&report).unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 1.5, 2.0));
    }
}
