//! Tests of the database state that the superuser client reads.

use std::path::Path;

use engine::io::stream::PgAddress;
use engine::postgres::server::PostgresServer;
use engine::postgres::superuser::Superuser;
use engine::postgres::superuser::controldata::Source;
use engine::postgres::superuser::state::PostgresState;
use wire::scram::Password;

use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, block_on, run_successfully};
use crate::harness::suite::Suite;
use crate::harness::{PasswordEncryption, SUPERUSER_PASSWORD};

pub(crate) fn add(suite: &mut Suite) {
    if !suite.adds_driver_independent() {
        return;
    }
    suite.add(
        "postgres_state::control_data_from_program",
        control_data_from_program,
    );
    suite.add(
        "postgres_state::control_data_from_functions",
        control_data_from_functions,
    );
    suite.add(
        "postgres_state::standby_is_in_recovery",
        standby_is_in_recovery,
    );
    suite.add(
        "postgres_state::stopped_server_gives_errors_per_field",
        stopped_server,
    );
}

async fn session(cluster: &Cluster) -> Superuser {
    let server = PostgresServer::new(PgAddress::Tcp(cluster.address()));
    let password = Password::new(SUPERUSER_PASSWORD);
    let session = Superuser::connect(&server, Some(&password), "postgres").await;
    session.unwrap_or_else(|error| panic!("{error}"))
}

fn state(cluster: &Cluster, program: Option<&Path>) -> PostgresState {
    block_on(TIMEOUT, async {
        let session = session(cluster).await;
        let state = session.state(program).await;
        session.close().await;
        state
    })
}

/// The control data is the output of `pg_controldata`; `sha256sum` gives the same hash.
fn control_data_from_program(fixture: &Fixture) {
    let server = &fixture.harness.installed;
    let cluster = fixture.private_cluster(&ClusterOptions::default());
    let state = state(&cluster, None);
    let controldata = state.controldata.expect("control data");
    assert!(
        matches!(controldata.source, Source::Program),
        "{:?}",
        controldata.source
    );
    let mut program = std::process::Command::new("sh");
    program
        .args(["-c", "LC_ALL=C TZ=UTC \"$1\" -D \"$2\" | sha256sum", "sh"])
        .arg(server.bin.join("pg_controldata"))
        .arg(cluster.admin_sql("SHOW data_directory"));
    let hash = run_successfully(program, TIMEOUT);
    assert_eq!(
        hash.split_whitespace().next(),
        Some(controldata.hash.as_str())
    );
    assert_eq!(state.in_recovery.ok(), Some(false));
    assert_eq!(
        state.pg_version.ok(),
        Some(cluster.admin_sql("SHOW server_version"))
    );
    let lsn = state.wal_lsn.expect("an LSN");
    assert_eq!(
        cluster.admin_sql(&format!("SELECT '{lsn}'::pg_lsn <= pg_current_wal_lsn()")),
        "t"
    );
    assert_ne!(lsn, "0/0");
}

/// The control data comes from SQL functions if the program fails or has another version.
fn control_data_from_functions(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = fixture.harness.cluster(&server, PasswordEncryption::Scram);
        let controldata = state(cluster, Some(Path::new("/bin/true"))).controldata;
        let controldata = controldata.expect("control data");
        let Source::Functions { why } = &controldata.source else {
            panic!("/bin/true prints nothing");
        };
        assert_eq!(why.to_string(), "/bin/true: it prints no system identifier");
        let text = String::from_utf8(controldata.text).expect("UTF-8");
        let identifier = cluster.admin_sql("SELECT system_identifier FROM pg_control_system()");
        assert!(text.contains(&format!(
            "\npg_control_system.system_identifier={identifier}\n"
        )));
        assert!(
            text.starts_with("pg_control_checkpoint.checkpoint_lsn="),
            "{text}"
        );
        assert!(
            text.contains("\npg_control_init.max_data_alignment="),
            "{text}"
        );
        assert!(
            text.contains("\npg_control_recovery.min_recovery_end_lsn="),
            "{text}"
        );
        assert_eq!(controldata.hash.len(), 64);
    }
    if let Ok(postgres18) = &fixture.harness.postgres18 {
        let cluster = fixture
            .harness
            .cluster(postgres18, PasswordEncryption::Scram);
        let other = fixture.harness.installed.bin.join("pg_controldata");
        let controldata = state(cluster, Some(&other))
            .controldata
            .expect("control data");
        let Source::Functions { why } = controldata.source else {
            panic!("the output of another version was accepted");
        };
        assert!(
            why.to_string()
                .contains("it does not understand the control file"),
            "{why}"
        );
    }
}

fn standby_is_in_recovery(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let options = ClusterOptions {
            settings: vec!["wal_level=replica"],
            ..ClusterOptions::default()
        };
        let cluster = fixture.harness.private_cluster(&server, &options);
        cluster.restart_as_standby();
        let state = state(&cluster, None);
        assert_eq!(state.in_recovery.ok(), Some(true));
        let replayed = "SELECT coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())";
        assert_eq!(state.wal_lsn.ok(), Some(cluster.admin_sql(replayed)));
        assert!(state.controldata.is_ok());
    }
}

fn stopped_server(fixture: &Fixture) {
    let cluster = fixture.private_cluster(&ClusterOptions::default());
    let state = block_on(TIMEOUT, async {
        let session = session(&cluster).await;
        cluster.stop(nix::sys::signal::Signal::SIGQUIT);
        session.state(None).await
    });
    let wal_lsn = state.wal_lsn.expect_err("Postgres has stopped").to_string();
    assert!(!wal_lsn.is_empty());
    assert!(state.pg_version.is_err() && state.in_recovery.is_err());
    assert!(state.controldata.is_err());
}
