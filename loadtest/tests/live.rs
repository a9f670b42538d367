//! Short runs of all loads against a real Postgres: direct, through the baselines, and through the
//! sidecar. They test correctness, not speed.
//!
//! They need an installed Postgres. Without one they fail; nothing is skipped.
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
use loadtest::endpoint::{Endpoint, Login, Opening};
use loadtest::load::{bulk, connect, connection_storm, idle, query};
use loadtest::peers::postgres::{Postgres, SCALE};
use loadtest::peers::workspace::{Cores, Placement, Workspace};
use loadtest::peers::{self, Peer, PeerKind, SidecarMode};
use loadtest::progress::Progress;
use loadtest::report::Report;
use loadtest::script::QueryMode;
use loadtest::storm::{self, cpu_limit::CpuLimit};

const SECONDS: f64 = 0.3;
/// For loads of new connections, which may be slow on a busy machine.
const CONNECT_SECONDS: f64 = 1.0;
/// Serializes the tests, since each starts its own Postgres.
static SERIAL: Mutex<()> = Mutex::new(());

/// The directory of this test's programs. The sidecar belongs to another package, and is built if
/// it is missing.
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
        assert!(built.success(), "teesql-sidecar does not build");
    }
    folder.to_owned()
}

/// A running Postgres, and the workspace to start arms in front of it.
struct Fixture {
    postgres: Postgres,
    workspace: Workspace,
    _serial: std::sync::MutexGuard<'static, ()>,
}

impl Fixture {
    fn new() -> Self {
        let serial = SERIAL
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let cores = Cores::assign(Placement::Shared).unwrap();
        let workspace = Workspace::new(cores, Some(&programs())).unwrap();
        let postgres = Postgres::start(&workspace).unwrap();
        Self {
            postgres,
            workspace,
            _serial: serial,
        }
    }

    fn peer(&self, kind: PeerKind) -> Peer {
        peers::start(kind, &self.workspace, &self.postgres.upstream).unwrap()
    }

    fn attested(&self) -> Peer {
        peers::start_sidecar(
            &self.workspace,
            &self.postgres.upstream,
            SidecarMode::attested(),
        )
        .unwrap()
    }
}

fn query_load(peer: &Peer, clients: usize) -> query::QueryLoad {
    query::QueryLoad {
        scale: SCALE,
        pid: peer.pid(),
        ..query::QueryLoad::new(peer.endpoint.clone(), peer.login.clone(), clients, SECONDS)
    }
}

fn silent() -> Progress {
    Progress::silent()
}

#[test]
fn all_query_modes_work_with_all_arms() {
    let fixture = Fixture::new();
    for kind in [
        PeerKind::Direct,
        PeerKind::PlainRelay,
        PeerKind::MonoioBaseline,
        PeerKind::TokioBaseline,
        PeerKind::Sidecar,
        PeerKind::SidecarEpoll,
        PeerKind::SidecarUnix,
        PeerKind::SidecarNoPoll,
        PeerKind::SidecarPoll,
    ] {
        let peer = fixture.peer(kind);
        let modes = [
            QueryMode::Simple,
            QueryMode::Extended,
            QueryMode::Prepared,
            QueryMode::Pipelined(10),
        ];
        for mode in modes {
            let load = query::QueryLoad {
                mode,
                threads: 2,
                ..query_load(&peer, 4)
            };
            let outcome = load.run(&silent()).unwrap();
            assert!(outcome.queries > 0, "{kind} {mode:?}: {}", outcome.queries);
            let units = outcome.latencies[0].count();
            let depth = if matches!(mode, QueryMode::Pipelined(_)) {
                10
            } else {
                1
            };
            assert_eq!(outcome.queries, units * depth, "{kind} {mode:?}");
            assert_eq!(
                outcome.micros_per_query().is_some(),
                kind != PeerKind::Direct
            );
        }
    }
}

