//! Tests of the limits on connections and idle time, and of leaked sockets.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::{Client, TcpClient};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, startup};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("limits::refuses_more_than_max_connections", max_connections);
    suite.add("limits::idle_sessions_end", idle_sessions_end);
    suite.add(
        "limits::waiting_session_is_not_idle",
        waiting_session_is_not_idle,
    );
    suite.add(
        "limits::serves_300_concurrent_sessions",
        three_hundred_sessions,
    );
    suite.add("limits::closes_all_sockets", closes_all_sockets);
}

fn max_connections(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_MAX_CONNECTIONS", "5"));
    let mut sessions: Vec<Client> = (0..5).map(|_| fixture.session(&sidecar)).collect();
    for _ in 0..3 {
        let mut client = fixture.client(sidecar.address());
        client.send(&startup(PROTOCOL_3_0, &[("user", "teesql_read")]));
        let error = client.expect_fatal();
        assert_eq!(error.code, "53300", "{error}");
        assert_eq!(error.message, "sorry, too many clients already");
        let line = sidecar.await_connection_end(client.local_address());
        assert_eq!(line["reason"], "too_many_connections", "{line}");
    }
    for session in &mut sessions {
        assert_eq!(session.query_value("select 1"), "1");
    }
    // A slot that becomes free can be used again.
    let mut session = sessions.pop().expect("five sessions");
    for _ in 0..5 {
        let peer = session.local_address();
        session.terminate();
        sidecar.await_connection_end(peer);
        session = fixture.session(&sidecar);
    }
}

fn idle_sessions_end(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_IDLE_TIMEOUT", "2s"));
    let start = Instant::now();
    let mut idle = fixture.session(&sidecar);
    // Afterwards, so that it is never idle while the other logs in.
    let mut busy = fixture.session(&sidecar);
    // The busy session sends queries until the idle one has been terminated.
    let termination = thread::scope(|scope| {
        let termination = scope.spawn(|| (idle.expect_fatal(), start.elapsed()));
        while !termination.is_finished() {
            assert_eq!(busy.query_value("select pg_sleep(0.2)::text"), "");
        }
        termination.join().expect("the idle session is terminated")
    });
    let (error, after) = termination;
    assert_eq!(error.code, "57P05", "{error}");
    assert_eq!(
        error.message,
        "terminating connection due to idle-session timeout"
    );
    assert!(after >= Duration::from_secs(2), "already after {after:?}");
    assert!(after < Duration::from_secs(10), "only after {after:?}");
    let line = sidecar.await_connection_end(idle.local_address());
    assert_eq!(line["reason"], "idle_timeout", "{line}");
    assert_eq!(busy.query_value("select 1"), "1");
}

/// A session that waits for a long result is not idle.
fn waiting_session_is_not_idle(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_IDLE_TIMEOUT", "1s"));
    let mut client = fixture.session(&sidecar);
    let rows = client.query("select pg_sleep(0.3), repeat('z', 9000) from generate_series(1, 10)");
    assert_eq!(rows.expect("rows").len(), 10);
    assert_eq!(client.query_value("select 1"), "1");
}

fn three_hundred_sessions(fixture: &Fixture) {
    const COUNT: usize = 300;
    let sidecar = fixture.sidecar();
    let barrier = std::sync::Barrier::new(COUNT);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..COUNT)
            .map(|number| {
                let (sidecar, barrier) = (&sidecar, &barrier);
                let builder = thread::Builder::new().stack_size(256 * 1024);
                let run = move || {
                    let mut client = fixture.session(sidecar);
                    // All sessions are open at the same time.
                    barrier.wait();
                    for round in 0..10 {
                        let sum = client.query_value(&format!("select {number} + {round}"));
                        assert_eq!(sum, (number + round).to_string());
                    }
                    barrier.wait();
                    client.terminate();
                };
                builder.spawn_scoped(scope, run).expect("a thread")
            })
            .collect();
        for client in clients {
            client.join().expect("no client fails");
        }
    });
}

/// Clients that end in different ways leave no socket open.
fn closes_all_sockets(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    fixture.session(&sidecar).terminate();
    let sockets = sidecar.settled_sockets();
    for round in 0..30 {
        let mut client = fixture.session(&sidecar);
        match round % 6 {
            0 => client.terminate(),
            1 => client.disconnect(),
            2 => {
                // Without this, Postgres checks its client only after the query.
                client
                    .query("set client_connection_check_interval = 100")
                    .expect("set");
                client.send(&crate::harness::message::query("select pg_sleep(60)"));
                client.disconnect();
            }
            3 => {
                client.send(&crate::harness::message::query(
                    "select repeat('x', 100000000)",
                ));
                client.disconnect();
            }
            4 => drop(TcpClient::connect(sidecar.address())),
            _ => drop(fixture.client(sidecar.address())),
        }
    }
    let name = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and usename = 'teesql_read'";
    fixture.cluster().await_result(name, "0");
    sidecar.await_sockets(sockets);
}
