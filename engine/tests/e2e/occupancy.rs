//! Tests of the limits on clients that are not attested yet: silent sockets take no place of a session,
//! an address displaces only its own connections, and attested clients are never displaced.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use attest::mock::{Evidence, LeafOptions};
use nix::sys::signal::Signal;

use crate::attestation_gate::connect as connect_attested;
use crate::harness::client::{Client, TcpClient};
use crate::harness::daemon::Daemon;
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, SSL_REQUEST, cancel, query};
use crate::harness::process::{TIMEOUT, poll_until, with_limit};
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{WRONG_SECRET, http};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("occupancy::silent_sockets_keep_no_session_out", silent);
    suite.add("occupancy::displaces_the_oldest_silent_socket", oldest);
    suite.add("occupancy::an_address_displaces_only_itself", one_address);
    suite.add("occupancy::attested_clients_are_not_displaced", attested);
    suite.add("occupancy::a_slow_host_serves_all_newcomers", slow_host);
    suite.add("occupancy::few_descriptors", few_descriptors);
    suite.add("occupancy::raises_the_limit_of_descriptors", raises_limit);
}

const UNATTESTED: &str = "teesql_unattested_connections";

/// Silent connections, each from another address.
fn silent_sockets(sidecar: &Sidecar, count: usize) -> Vec<TcpClient> {
    let connect = |_| TcpClient::connect(sidecar.address());
    (0..count).map(connect).collect()
}

/// A silent connection from 127.0.0.1.
fn silent_socket_of_localhost(sidecar: &Sidecar) -> TcpClient {
    let stream = TcpStream::connect(sidecar.address()).expect("the server accepts");
    TcpClient::from_stream(stream)
}

