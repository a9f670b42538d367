//! Tests of slow peers: the login timeout ends a login, and back-pressure limits the memory of a
//! session.

use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{Client, CloseKind, TcpClient};
use crate::harness::cluster::ClusterOptions;
use crate::harness::fake_server::{
    FakeServer, accept_login, read_message, read_startup, read_until_close,
};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, PgError, SSL_REQUEST, query, startup, tagged};
use crate::harness::process::{TIMEOUT, run_for_both_outputs};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{READ_SECRET, READER, READWRITE_SECRET};
use crate::libpq_clients::client as libpq_client;

const DEADLINE: Duration = Duration::from_secs(4);
/// For trials in which the client sends everything in time, and Postgres does not. A busy machine takes seconds for TLS
/// and SCRAM, and the first login waits a second for the protocol version of a Postgres that does not answer.
const DEADLINE_OF_POSTGRES: Duration = Duration::from_secs(12);

pub(crate) fn add(suite: &mut Suite) {
    suite.add("slow_peers::silent_client", silent_client);
    suite.add(
        "slow_peers::client_that_sends_one_byte_at_a_time",
        one_byte_at_a_time,
    );
    suite.add("slow_peers::silent_postgres", silent_postgres);
    suite.add(
        "slow_peers::libpq_tries_its_next_host_if_postgres_is_frozen",
        frozen_postgres,
    );
    suite.add(
        "slow_peers::client_that_never_reads",
        client_that_never_reads,
    );
    suite.add(
        "slow_peers::client_that_never_reads_its_refusal",
        client_that_never_reads_its_refusal,
    );
    suite.add(
        "slow_peers::postgres_that_never_reads",
        postgres_that_never_reads,
    );
    suite.add("slow_peers::accepts_one_byte_segments", one_byte_segments);
}

fn sidecar_with_short_deadline(fixture: &Fixture, upstream: &str) -> Sidecar {
    Sidecar::start(&with_deadline(fixture.settings_for(upstream), DEADLINE))
}

fn with_deadline(settings: Settings, deadline: Duration) -> Settings {
    settings.set("TEESQL_LOGIN_TIMEOUT", &format!("{}s", deadline.as_secs()))
}

fn timeout_error() -> PgError {
    PgError {
        severity: "FATAL".to_owned(),
        code: "57014".to_owned(),
        message: "canceling authentication due to timeout".to_owned(),
    }
}

/// Checks that now is after the deadline, and not long after it.
fn assert_on_time(since: Instant, deadline: Duration, what: &str) {
    let took = since.elapsed();
    assert!(
        took >= deadline - Duration::from_millis(50),
        "{what}: already after {took:?}"
    );
    assert!(
        took < deadline + Duration::from_secs(8),
        "{what}: only after {took:?}"
    );
}

fn assert_reason(sidecar: &Sidecar, tcp: &TcpClient, reason: &str, what: &str) {
    let line = sidecar.await_connection_end(tcp.local_address());
    assert_eq!(line["reason"], reason, "{what}: {line}");
}

fn silent_client(fixture: &Fixture) {
    let sidecar = sidecar_with_short_deadline(fixture, &fixture.cluster().address().to_string());
    let sockets = sidecar.settled_sockets();
    let start = Instant::now();
    let mut plain: Vec<(&str, TcpClient)> = [
        ("says nothing", &b""[..]),
        ("three bytes of SSLRequest", &SSL_REQUEST[..3]),
        ("half a ClientHello", &[0x16, 3, 1, 2, 0, 1, 0, 1]),
    ]
    .map(|(what, bytes)| {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(bytes);
        (what, tcp)
    })
    .into();
    let mut negotiated = TcpClient::connect(sidecar.address());
    negotiated.send(&SSL_REQUEST);
    negotiated.expect_prefix(b"S");
    plain.push(("silent after S", negotiated));

    let secure = silent_clients_inside_tls(fixture, &sidecar);
    for (what, mut tcp) in plain {
        tcp.read_to_end();
        assert_on_time(start, DEADLINE, what);
        assert_reason(&sidecar, &tcp, "login_timeout", what);
    }
    for (what, mut client) in secure {
        assert_eq!(client.expect_fatal(), timeout_error(), "{what}");
        assert_on_time(start, DEADLINE, what);
        assert_reason(&sidecar, &client.tls.sock, "login_timeout", what);
    }
    sidecar.await_sockets(sockets);
}

