//! Start, drain and end of the sidecar, and a Postgres that is restarted under it.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::READ_SECRET;
use crate::harness::client::Client;
use crate::harness::cluster::ClusterOptions;
use crate::harness::message::query;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("life::driver_is_logged", driver_is_logged);
    suite.add(
        "life::drain_lets_sessions_finish",
        drain_lets_sessions_finish,
    );
    suite.add("life::drain_ends_after_its_grace", drain_ends);
    for (name, second) in [("sigterm", Signal::SIGTERM), ("sigint", Signal::SIGINT)] {
        suite.add(&format!("life::second_{name}_is_now"), move |fixture| {
            second_signal(fixture, second)
        });
    }
    suite.add("life::sigterm_with_nobody_there", nobody_there);
    suite.add("life::postgres_is_restarted", postgres_is_restarted);
    suite.add(
        "life::unattested_clients_are_asked_for_twice",
        unattested_twice,
    );
    suite.add(
        "life::configuration_mistakes_exit_64",
        configuration_mistakes,
    );
}

fn enter(fixture: &Fixture, sidecar: &Sidecar) -> Client {
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
    client
}

fn driver_is_logged(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    let driver = fixture.driver.to_string();
    sidecar.await_log("the driver in use", |line| {
        line["driver"] == driver.as_str()
    });
    let warning = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"]
                .as_str()
                .is_some_and(|m| m.contains("attest"))
    };
    sidecar.await_log("a warning about unattested clients", warning);
}

/// The port takes nobody any more.
fn await_closed_door(sidecar: &Sidecar) {
    let closed = poll_until(TIMEOUT, || {
        TcpStream::connect(sidecar.address()).is_err().then_some(())
    });
    assert!(closed.is_some(), "still accepting while it drains");
}

fn drain_lets_sessions_finish(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "60s"));
    let mut working = enter(fixture, &sidecar);
    let mut idle = enter(fixture, &sidecar);
    working.send(&query("select pg_sleep(1), 'done'"));
    sidecar.signal(Signal::SIGTERM);
    await_closed_door(&sidecar);
    working.expect(b'T');
    assert_eq!(working.expect(b'D').columns()[1].as_deref(), Some("done"));
    working.expect(b'C');
    working.expect(b'Z');
    assert_eq!(idle.ask("select 'may still ask'"), "may still ask");
    idle.terminate();
    assert!(sidecar.is_running(), "it ended before its last session");
    working.terminate();
    assert_eq!(sidecar.await_exit().code(), Some(0));
}

fn drain_ends(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "1s"));
    let mut idle = enter(fixture, &sidecar);
    let mut working = enter(fixture, &sidecar);
    working.send(&query("select pg_sleep(3600)"));
    let begun = Instant::now();
    sidecar.signal(Signal::SIGTERM);
    for client in [&mut idle, &mut working] {
        let error = client.expect_fatal();
        assert_eq!(error.code, "57P01", "{error}");
        assert_eq!(
            error.message,
            "terminating connection due to administrator command"
        );
        let after = begun.elapsed();
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
    let mut session = enter(fixture, &sidecar);
    sidecar.signal(Signal::SIGTERM);
    await_closed_door(&sidecar);
    assert_eq!(session.ask("select 1"), "1");
    let begun = Instant::now();
    sidecar.signal(second);
    session.expect_close();
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(128 + second as i32), "{status}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "only after {:?}",
        begun.elapsed()
    );
}

fn nobody_there(fixture: &Fixture) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_DRAIN_TIMEOUT", "600s"));
        enter(fixture, &sidecar).terminate();
        sidecar.signal(signal);
        let status = sidecar.await_exit();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

fn postgres_is_restarted(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let options = ClusterOptions {
            databases: vec!["via_scram"],
            ..ClusterOptions::default()
        };
        let cluster = fixture.harness.private_cluster(&server, &options);
        let sidecar = Sidecar::start(&fixture.settings_for(&cluster.address().to_string()));
        let mut session = enter(fixture, &sidecar);
        let quiet = sidecar.sockets_at_rest();

        cluster.stop(Signal::SIGINT);
        let error = session.expect_fatal();
        assert_eq!(error.code, "57P01", "{error}");
        let mut client = fixture.client(sidecar.address());
        let error = client
            .login("teesql_read", "via_scram", READ_SECRET)
            .expect_err("it is down");
        assert_eq!(error.code, "57P03", "{error}");

        cluster.start();
        let mut session = enter(fixture, &sidecar);
        assert_eq!(session.ask("select 'back'"), "back");
        // A crash says nothing: the client sees the end all the same.
        cluster.stop(Signal::SIGKILL);
        while session.read().is_ok() {}
        cluster.start();
        let mut session = enter(fixture, &sidecar);
        assert_eq!(session.ask("select 'back again'"), "back again");
        drop(client);
        sidecar.await_sockets(quiet);
    }
}

fn unattested_twice(fixture: &Fixture) {
    let settings = fixture.settings();
    let sidecar = Sidecar::spawn(&settings.without("TEESQL_ALLOW_UNATTESTED_CLIENTS"));
    let status = sidecar.await_exit();
    assert_eq!(status.code(), Some(64), "{status}");
    let said = sidecar.log_lines().join("\n");
    assert!(said.contains("confirm with"), "{said}");
}

fn configuration_mistakes(fixture: &Fixture) {
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
    let said = sidecar.log_lines().join("\n");
    for name in [
        "TEESQL_LISTEN",
        "TEESQL_READ_SECRET",
        "TEESQL_SHARDS",
        "TEESQL_DRIVER",
        "TEESQL_READWRITE_SECRET",
    ] {
        assert!(said.contains(name), "{name} is not complained of: {said}");
    }
    assert!(
        !said.contains("5ead5ead"),
        "a mistyped secret was printed: {said}"
    );
}