/// Whether the server has closed the connection.
fn is_closed(client: &TcpClient) -> bool {
    let mut stream = &client.stream;
    stream.set_nonblocking(true).expect("a live socket");
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false).expect("a live socket");
    match read {
        Ok(read) => read == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

fn closed(clients: &[TcpClient]) -> usize {
    clients.iter().filter(|client| is_closed(client)).count()
}

/// 240 silent sockets, and 53 logins with room for 100 sessions. Cancel requests and the HTTP server go on.
fn silent(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_MAX_CONNECTIONS", "100")
        .set("TEESQL_PLAINTEXT_CANCEL", "true")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let mut sleeping = fixture.client(sidecar.address());
    let response = sleeping.login_reader();
    let silent = silent_sockets(&sidecar, 240);
    await_scrape(sidecar.admin_address(), |scrape| {
        scrape.value(UNATTESTED) >= 240.0
    });
    let mut sessions: Vec<Client> = (0..53).map(|_| fixture.session(&sidecar)).collect();
    for session in &mut sessions {
        assert_eq!(session.query_value("select 1"), "1");
    }
    sleeping.send(&query("select pg_sleep(3600)"));
    let waits = format!(
        "select wait_event from pg_stat_activity where pid = {}",
        response.pid
    );
    fixture.cluster().await_result(&waits, "PgSleep");
    let mut tcp = TcpClient::connect(sidecar.address());
    tcp.send(&cancel(response.pid, &response.key));
    tcp.read_to_end();
    sleeping.expect(b'T');
    assert_eq!(sleeping.expect(b'E').error().code, "57014");
    assert_eq!(http::get(sidecar.admin_address(), "/health").status, 200);
    assert_eq!(closed(&silent), 0);
}

/// With fewer places than silent sockets, the oldest ones go, and logins succeed nevertheless.
fn oldest(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_MAX_UNATTESTED_CONNECTIONS", "80")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let mut early = fixture.session(&sidecar);
    let silent = silent_sockets(&sidecar, 240);
    let mut sessions: Vec<Client> = (0..20).map(|_| fixture.session(&sidecar)).collect();
    for session in &mut sessions {
        assert_eq!(session.query_value("select 1"), "1");
    }
    assert_eq!(early.query_value("select 1"), "1");
    // 40 on each of the two shards. Which of two connections on two shards is the older one is open.
    let enough = || (closed(&silent) >= 160).then_some(());
    poll_until(TIMEOUT, enough).expect("the older ones are closed");
    assert!(closed(&silent[..80]) > 70, "the oldest are closed first");
    assert!(closed(&silent[200..]) < 20, "the youngest stay");
    let line = sidecar.await_connection_end(silent[0].local_address());
    assert_eq!(line["reason"], "too_many_unattested", "{line}");
    assert_eq!(line["level"], "INFO", "{line}");
    let scrape = Scrape::fetch(sidecar.admin_address());
    assert!(scrape.value(UNATTESTED) <= 80.0);
    let refused = scrape.sum("teesql_logins_total", "reason=\"too_many_unattested\"");
    assert!(refused >= 160.0, "{refused}");
    assert_eq!(scrape.value("teesql_connections_dropped_total"), 0.0);
}

/// Connections from one address cannot displace those of others, and a login from the same address succeeds.
fn one_address(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_MAX_UNATTESTED_PER_ADDRESS", "8");
    let sidecar = Sidecar::start(&settings);
    let other = silent_sockets(&sidecar, 10);
    let own: Vec<_> = (0..60)
        .map(|_| silent_socket_of_localhost(&sidecar))
        .collect();
    let enough = || (closed(&own) >= 52).then_some(());
    poll_until(TIMEOUT, enough).expect("all but 8 are closed");
    let stream = TcpStream::connect(sidecar.address()).expect("the server accepts");
    let mut tcp = TcpClient::from_stream(stream);
    tcp.send(&SSL_REQUEST);
    tcp.expect_prefix(b"S");
    let config = fixture.harness.certificates.client(None);
    let mut client = Client::handshake(config, tcp).expect("the TLS handshake succeeds");
    client.login_reader();
    assert_eq!(client.query_value("select 1"), "1");
    assert_eq!(closed(&other), 0);
}

/// An attested client that takes its time with the login keeps its place.
fn attested(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_MAX_UNATTESTED_CONNECTIONS", "20")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let mut client = connect_attested(fixture, &sidecar, &certificate);
    await_scrape(sidecar.admin_address(), |scrape| {
        scrape.value(UNATTESTED) == 0.0
    });
    let silent = silent_sockets(&sidecar, 60);
    let enough = || (closed(&silent) >= 40).then_some(());
    poll_until(TIMEOUT, enough).expect("all but 20 are closed");
    client.login_reader();
    assert_eq!(client.query_value("select 1"), "1");
    // A client that is attested now displaces a silent one.
    let mut late = connect_attested(fixture, &sidecar, &certificate);
    late.login_reader();
}

/// Clients with certificates never seen before connect at the same time to a sidecar that gets a fiftieth of the CPU,
/// while sessions are busy. Their verifications take longer than the login timeout together, and none of them is
/// refused for that. Without optimisation each takes some 0.2 s of this CPU: all of them have to be served before
/// the clients' own timeout.
fn slow_host(fixture: &Fixture) {
    const NEWCOMERS: u64 = 50;
    const ATTEMPTS: usize = 20;
    let tdx = TdxFixture::new();
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_LOGIN_TIMEOUT", "2s");
    let sidecar = Sidecar::start(&settings);
    let issue = |number| {
        let leaf = LeafOptions {
            number,
            ..LeafOptions::default()
        };
        // A separate instance for each: further wrong secrets of one are answered later.
        let mut instance_id = vec![0; 12];
        instance_id.extend(number.to_be_bytes());
        let evidence = Evidence {
            instance_id,
            ..Evidence::default()
        };
        tdx.issue_with("client", &evidence, &leaf)
    };
    let known = issue(0);
    let mut busy: Vec<Client> = (0..4)
        .map(|_| connect_attested(fixture, &sidecar, &known))
        .collect();
    busy.iter_mut()
        .for_each(|session| drop(session.login_reader()));
    let certificates: Vec<_> = (1..=NEWCOMERS).map(issue).collect();
    let stop = AtomicBool::new(false);
    let outcomes: Vec<_> = thread::scope(|scope| {
        for session in &mut busy {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(session.query_value("select 1"), "1");
                }
            });
        }
        let newcomers = certificates.iter().map(|certificate| {
            let sidecar = &sidecar;
            let builder = thread::Builder::new().stack_size(256 * 1024);
            let attempt = move || {
                let mut client = connect_attested(fixture, sidecar, certificate);
                let parameters = [("user", "teesql_read"), ("database", "via_scram")];
                let outcome = client.try_start_with(PROTOCOL_3_0, &parameters);
                // Postgres, which is as slow as the machine, has no part in a wrong secret.
                let outcome =
                    outcome.and_then(|response| client.authenticate(WRONG_SECRET, response));
                outcome.expect_err("a wrong secret").code
            };
            // A client that cannot be verified in time comes back.
            let run = move || {
                let mut code = attempt();
                for _ in 1..ATTEMPTS {
                    if code == "57P03" {
                        thread::sleep(Duration::from_secs(1));
                        code = attempt();
                    }
                }
                code
            };
            builder.spawn_scoped(scope, run).expect("a thread")
        });
        let newcomers: Vec<_> = newcomers.collect();
        while newcomers.iter().any(|newcomer| !newcomer.is_finished()) {
            // A process that gets no CPU for most of the time.
            sidecar.signal(Signal::SIGSTOP);
            thread::sleep(Duration::from_millis(90));
            sidecar.signal(Signal::SIGCONT);
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        let outcomes = newcomers.into_iter().map(|newcomer| newcomer.join());
        outcomes
            .map(|code| code.unwrap_or_else(|_| "a panic".to_owned()))
            .collect()
    });
    let refused = outcomes.iter().filter(|code| *code != "28P01");
    assert_eq!(refused.count(), 0, "{outcomes:?}");
}

