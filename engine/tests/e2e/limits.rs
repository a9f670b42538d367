//! How many connections, how long they may idle, and whom PROXY headers are believed.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::READ_SECRET;
use crate::harness::client::{Client, TcpClient};
use crate::harness::message::{PROTOCOL_3_0, PgError, startup};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("limits::connections", connections);
    suite.add("limits::idle_sessions_end", idle_sessions_end);
    suite.add("limits::idle_is_not_waiting", idle_is_not_waiting);
    suite.add("limits::three_hundred_at_once", three_hundred_at_once);
    suite.add("limits::nothing_is_left_open", nothing_is_left_open);
    suite.add(
        "proxy_header::believed_from_the_list",
        proxy_header_believed,
    );
    suite.add("proxy_header::broken", proxy_header_broken);
    suite.add("proxy_header::refused_from_others", proxy_header_refused);
}

fn enter(fixture: &Fixture, sidecar: &Sidecar) -> Result<Client, PgError> {
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .map(|_| client)
}

fn connections(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_MAX_CONNECTIONS", "5"));
    let mut sessions: Vec<Client> = (0..5)
        .map(|_| enter(fixture, &sidecar).expect("there is room"))
        .collect();
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
        assert_eq!(session.ask("select 1"), "1");
    }
    // A place that becomes free can be taken.
    let mut leaving = sessions.pop().expect("five");
    for _ in 0..5 {
        let peer = leaving.local_address();
        leaving.terminate();
        sidecar.await_connection_end(peer);
        leaving = enter(fixture, &sidecar).expect("there is room again");
    }
}

fn idle_sessions_end(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_IDLE_TIMEOUT", "2s"));
    let mut busy = enter(fixture, &sidecar).expect("the login succeeds");
    let begun = Instant::now();
    let mut idle = enter(fixture, &sidecar).expect("the login succeeds");
    // The busy one speaks until the idle one was told to go.
    let told = thread::scope(|scope| {
        let told = scope.spawn(|| (idle.expect_fatal(), begun.elapsed()));
        while !told.is_finished() {
            assert_eq!(busy.ask("select pg_sleep(0.2)::text"), "");
        }
        told.join().expect("the idle one is told")
    });
    let (error, after) = told;
    assert_eq!(error.code, "57P05", "{error}");
    assert_eq!(
        error.message,
        "terminating connection due to idle-session timeout"
    );
    assert!(after >= Duration::from_secs(2), "already after {after:?}");
    assert!(after < Duration::from_secs(10), "only after {after:?}");
    let line = sidecar.await_connection_end(idle.local_address());
    assert_eq!(line["reason"], "idle_timeout", "{line}");
    assert_eq!(busy.ask("select 1"), "1");
}

/// Postgres at work on one long transfer is not an idle session.
fn idle_is_not_waiting(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_IDLE_TIMEOUT", "1s"));
    let mut client = enter(fixture, &sidecar).expect("the login succeeds");
    let rows = client.query("select pg_sleep(0.3), repeat('z', 9000) from generate_series(1, 10)");
    assert_eq!(rows.expect("rows").len(), 10);
    assert_eq!(client.ask("select 1"), "1");
}

fn three_hundred_at_once(fixture: &Fixture) {
    const COUNT: usize = 300;
    let sidecar = fixture.sidecar();
    let barrier = std::sync::Barrier::new(COUNT);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..COUNT)
            .map(|number| {
                let (sidecar, barrier) = (&sidecar, &barrier);
                let builder = thread::Builder::new().stack_size(256 * 1024);
                let run = move || {
                    let mut client = enter(fixture, sidecar).expect("the login succeeds");
                    // All are inside at the same time.
                    barrier.wait();
                    for round in 0..10 {
                        let sum = client.ask(&format!("select {number} + {round}"));
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

/// After clients of every kind came and went, no socket is left.
fn nothing_is_left_open(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    enter(fixture, &sidecar)
        .expect("the login succeeds")
        .terminate();
    let quiet = sidecar.sockets_at_rest();
    for round in 0..30 {
        let mut client = enter(fixture, &sidecar).expect("the login succeeds");
        match round % 6 {
            0 => client.terminate(),
            1 => client.disconnect(),
            2 => {
                // Without this, Postgres looks at its client only after the query.
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
    sidecar.await_sockets(quiet);
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.44 198.51.100.7 54321 5433\r\n";

/// TCP over IPv4, 192.0.2.55:54322 to 198.51.100.7:5433, with a TLV behind it.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x37\xc6\x33\x64\x07\xd4\x32\x15\x39\x04\0\x01x";

/// `LOCAL`: the proxy's own health check.
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn behind_header(fixture: &Fixture, sidecar: &Sidecar, header: &[u8]) -> Client {
    let mut tcp = TcpClient::connect(sidecar.address());
    tcp.send(header);
    Client::handshake(fixture.harness.certificates.client(None), tcp)
        .expect("the TLS handshake succeeds")
}

fn proxy_header_believed(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "10.0.0.0/8,127.0.0.0/8");
    let sidecar = Sidecar::start(&settings);
    for (header, client_in_log) in [
        (V1, Some("192.0.2.44:54321")),
        (V2, Some("192.0.2.55:54322")),
        (V2_LOCAL, None),
        (b"", None),
    ] {
        let mut client = behind_header(fixture, &sidecar, header);
        client
            .login("teesql_read", "via_scram", READ_SECRET)
            .expect("the login succeeds");
        let peer = client.local_address();
        client.terminate();
        let line = sidecar.await_connection_end(peer);
        assert_eq!(line["client"].as_str(), client_in_log, "{line}");
    }
    // In pieces, and before SSLRequest.
    let mut tcp = TcpClient::connect(sidecar.address());
    for byte in [V2, &crate::harness::message::SSL_REQUEST].concat() {
        tcp.send(&[byte]);
    }
    let mut answer = [0];
    std::io::Read::read_exact(&mut tcp.stream, &mut answer).expect("one byte");
    assert_eq!(&answer, b"S");
}

fn proxy_header_broken(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "127.0.0.0/8");
    let sidecar = Sidecar::start(&settings);
    let long = [b"PROXY TCP4 ", &[b'1'; 120][..]].concat();
    let twice = [V1, V1].concat();
    let late = [&V2[..12], b"\x21\x11\xff\xff"].concat();
    for (bytes, reason) in [
        (&b"PROXY TCP4 1.2.3.4\r\n"[..], "proxy_malformed"),
        (b"PROXY HELLO\r\n", "proxy_malformed"),
        (&long, "proxy_too_long"),
        (&late, "proxy_too_long"),
        (&twice, "proxy_misplaced"),
    ] {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(bytes);
        assert_eq!(tcp.read_to_end(), b"", "{bytes:?}");
        let line = sidecar.await_connection_end(tcp.local_address());
        assert_eq!(line["reason"], reason, "{bytes:?}: {line}");
    }
}

fn proxy_header_refused(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "10.0.0.0/8,::1/128");
    let sidecar = Sidecar::start(&settings);
    for header in [V1, V2] {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(header);
        assert_eq!(tcp.read_to_end(), b"");
        let line = sidecar.await_connection_end(tcp.local_address());
        assert_eq!(line["reason"], "proxy_not_allowed", "{line}");
    }
    enter(fixture, &sidecar)
        .expect("without a header it may")
        .terminate();
}