#[test]
fn tpcb_needs_write_privileges_and_the_pgbench_tables() {
    let fixture = Fixture::new();
    let direct = fixture.peer(PeerKind::Direct);
    let writer = Login::new("teesql_readwrite", "postgres", "");
    let tpcb = |login| query::QueryLoad {
        mode: QueryMode::TpcB,
        login,
        ..query_load(&direct, 2)
    };
    let outcome = tpcb(writer).run(&silent()).unwrap();
    assert_eq!(outcome.queries, outcome.latencies[0].count() * 7);
    // teesql_read must not write: the load reports the error and has no result.
    let refused = tpcb(direct.login.clone()).run(&silent()).unwrap_err();
    assert!(refused.to_string().contains("42501"), "{refused}");
    // If the tables are missing, the error says how to create them.
    let elsewhere = Login::new("postgres", "template1", "");
    let missing = query::QueryLoad {
        login: elsewhere,
        ..query_load(&direct, 1)
    };
    let missing = missing.run(&silent()).unwrap_err();
    assert!(missing.to_string().contains("pgbench -i -s"), "{missing}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_records_its_lateness() {
    let fixture = Fixture::new();
    let direct = fixture.peer(PeerKind::Direct);
    let outcome = query::QueryLoad {
        rate: Some(500.0),
        ..query_load(&direct, 4)
    }
    .run(&silent())
    .unwrap();
    // 150 transactions fall due in the window, and 100 before it. None of the 150 is lost, except
    // for up to four that are in progress at the end. Some of the 100 may complete within the
    // window.
    let due = outcome.queries + outcome.unstarted;
    assert!((146..=250).contains(&due), "{due}");
    assert!(outcome.lateness.count() > 0);
    // A rate that one connection cannot sustain: unstarted transactions are counted, with their
    // wait.
    let flooded = query::QueryLoad {
        rate: Some(200_000.0),
        ..query_load(&direct, 1)
    };
    let flooded = flooded.run(&silent()).unwrap();
    assert!(flooded.unstarted > 1_000, "{}", flooded.unstarted);
    let served = flooded.served(200_000.0);
    assert!(served < 0.9, "{served}");
    assert!(flooded.latencies[0].percentile(99.0) > 20_000.0);
}

#[test]
fn a_mixture_records_its_large_results_apart() {
    let fixture = Fixture::new();
    for kind in [PeerKind::Direct, PeerKind::Sidecar] {
        let peer = fixture.peer(kind);
        let load = query::QueryLoad {
            mode: QueryMode::Mixture,
            rate: Some(500.0),
            ..query_load(&peer, 20)
        };
        let outcome = load.run(&silent()).unwrap();
        let (short, large) = (outcome.latencies[0].count(), outcome.large.count());
        assert!(large > 0 && large < short, "{kind}: {large} and {short}");
        assert_eq!(outcome.queries + outcome.unstarted, short + large, "{kind}");
    }
}

#[test]
fn processes_move_between_placements() {
    let fixture = Fixture::new();
    let (cores, server) = (&fixture.workspace.cores, fixture.postgres.pid());
    let count = |process| {
        let process = nix::unistd::Pid::from_raw(process);
        let set = nix::sched::sched_getaffinity(process).unwrap();
        let is_set = |core: &usize| set.is_set(*core).unwrap();
        (0..nix::sched::CpuSet::count()).filter(is_set).count()
    };
    let server_id = i32::try_from(server).unwrap();
    let usable = cores.usable.len();
    cores.place(Placement::Apart, server).unwrap();
    let apart = usable.saturating_sub(1).max(1);
    assert_eq!((count(0), count(server_id)), (apart, apart));
    cores.place(Placement::Shared, server).unwrap();
    assert_eq!((count(0), count(server_id)), (usable, usable));
}

#[test]
fn the_baselines_accept_both_openings() {
    let fixture = Fixture::new();
    for kind in [PeerKind::MonoioBaseline, PeerKind::TokioBaseline] {
        let peer = fixture.peer(kind);
        for opening in [Opening::SslRequest, Opening::Direct] {
            let endpoint = Endpoint::loopback(peer.endpoint.address, opening, None).unwrap();
            let load = query::QueryLoad {
                endpoint,
                ..query_load(&peer, 2)
            };
            let outcome = load.run(&silent()).unwrap();
            assert!(outcome.queries > 0, "{kind} {opening}");
        }
    }
}

#[test]
fn copied_rows_are_identical_at_both_ends() {
    let fixture = Fixture::new();
    for kind in [
        PeerKind::Direct,
        PeerKind::MonoioBaseline,
        PeerKind::TokioBaseline,
        PeerKind::Sidecar,
    ] {
        let peer = fixture.peer(kind);
        for direction in [bulk::Direction::Out, bulk::Direction::In] {
            let load = bulk::CopyLoad {
                endpoint: peer.endpoint.clone(),
                login: peer.login.clone(),
                direction,
                // Not a multiple of the rows of a message or a write.
                rows: 5_003,
                check: true,
                pid: peer.pid(),
            };
            let outcome = load.run(&silent()).unwrap();
            assert_eq!(outcome.bytes, 5_003.0 * 1_024.0, "{kind} {direction:?}");
        }
    }
}

#[test]
fn new_connections_work_with_every_opening() {
    let fixture = Fixture::new();
    let peer = fixture.attested();
    let client = fixture.workspace.tdx.identity("client").unwrap();
    for opening in [Opening::SslRequest, Opening::Direct, Opening::Raw] {
        let endpoint = Endpoint::loopback(peer.endpoint.address, opening, Some(&client)).unwrap();
        for until in [connect::Until::Handshake, connect::Until::Login] {
            let login = fixture.workspace.secret_scram_login();
            let load =
                connect::ConnectLoad::new(endpoint.clone(), login, until, 2, CONNECT_SECONDS);
            let outcome = load.run(&silent()).unwrap();
            assert_eq!(
                outcome.failed, 0,
                "{opening} {until:?}: {:?}",
                outcome.reason
            );
            assert!(outcome.connections > 0, "{opening} {until:?}");
        }
    }
    // Direct to Postgres, with SCRAM by the load's own client.
    let direct = fixture.peer(PeerKind::Direct);
    let (endpoint, login) = (direct.endpoint.clone(), fixture.workspace.scram_login());
    let load =
        connect::ConnectLoad::new(endpoint, login, connect::Until::Login, 2, CONNECT_SECONDS);
    let outcome = load.run(&silent()).unwrap();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.reason);
    // A wrong secret is counted as a failure, and the error does not contain the secret.
    let wrong = Login::new("teesql_read", "postgres", &"ab".repeat(32));
    let until = connect::Until::Login;
    let load = connect::ConnectLoad::new(peer.endpoint.clone(), wrong, until, 1, CONNECT_SECONDS);
    let outcome = load.run(&silent()).unwrap();
    assert!(outcome.connections == 0 && outcome.failed > 0);
    assert!(!outcome.reason.unwrap().contains("abab"));
}