/// The same command with these limits of descriptors.
fn with_descriptors(command: &Command, limits: &str) -> Command {
    with_limit(command, &format!("--nofile={limits}"))
}

/// More silent sockets than descriptors: the limits on connections fit into the descriptors, so that nothing fails.
fn few_descriptors(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_MAX_CONNECTIONS", "10000");
    let command = with_descriptors(&settings.sidecar_command(&["serve"]), "400:400");
    let sidecar = Sidecar::start_command(command);
    let warning = sidecar.await_log("the warning", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("RLIMIT_NOFILE is too low for max_connections")
    });
    assert_eq!(warning["level"], "WARN", "{warning}");
    assert_eq!(warning["limit"], 400, "{warning}");
    assert_eq!(warning["needed"], 32_240, "{warning}");
    assert_eq!(warning["max_connections"], 62, "{warning}");
    assert_eq!(warning["max_unattested_connections"], 6, "{warning}");
    let mut session = fixture.session(&sidecar);
    let silent = silent_sockets(&sidecar, 450);
    for _ in 0..5 {
        assert_eq!(http::get(sidecar.admin_address(), "/health").status, 200);
        assert_eq!(session.query_value("select 1"), "1");
    }
    fixture.session(&sidecar).terminate();
    let scrape = Scrape::fetch(sidecar.admin_address());
    assert_eq!(scrape.value("teesql_accept_failures_total"), 0.0);
    assert_eq!(sidecar.count_messages("accept failed"), 0);
    drop(silent);

    let command = with_descriptors(&settings.sidecar_command(&["serve"]), "150:150");
    let sidecar = Daemon::spawn("teesql-sidecar", command);
    assert_eq!(sidecar.await_exit().code(), Some(71));
    let line = sidecar.await_message("the sidecar stopped");
    let error = line["error"].as_str().unwrap_or_default();
    assert!(
        error.starts_with("RLIMIT_NOFILE is 150, and at least "),
        "{error}"
    );
}

fn raises_limit(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_MAX_CONNECTIONS", "100")
        .set("TEESQL_MAX_UNATTESTED_CONNECTIONS", "100");
    let command = with_descriptors(&settings.sidecar_command(&["serve"]), "256:4096");
    let sidecar = Sidecar::start_command(command);
    let scrape = Scrape::fetch(sidecar.admin_address());
    assert_eq!(scrape.value("process_max_fds"), 4_096.0);
    assert_eq!(sidecar.count_messages("RLIMIT_NOFILE"), 0);
}