/// Clients that stop at each step of the login.
fn silent_clients_inside_tls(fixture: &Fixture, sidecar: &Sidecar) -> Vec<(&'static str, Client)> {
    let mut clients = vec![("silent inside TLS", fixture.client(sidecar.address()))];
    let mut half = fixture.client(sidecar.address());
    half.send(&startup(PROTOCOL_3_0, &[("user", "teesql_read")])[..9]);
    clients.push(("half a startup", half));
    let mut started = fixture.client(sidecar.address());
    started.start("teesql_read", "via_scram");
    clients.push(("no password", started));
    let mut half = fixture.client(sidecar.address());
    let started = half.start("teesql_read", "via_scram");
    let exchange = half.exchange(READ_SECRET, &started.mechanisms);
    half.send(&exchange.initial_response()[..20]);
    clients.push(("half a SCRAM message", half));
    let mut challenged = fixture.client(sidecar.address());
    let started = challenged.start("teesql_read", "via_scram");
    let exchange = challenged.exchange(READ_SECRET, &started.mechanisms);
    challenged.read_challenge(&exchange).expect("a challenge");
    clients.push(("no proof", challenged));
    clients
}

/// Progress does not extend the deadline.
fn one_byte_at_a_time(fixture: &Fixture) {
    let sidecar = sidecar_with_short_deadline(fixture, &fixture.cluster().address().to_string());
    let start = Instant::now();
    let mut client = fixture.client(sidecar.address());
    let packet = startup(
        PROTOCOL_3_0,
        &[("user", "teesql_read"), ("options", &"x".repeat(100))],
    );
    for byte in packet {
        if client.try_send(&[byte]).is_err() || start.elapsed() > TIMEOUT {
            break;
        }
        // The pace of the slow client.
        thread::sleep(Duration::from_millis(100));
    }
    assert_on_time(start, DEADLINE, "one byte at a time");
    match client.read() {
        Ok(message) => assert_eq!(message.error(), timeout_error()),
        // Our last bytes reached a closed socket: the reset may overtake the error.
        Err(ending) => assert_eq!(ending, CloseKind::Abrupt),
    }
    assert_reason(
        &sidecar,
        &client.tls.sock,
        "login_timeout",
        "one byte at a time",
    );
}

fn silent_postgres(fixture: &Fixture) {
    type Script = fn(&mut TcpStream) -> io::Result<()>;
    let scripts: [(&str, Script); 3] = [
        ("never responds", |_| Ok(())),
        ("stops after requesting the password", |stream| {
            read_startup(stream)?;
            stream.write_all(&tagged(b'R', &3_u32.to_be_bytes()))
        }),
        ("sends half a message", |stream| {
            read_startup(stream)?;
            stream.write_all(&[b'R', 0, 0, 0, 8, 0])
        }),
    ];
    thread::scope(|scope| {
        for (what, script) in scripts {
            scope.spawn(move || silent_postgres_times_out(fixture, what, script));
        }
    });
}

fn silent_postgres_times_out(
    fixture: &Fixture,
    what: &str,
    script: fn(&mut TcpStream) -> io::Result<()>,
) {
    let postgres = FakeServer::start(move |mut stream| {
        script(&mut stream)?;
        read_until_close(&mut stream)
    });
    let settings = fixture.settings_for_fake(&postgres);
    let sidecar = Sidecar::start(&with_deadline(settings, DEADLINE_OF_POSTGRES));
    let sockets = sidecar.settled_sockets();
    let start = Instant::now();
    let mut client = fixture.client(sidecar.address());
    let outcome = client.login("teesql_read", "via_scram", READ_SECRET);
    let error = outcome.expect_err(what);
    assert_eq!(error.code, "57P03", "{what}: {error}");
    assert_eq!(
        error.message,
        "pg_auth_inject failed: Postgres did not answer within the login timeout"
    );
    assert_on_time(start, DEADLINE_OF_POSTGRES, what);
    assert_reason(&sidecar, &client.tls.sock, "upstream_timeout", what);
    drop(client);
    sidecar.await_sockets(sockets);
}

/// A Postgres that the kernel still accepts connections for.
fn frozen_postgres(fixture: &Fixture) {
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let settings = fixture.settings_for(&cluster.address().to_string());
    let frozen = Sidecar::start(&with_deadline(settings, DEADLINE_OF_POSTGRES));
    // The sidecar has asked Postgres for its protocol version.
    fixture.session(&frozen).terminate();
    cluster.signal_postmaster(Signal::SIGSTOP);
    let working = fixture.sidecar();
    let mut psql = libpq_client(fixture, &frozen, "psql", READER, "via_scram");
    psql.args(["-X", "-A", "-t", "-c", "select 1"])
        .env("PGHOST", "localhost,localhost")
        .env("PGHOSTADDR", "127.0.0.1,127.0.0.1")
        .env("PGPORT", format!("{},{}", frozen.port(), working.port()));
    assert_eq!(run_for_both_outputs(psql, TIMEOUT), "1\n");
    let line = frozen.await_reason("upstream_timeout");
    assert_eq!(line["level"], "WARN", "{line}");
}