#[test]
fn a_storm_of_unknown_clients_is_admitted() {
    let fixture = Fixture::new();
    let peer = fixture.attested();
    let unknown_client = |number| {
        let identity = fixture
            .workspace
            .tdx
            .identity(&format!("unknown client {number}"))?;
        peer.endpoint.with_identity(&identity)
    };
    let load = connection_storm::ConnectionStorm {
        sessions: query_load(&peer, 2),
        unknown_clients: (0..50).map(unknown_client).collect::<Result<_>>().unwrap(),
        login: peer.login.clone(),
        before: Duration::from_millis(300),
        during: Duration::from_millis(700),
    };
    let outcome = load.run(&silent()).unwrap();
    assert_eq!(
        (outcome.admission.admitted, outcome.admission.refused),
        (50, 0)
    );
    let (before, during) = outcome.p99();
    assert!(before > 0.0 && during > 0.0, "{before} {during}");
    // Clients without a certificate are refused.
    let bare = Endpoint::loopback(peer.endpoint.address, Opening::Raw, None).unwrap();
    let admission = connection_storm::connect_all(&[bare.clone(), bare], &peer.login).unwrap();
    assert_eq!((admission.admitted, admission.refused), (0, 2));
}

/// The sidecar's CPU is limited, as if the machine were slow.
#[test]
fn a_storm_is_admitted_on_a_slow_machine() {
    let _serial = SERIAL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !CpuLimit::is_available() {
        println!("skipped: this process cannot create a cgroup with a CPU limit");
        return;
    }
    let options = storm::Options {
        clients: 200,
        platforms: 3,
        sessions: 2,
        cpu_share: Some(0.25),
        patience: None,
        before: Duration::from_millis(500),
        during: Duration::from_secs(2),
        programs: Some(programs()),
    };
    let report = storm::run(&options, &silent()).unwrap();
    let results = report.results();
    assert_eq!(results.admitted_after_ms.len(), options.clients, "{report}");
    assert!(
        results.refusals.is_empty() && results.unanswered.is_empty(),
        "{report}"
    );
    assert!(report.to_string().contains("the CPU limit"), "{report}");
}

#[test]
fn idle_connections_stay_open_and_are_counted() {
    let fixture = Fixture::new();
    let peer = fixture.peer(PeerKind::Sidecar);
    let load = idle::IdleLoad {
        endpoint: peer.endpoint.clone(),
        login: peer.login.clone(),
        steps: vec![10, 40],
        idle_time: Duration::from_millis(100),
        pid: peer.pid().unwrap(),
    };
    let outcome = load.run(&silent()).unwrap();
    let counts: Vec<_> = outcome
        .steps
        .iter()
        .map(|point| point.connections)
        .collect();
    assert_eq!(counts, [10, 40]);
    assert_eq!(outcome.after_idle.connections, 40);
    assert!(outcome.before.pss > 1_000.0 && outcome.after_idle.pss >= outcome.before.pss);
}

/// The whole comparison with minimal options.
#[test]
fn a_small_comparison_writes_a_report() {
    let serial = SERIAL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        rounds: 1,
        open_loops: vec![(8, 1)],
        seconds: 0.3,
        clients: vec![1, 16],
        bulk: 4,
        idle: 50,
        idle_time: Duration::ZERO,
        growth: 64,
        certificates: 3,
        arms: vec![PeerKind::Direct, PeerKind::TokioBaseline, PeerKind::Sidecar],
        // The storm has its own test, and its times cannot be shortened.
        parts: Part::ALL
            .into_iter()
            .filter(|part| *part != Part::Storm)
            .collect(),
        programs: Some(programs()),
        max_settle: Duration::ZERO,
        ..Options::quick()
    };
    let report = compare::run(&options, &silent()).unwrap();
    drop(serial);
    let cases: Vec<_> = report.cases.iter().map(|case| case.key.as_str()).collect();
    let expected = [
        "select-1",
        "select-16",
        "apart-16",
        "capacity-8",
        "open-8-30",
        "open-8-60",
        "open-8-80",
        "capacity-fake",
        "open-fake",
        "capacity-mixture",
        "mixture",
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
    assert!(report.targets.len() >= 25);
    let folder = tempfile::tempdir().unwrap();
    report.write(folder.path()).unwrap();
    assert_eq!(
        Report::read(&folder.path().join("report.json")).unwrap(),
        report
    );
}
