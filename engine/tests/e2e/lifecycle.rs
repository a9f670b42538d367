//! Tests of the sidecar's start, drain and exit, and of Postgres restarts during sessions.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::READ_SECRET;
use crate::harness::client::await_refused_connection;
use crate::harness::cluster::ClusterOptions;
use crate::harness::fixture::Fixture;
use crate::harness::message::query;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "lifecycle::logs_the_driver_and_the_record_layer",
        logs_the_driver_and_the_record_layer,
    );
    suite.add(
        "lifecycle::drain_lets_sessions_finish",
        drain_lets_sessions_finish,
    );
    suite.add(
        "lifecycle::drain_terminates_sessions_at_its_timeout",
        drain_timeout,
    );
    for (name, second) in [("sigterm", Signal::SIGTERM), ("sigint", Signal::SIGINT)] {
        suite.add(
            &format!("lifecycle::second_signal_{name}_ends_drain"),
            move |fixture| second_signal(fixture, second),
        );
    }
    suite.add(
        "lifecycle::exits_on_a_signal_without_sessions",
        exits_on_a_signal_without_sessions,
    );
    suite.add(
        "lifecycle::survives_postgres_restarts",
        survives_postgres_restarts,
    );
    suite.add(
        "lifecycle::unattested_clients_need_two_settings",
        unattested_clients_need_two_settings,
    );
    suite.add(
        "lifecycle::invalid_configuration_exits_64",
        invalid_configuration,
    );
}

fn logs_the_driver_and_the_record_layer(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    let driver = fixture.variant.driver.to_string();
    let layer = fixture.variant.record_layer.to_string();
    sidecar.await_log("the driver and the record layer in use", |line| {
        line["driver"] == driver.as_str() && line["tls_record_layer"] == layer.as_str()
    });
    let warning = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .is_some_and(|m| m.contains("attest"))
    };
    sidecar.await_log("a warning about unattested clients", warning);
}

fn drain_lets_sessions_finish(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "60s"));
    let mut working = fixture.session(&sidecar);
    let mut idle = fixture.session(&sidecar);
    working.send(&query("select pg_sleep(1), 'done'"));
    sidecar.signal(Signal::SIGTERM);
    await_refused_connection(sidecar.address());
    working.expect(b'T');
    assert_eq!(working.expect(b'D').columns()[1].as_deref(), Some("done"));
    working.expect(b'C');
    working.expect(b'Z');
    assert_eq!(idle.query_value("select 'still served'"), "still served");
    idle.terminate();
    assert!(
        sidecar.is_running(),
        "it exited before its last session ended"
    );
    working.terminate();
    assert_eq!(sidecar.await_exit().code(), Some(0));
}

fn drain_timeout(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "1s"));
    let mut idle = fixture.session(&sidecar);
    let mut working = fixture.session(&sidecar);
    working.send(&query("select pg_sleep(3600)"));
    let start = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    for client in [&mut idle, &mut working] {
        let error = client.expect_fatal();
        assert_eq!(error.code, "57P01", "{error}");
        assert_eq!(
            error.message,
            "terminating connection due to administrator command"
        );
        let after = start.elapsed();
        assert!(
            after >= Duration::from_millis(950),
            "already after {after:?}"
        );
    }
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    let line = sidecar.await_connection_end(idle.local_address());
    assert_eq!(line["reason"], "shutdown", "{line}");
}

fn second_signal(fixture: &Fixture, second: Signal) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "600s"));
    let mut session = fixture.session(&sidecar);
    sidecar.signal(Signal::SIGTERM);
    await_refused_connection(sidecar.address());
    assert_eq!(session.query_value("select 1"), "1");
    let start = Instant::now();
    sidecar.signal(second);
    session.expect_close();
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(128 + second as i32), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "only after {:?}",
        start.elapsed()
    );
}

fn exits_on_a_signal_without_sessions(fixture: &Fixture) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "600s"));
        fixture.session(&sidecar).terminate();
        sidecar.signal(signal);
        let status = sidecar.await_exit();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

fn survives_postgres_restarts(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let options = ClusterOptions {
            databases: vec!["via_scram"],
            ..ClusterOptions::default()
        };
        let cluster = fixture.harness.private_cluster(&server, &options);
        let sidecar = Sidecar::start(&fixture.settings_for(&cluster.address().to_string()));
        let mut session = fixture.session(&sidecar);
        let sockets = sidecar.settled_sockets();

        cluster.stop(Signal::SIGINT);
        let error = session.expect_fatal();
        assert_eq!(error.code, "57P01", "{error}");
        let mut client = fixture.client(sidecar.address());
        let error = client
            .login("teesql_read", "via_scram", READ_SECRET)
            .expect_err("Postgres is down");
        assert_eq!(error.code, "57P03", "{error}");

        cluster.start();
        let mut session = fixture.session(&sidecar);
        assert_eq!(session.query_value("select 'back'"), "back");
        // A crash sends no message, but the client sees the end.
        cluster.stop(Signal::SIGKILL);
        while session.read().is_ok() {}
        cluster.start();
        let mut session = fixture.session(&sidecar);
        assert_eq!(session.query_value("select 'back again'"), "back again");
        drop(client);
        sidecar.await_sockets(sockets);
    }
}

fn unattested_clients_need_two_settings(fixture: &Fixture) {
    let settings = fixture.settings();
    let sidecar = Sidecar::spawn(&settings.without("TEESQL_ALLOW_UNATTESTED_CLIENTS"));
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(64), "{status}");
    let log = sidecar.log_lines().join("\n");
    assert!(log.contains("confirm with"), "{log}");
}

fn invalid_configuration(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_LISTEN", "nowhere")
        .set("TEESQL_READ_SECRET", "5ead5ead")
        .set("TEESQL_SHARDS", "many")
        .set("TEESQL_DRIVER", "kqueue")
        .without("TEESQL_READWRITE_SECRET");
    let sidecar = Sidecar::spawn(&settings);
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(64), "{status}");
    let log = sidecar.log_lines().join("\n");
    for name in [
        "TEESQL_LISTEN",
        "TEESQL_READ_SECRET",
        "TEESQL_SHARDS",
        "TEESQL_DRIVER",
        "TEESQL_READWRITE_SECRET",
    ] {
        assert!(log.contains(name), "no error about {name}: {log}");
    }
    assert!(
        !log.contains("5ead5ead"),
        "a mistyped secret was printed: {log}"
    );
}