/// The client may block its own session, and uses no more memory than its buffers.
fn client_that_never_reads(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut client = fixture.client(sidecar.address());
    let response = client.login_reader();
    let memory = sidecar.resident_kib();
    client.send(&query(
        "select repeat('x', 1000) from generate_series(1, 1000000)",
    ));
    let wait_event = format!(
        "select wait_event from pg_stat_activity where pid = {}",
        response.pid
    );
    fixture.cluster().await_result(&wait_event, "ClientWrite");

    let mut other = fixture.session(&sidecar);
    let rows = other
        .query("select g from generate_series(1, 1000) g")
        .expect("rows");
    assert_eq!(rows.len(), 1000);
    let grown = sidecar.resident_kib().saturating_sub(memory);
    assert!(
        grown < 8 * 1024,
        "{grown} KiB more for a client that does not read"
    );

    client.disconnect();
    let session_count = format!(
        "select count(*) from pg_stat_activity where pid = {}",
        response.pid
    );
    fixture.cluster().await_result(&session_count, "0");
}

/// A refused client that does not read must not keep its connection open.
fn client_that_never_reads_its_refusal(fixture: &Fixture) {
    let sidecar = sidecar_with_short_deadline(fixture, &fixture.cluster().address().to_string());
    let sockets = sidecar.settled_sockets();
    let clients: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = fixture.client(sidecar.address());
            let response = client.start("teesql_read", "via_scram");
            client.send_secret("wrong", &response);
            client
        })
        .collect();
    for client in &clients {
        assert_reason(
            &sidecar,
            &client.tls.sock,
            "authentication_failed",
            "a refusal",
        );
    }
    sidecar.await_sockets(sockets);
    drop(clients);
}

/// In the other direction, data from the client must not accumulate either.
fn postgres_that_never_reads(fixture: &Fixture) {
    let postgres = FakeServer::start(|mut stream| {
        read_startup(&mut stream)?;
        stream.write_all(&tagged(b'R', &3_u32.to_be_bytes()))?;
        read_message(&mut stream)?;
        accept_login(&mut stream)?;
        // The socket is shut down at the end of the test, which does not wait for this thread.
        thread::park_timeout(TIMEOUT * 4);
        Ok(())
    });
    let sidecar = Sidecar::start(&fixture.settings_for_fake(&postgres));
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_readwrite", "d", READWRITE_SECRET)
        .expect("the login succeeds");
    let memory = sidecar.resident_kib();
    let socket = &client.tls.sock.stream;
    socket.set_nonblocking(true).expect("a live socket");
    let chunk = tagged(b'd', &[0; 16_379]);
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        let before = client.tls.sock.sent;
        let _ = client.tls.write(&chunk);
        if client.tls.sock.sent == before {
            // The buffers are full for the moment.
            thread::sleep(Duration::from_millis(5));
        }
        let sent = client.tls.sock.sent;
        assert!(
            sent < 64 << 20,
            "{sent} bytes accepted for a Postgres that reads none"
        );
    }
    let grown = sidecar.resident_kib().saturating_sub(memory);
    assert!(
        grown < 8 * 1024,
        "{grown} KiB more for a Postgres that does not read"
    );
}

/// A whole login and a query in TCP segments of one byte each.
fn one_byte_segments(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    let mut tcp = TcpClient::connect(sidecar.address());
    for byte in SSL_REQUEST {
        tcp.send(&[byte]);
    }
    tcp.expect_prefix(b"S");
    let config = fixture.harness.certificates.client(None);
    let mut client = Client::handshake(config, tcp).expect("the TLS handshake succeeds");
    let send = |client: &mut Client, bytes: &[u8]| {
        for byte in bytes {
            // One byte per TLS record and TCP segment.
            client.send(&[*byte]);
        }
    };
    send(
        &mut client,
        &startup(
            PROTOCOL_3_0,
            &[("user", "teesql_read"), ("database", "via_scram")],
        ),
    );
    let mechanisms = client.expect(b'R').mechanisms();
    let mut exchange = client.exchange(READ_SECRET, &mechanisms);
    send(&mut client, &exchange.initial_response());
    let challenge = client.expect(b'R');
    assert_eq!(challenge.authentication(), 11);
    send(&mut client, &exchange.proof(&challenge.body[4..]));
    let last = client.expect(b'R');
    assert_eq!(last.authentication(), 12);
    exchange.finish(&last.body[4..]);
    client
        .await_ready(Default::default())
        .expect("the login succeeds");
    send(&mut client, &query("select 42"));
    client.expect(b'T');
    assert_eq!(client.expect(b'D').columns(), [Some("42".to_owned())]);
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}
