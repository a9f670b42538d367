//! The targets, and what the measurements say of each.

use super::cases::IN_MEMORY;
use super::many::{ACTIVE, ATTESTED, growth_arm};
use crate::arithmetic::Spread;
use crate::peers::Kind;
use crate::report::{Bound, Case, Report, Target};

/// Fewer idle connections than these say nothing of the target.
const IDLE_LEAST: usize = 5_000;

pub(super) fn all(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what: &str, bound: Bound, measured: Option<Spread>, note: &str| {
        targets.push(Target {
            what: what.to_owned(),
            bound,
            measured,
            note: note.to_owned(),
        });
    };
    let over =
        |key: &str, peer: &str, column: &str| report.case(key)?.ratio("sidecar", peer, column);
    let (most, least) = (Bound::Most, Bound::Least);

    add(
        "CPU per query, 16 clients ÷ twin",
        most(0.60),
        over("select-16", "twin", "cpu"),
        "",
    );
    add(
        "CPU per query, 16 clients ÷ PgBouncer",
        most(0.55),
        over("select-16", "pgbouncer", "cpu"),
        "",
    );
    for (column, what) in [
        ("p50", "added latency, 1 client, p50 ÷ twin's"),
        ("p99", "added latency, 1 client, p99 ÷ twin's"),
    ] {
        let measured = report.case("select-1").and_then(|case| added(case, column));
        add(
            what,
            most(0.7),
            measured,
            "over direct; rounds in which the twin added nothing are left out",
        );
    }
    for (key, what) in [("copy-out", "COPY OUT"), ("copy-in", "COPY IN")] {
        add(
            &format!("{what}: CPU per GB ÷ twin"),
            most(0.55),
            over(key, "twin", "cpu"),
            "",
        );
        add(
            &format!("{what}: throughput ÷ direct"),
            least(0.95),
            over(key, "direct", "rate"),
            "the proxy's core is shared with Postgres and the load unless kept apart",
        );
    }
    add(
        "mutual handshakes per core ÷ rustls in memory",
        least(0.75),
        over("handshake", IN_MEMORY, "per-core"),
        "cached verdict",
    );
    add(
        "mutual handshakes per core ÷ HAProxy",
        least(1.5),
        over("handshake", "haproxy", "per-core"),
        "HAProxy without its dial; it checks the chain each time, ours has the verdict cached",
    );
    add(
        "logins a second, SCRAM to Postgres, ÷ direct",
        least(0.95),
        over("login", "direct", "rate"),
        "the direct client caches its SCRAM keys too",
    );
    add(
        "verdict from the cache, µs",
        most(1.0),
        figures(report, "verdicts", "attest", "cached"),
        "",
    );
    add(
        "first verification ÷ dcap-qvl",
        most(1.2),
        first_verification(report),
        "of a thread that remembers nothing",
    );
    add(
        "storm: sessions' p99 ÷ quiet",
        most(2.0),
        figures(report, "storm", "sidecar", "ratio"),
        "an upper bound: the strangers' own CPU is in it",
    );
    add(
        "storm: refused who should enter",
        most(0.0),
        figures(report, "storm", "sidecar", "refused"),
        "",
    );
    let (idle, note) = idle(report);
    add("idle TLS connection, KB", most(8.0), idle, &note);
    let (growth, note) = growth(report);
    add(
        "growth: CPU per query ÷ with 16 connections",
        most(1.15),
        growth,
        &note,
    );
    targets
}

fn figures(report: &Report, key: &str, arm: &str, column: &str) -> Option<Spread> {
    report.case(key)?.spread(arm, column)
}

/// What ours adds to direct's latency, over what the twin adds.
fn added(case: &Case, column: &str) -> Option<Spread> {
    let direct = case.figures("direct", column);
    let (ours, twin) = (
        case.figures("sidecar", column),
        case.figures("twin", column),
    );
    let rounds = direct.iter().zip(&ours).zip(&twin);
    Spread::of(rounds.filter_map(|((direct, ours), twin)| {
        let (direct, ours, twin) = ((*direct)?, (*ours)?, (*twin)?);
        (twin > direct).then(|| (ours - direct) / (twin - direct))
    }))
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
