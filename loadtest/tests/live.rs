//! The loads before a real Postgres, direct and through the twin and the
//! sidecar: short, and about being right, not about being fast.
//!
//! Needs a Postgres, which the machine then has to have: nothing is skipped.
// A test fails by panicking.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use loadtest::Result;
use loadtest::compare::{self, Options, Part};
use loadtest::endpoint::{Login, Opening, Target};
use loadtest::load::{bulk, connect, connection_storm, idle, query};
use loadtest::peers::postgres::{Postgres, SCALE};
use loadtest::peers::workspace::{Cores, House};
use loadtest::peers::{self, Kind, Mode as SidecarMode, Peer};
use loadtest::progress::Progress;
use loadtest::report::Report;
use loadtest::script::Mode;

const SECONDS: f64 = 0.3;
/// For new connections, of which each may take its time on a busy machine.
const LONGER: f64 = 1.0;
/// One at a time: each has a Postgres of its own.
static ONE: Mutex<()> = Mutex::new(());

/// Where cargo put this test's programs. The sidecar is another package's, and
/// built here if it is not there yet.
fn programs() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_teesql-loadtest"))
        .parent()
        .unwrap();
    if !folder.join("teesql-sidecar").is_file() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "engine", "--bin", "teesql-sidecar"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let built = build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "the sidecar does not build");
    }
    folder.to_owned()
}

/// A Postgres, and what stands before it.
struct Stage {
    postgres: Postgres,
    house: House,
    _one: std::sync::MutexGuard<'static, ()>,
}

impl Stage {
    fn new() -> Self {
        let one = ONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let cores = Cores::take(false).unwrap();
        let house = House::new(cores, Some(&programs())).unwrap();
        let postgres = Postgres::start(&house).unwrap();
        Self {
            postgres,
            house,
            _one: one,
        }
    }

    fn peer(&self, kind: Kind) -> Peer {
        peers::start(kind, &self.house, &self.postgres.upstream).unwrap()
    }

    fn attested(&self) -> Peer {
        peers::start_sidecar(
            &self.house,
            &self.postgres.upstream,
            SidecarMode::attested(),
        )
        .unwrap()
    }
}

fn plan(peer: &Peer, clients: usize) -> query::Plan {
    query::Plan {
        scale: SCALE,
        pid: peer.pid(),
        ..query::Plan::new(peer.target.clone(), peer.login.clone(), clients, SECONDS)
    }
}

fn silent() -> Progress {
    Progress::silent()
}

#[test]
fn every_kind_of_query_comes_back_from_every_arm() {
    let stage = Stage::new();
    for kind in [
        Kind::Direct,
        Kind::Relay,
        Kind::Twin,
        Kind::Sidecar,
        Kind::SidecarEpoll,
        Kind::SidecarUnix,
        Kind::SidecarNoPoll,
    ] {
        let peer = stage.peer(kind);
        let modes = [
            Mode::Simple,
            Mode::Extended,
            Mode::Prepared,
            Mode::Pipelined(10),
        ];
        for mode in modes {
            let plan = query::Plan {
                mode,
                threads: 2,
                ..plan(&peer, 4)
            };
            let outcome = plan.run(&silent()).unwrap();
            assert!(outcome.queries > 0, "{kind} {mode:?}: {}", outcome.queries);
            let units = outcome.latencies[0].count();
            let depth = if matches!(mode, Mode::Pipelined(_)) {
                10
            } else {
                1
            };
            assert_eq!(outcome.queries, units * depth, "{kind} {mode:?}");
            assert_eq!(outcome.micros_per_query().is_some(), kind != Kind::Direct);
        }
    }
}

#[test]
fn transactions_write_where_the_role_may_and_fail_where_not() {
    let stage = Stage::new();
    let direct = stage.peer(Kind::Direct);
    let writer = Login::new("teesql_readwrite", "postgres", "");
    let tpcb = |login| query::Plan {
        mode: Mode::TpcB,
        login,
        ..plan(&direct, 2)
    };
    let outcome = tpcb(writer).run(&silent()).unwrap();
    assert_eq!(outcome.queries, outcome.latencies[0].count() * 7);
    // teesql_read may not: a load that fails says so, and measures nothing.
    let refused = tpcb(direct.login.clone()).run(&silent()).unwrap_err();
    assert!(refused.to_string().contains("42501"), "{refused}");
    // Where there are no tables it says how they are made.
    let elsewhere = Login {
        database: "template1".to_owned(),
        ..direct.login.clone()
    };
    let missing = query::Plan {
        login: elsewhere,
        ..plan(&direct, 1)
    };
    let missing = missing.run(&silent()).unwrap_err();
    assert!(missing.to_string().contains("pgbench -i -s"), "{missing}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_tells_its_own_lateness() {
    let stage = Stage::new();
    let direct = stage.peer(Kind::Direct);
    let outcome = query::Plan {
        rate: Some(500.0),
        ..plan(&direct, 4)
    }
    .run(&silent())
    .unwrap();
    // 150 fall due in the window and 100 before it. Of the former none is lost but
    // the four that may be under way at its end; of the latter some may be late.
    let due = outcome.queries + outcome.unserved;
    assert!((146..=250).contains(&due), "{due}");
    assert!(outcome.lateness.count() > 0);
    // More than one connection can do: what is left over is counted, and waited.
    let flooded = query::Plan {
        rate: Some(200_000.0),
        ..plan(&direct, 1)
    };
    let flooded = flooded.run(&silent()).unwrap();
    assert!(flooded.unserved > 1_000, "{}", flooded.unserved);
    assert!(flooded.latencies[0].percentile(99.0) > 20_000.0);
}

#[test]
fn bulk_data_is_the_same_at_both_ends() {
    let stage = Stage::new();
    for kind in [Kind::Direct, Kind::Twin, Kind::Sidecar] {
        let peer = stage.peer(kind);
        for way in [bulk::Way::Out, bulk::Way::In] {
            let plan = bulk::Plan {
                target: peer.target.clone(),
                login: peer.login.clone(),
                way,
                // Not a whole number of messages or writes.
                rows: 5_003,
                check: true,
                pid: peer.pid(),
            };
            let outcome = plan.run(&silent()).unwrap();
            assert_eq!(outcome.bytes, 5_003.0 * 1_024.0, "{kind} {way:?}");
        }
    }
}

#[test]
fn newcomers_come_in_by_every_opening_with_every_certificate() {
    let stage = Stage::new();
    let peer = stage.attested();
    let client = stage.house.tdx.chain("client").unwrap();
    for opening in [Opening::SslRequest, Opening::Direct, Opening::Raw] {
        let target = Target::loopback(peer.target.address, opening, Some(&client)).unwrap();
        for until in [connect::Until::Handshake, connect::Until::Login] {
            let login = stage.house.secret_scram_login();
            let plan = connect::Plan::new(target.clone(), login, until, 2, LONGER);
            let outcome = plan.run(&silent()).unwrap();
            assert_eq!(
                outcome.failed, 0,
                "{opening} {until:?}: {:?}",
                outcome.reason
            );
            assert!(outcome.connections > 0, "{opening} {until:?}");
        }
    }
    // Direct to Postgres, whose SCRAM this side speaks too.
    let direct = stage.peer(Kind::Direct);
    let (target, login) = (direct.target.clone(), stage.house.scram_login());
    let plan = connect::Plan::new(target, login, connect::Until::Login, 2, LONGER);
    let outcome = plan.run(&silent()).unwrap();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.reason);
    // A wrong secret is a failure that is counted, and told without it.
    let wrong = Login::new("teesql_read", "postgres", &"ab".repeat(32));
    let until = connect::Until::Login;
    let plan = connect::Plan::new(peer.target.clone(), wrong, until, 1, LONGER);
    let outcome = plan.run(&silent()).unwrap();
    assert!(outcome.connections == 0 && outcome.failed > 0);
    assert!(!outcome.reason.unwrap().contains("abab"));
}

#[test]
fn a_crowd_of_strangers_is_let_in() {
    let stage = Stage::new();
    let peer = stage.attested();
    let stranger = |number| {
        let chain = stage.house.tdx.chain(&format!("stranger {number}"))?;
        peer.target.with_identity(&chain)
    };
    let plan = connection_storm::Plan {
        sessions: plan(&peer, 2),
        strangers: (0..50).map(stranger).collect::<Result<_>>().unwrap(),
        login: peer.login.clone(),
        quiet: Duration::from_millis(300),
        stormy: Duration::from_millis(700),
    };
    let outcome = plan.run(&silent()).unwrap();
    assert_eq!((outcome.flood.admitted, outcome.flood.refused), (50, 0));
    let (quiet, stormy) = outcome.p99();
    assert!(quiet > 0.0 && stormy > 0.0, "{quiet} {stormy}");
    // Without a certificate they are strangers indeed.
    let bare = Target::loopback(peer.target.address, Opening::Raw, None).unwrap();
    let flood = connection_storm::flood(&[bare.clone(), bare], &peer.login).unwrap();
    assert_eq!((flood.admitted, flood.refused), (0, 2));
}

#[test]
fn idle_connections_are_held_and_counted() {
    let stage = Stage::new();
    let peer = stage.peer(Kind::Sidecar);
    let plan = idle::Plan {
        target: peer.target.clone(),
        login: peer.login.clone(),
        steps: vec![10, 40],
        rest: Duration::from_millis(100),
        pid: peer.pid().unwrap(),
    };
    let outcome = plan.run(&silent()).unwrap();
    let counts: Vec<_> = outcome
        .climb
        .iter()
        .map(|point| point.connections)
        .collect();
    assert_eq!(counts, [10, 40]);
    assert_eq!(outcome.rested.connections, 40);
    assert!(outcome.before.pss > 1_000.0 && outcome.rested.pss >= outcome.before.pss);
}

/// The whole comparison, as small as it can be.
#[test]
fn a_small_comparison_makes_a_report() {
    let one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        rounds: 1,
        seconds: 0.5,
        clients: vec![1, 16],
        bulk: 4,
        idle: 50,
        growth: 64,
        certificates: 3,
        arms: vec![Kind::Direct, Kind::Twin, Kind::Sidecar],
        // The storm has a test of its own, and times that are not to be had shorter.
        parts: Part::ALL
            .into_iter()
            .filter(|part| *part != Part::Storm)
            .collect(),
        programs: Some(programs()),
        settle: Duration::ZERO,
        ..Options::quick()
    };
    let report = compare::run(&options, &silent()).unwrap();
    drop(one);
    let cases: Vec<_> = report.cases.iter().map(|case| case.key.as_str()).collect();
    let expected = [
        "select-1",
        "select-16",
        "copy-out",
        "copy-in",
        "handshake",
        "login",
        "growth",
        "verdicts",
    ];
    assert_eq!(cases, expected, "{:?}", report.remarks);
    for case in &report.cases {
        for samples in &case.arms {
            let all = samples.rounds.iter().all(Option::is_some);
            assert!(all, "{} {}: {:?}", case.key, samples.arm, report.remarks);
        }
    }
    assert!(report.targets.len() >= 15);
    let folder = tempfile::tempdir().unwrap();
    report.write(folder.path()).unwrap();
    assert_eq!(
        Report::read(&folder.path().join("report.json")).unwrap(),
        report
    );
}
