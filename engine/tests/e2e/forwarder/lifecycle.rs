//! Drivers that ask for SSL, limits, drain, the HTTP surface, and what may be
//! seen from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::drivers::{READER, Way};
use crate::harness::client::TcpClient;
use crate::harness::forwarder::Forwarder;
use crate::harness::message::{self, PROTOCOL_3_0, SSL_REQUEST};
use crate::harness::process::{TIMEOUT, lossy, poll_until, run};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::sslmode", sslmode);
    suite.add("forward::drain", drain);
    suite.add("forward::idle_and_limit", idle_and_limit);
    suite.add("forward::the_server_goes_first", server_goes_first);
    if suite.is_last_driver() {
        suite.add("forward::http_and_secrets", http_and_secrets);
    }
}

/// A session by hand, logged in, that can be asked.
pub(crate) struct Session(pub(crate) TcpClient);

impl Session {
    pub(crate) fn open(forwarder: &Forwarder) -> Self {
        let mut tcp = TcpClient::connect(forwarder.address());
        let who = [("user", READER.0), ("database", "via_scram")];
        tcp.send(&message::startup(PROTOCOL_3_0, &who));
        tcp.expect_prefix(&message::tagged(b'R', &3_u32.to_be_bytes()));
        tcp.send(&message::password(READER.1));
        let mut session = Self(tcp);
        session.until_ready();
        session
    }

    /// Everything up to ReadyForQuery.
    fn until_ready(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(&[b'Z', 0, 0, 0, 5, b'I']) {
            all.push(self.0.read_byte());
        }
        all
    }

    pub(crate) fn ask(&mut self) {
        self.0.send(&message::query("select 'pong'"));
        let answer = self.until_ready();
        assert!(answer.windows(4).any(|four| four == b"pong"), "{answer:?}");
    }
}

fn sslmode(fixture: &Fixture) {
    let way = Way::open(fixture, &[]);
    let mut tcp = TcpClient::connect(way.forwarder.address());
    tcp.send(&SSL_REQUEST);
    tcp.expect_prefix(b"N");
    drop(tcp);
    for (mode, text) in [
        (
            "require",
            "server does not support SSL, but SSL was required",
        ),
        ("prefer", "1\n"),
        ("prefer", "1\n"),
    ] {
        let mut psql = way.forwarder.client("psql", READER);
        psql.env("PGSSLMODE", mode).args(["-XAtc", "select 1"]);
        let output = run(psql, TIMEOUT);
        let said = lossy(&output.stdout) + &lossy(&output.stderr);
        assert!(said.contains(text), "{mode}: {said}");
    }
    let lines = way.forwarder.log_lines();
    let hints = lines.iter().filter(|line| line.contains("sslmode=disable"));
    assert_eq!(hints.count(), 1, "{lines:?}");
    // Nothing that is no PostgreSQL gets further.
    let mut tcp = TcpClient::connect(way.forwarder.address());
    tcp.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(tcp.read_to_end(), b"");
    way.forwarder.await_reason("garbage");
    let mut tcp = TcpClient::connect(way.forwarder.address());
    tcp.send(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
    assert_eq!(tcp.read_to_end(), b"");
    way.forwarder.await_reason("direct_tls");
}

/// Until it accepts no more.
fn await_refusal(forwarder: &Forwarder) {
    let address = forwarder.address();
    let refused = || TcpStream::connect(address).is_err().then_some(());
    poll_until(TIMEOUT, refused).expect("it accepts no more");
}

fn drain(fixture: &Fixture) {
    let mut way = Way::open(fixture, &[("TEESQL_DRAIN_TIMEOUT", "700ms")]);
    let mut stays = Session::open(&way.forwarder);
    let mut leaves = Session::open(&way.forwarder);
    way.forwarder.signal(Signal::SIGTERM);
    await_refusal(&way.forwarder);
    leaves.ask();
    leaves.0.send(&message::tagged(b'X', b""));
    assert_eq!(leaves.0.read_to_end(), b"");
    let error = stays.0.read_final_message().error();
    assert_eq!(error.code, "57P01", "{error}");
    assert!(way.forwarder.await_exit().success());

    // A second signal does not wait.
    let mut way = Way::open(fixture, &[("TEESQL_DRAIN_TIMEOUT", "1h")]);
    let mut stays = Session::open(&way.forwarder);
    way.forwarder.signal(Signal::SIGINT);
    // Two that come at once are one.
    await_refusal(&way.forwarder);
    stays.ask();
    way.forwarder.signal(Signal::SIGINT);
    let error = stays.0.read_final_message().error();
    assert_eq!(error.code, "57P01", "{error}");
    assert!(way.forwarder.await_exit().success());
}

fn idle_and_limit(fixture: &Fixture) {
    let limits = [
        ("TEESQL_IDLE_TIMEOUT", "600ms"),
        ("TEESQL_MAX_CONNECTIONS", "1"),
    ];
    let way = Way::open(fixture, &limits);
    let mut session = Session::open(&way.forwarder);
    let said = way.forwarder.ask(READER);
    assert!(
        said.contains("FATAL:  sorry, too many clients already"),
        "{said}"
    );
    way.forwarder.await_reason("too_many_connections");
    let error = session.0.read_final_message().error();
    assert_eq!(error.code, "57P05", "{error}");
    let free = || (way.forwarder.ask(READER) == "1\n").then_some(());
    poll_until(TIMEOUT, free).expect("the place is free again");
}

/// A driver that does not look (a pool's) holds no socket of a server's that is
/// gone; and an early end of the server's is no silence.
fn server_goes_first(fixture: &Fixture) {
    let way = Way::open(fixture, &[]);
    let rest = way.forwarder.sockets_at_rest();
    let mut session = Session::open(&way.forwarder);
    session.ask();
    drop(way.sidecar);
    way.forwarder.await_sockets(rest);
    assert_eq!(session.0.read_to_end(), b"");

    let tdx = TdxFixture::new();
    let config = crate::harness::recording_server::config(
        &tdx.issue("s", &attest::mock::Evidence::default()),
    );
    let server = crate::harness::recording_server::Recorder::tls_that_closes(config);
    let forwarder = Forwarder::start(&tdx.settings_to(fixture, server.address()));
    let said = forwarder.ask(READER);
    assert!(
        said.contains("FATAL:  connection to the server lost: "),
        "{said}"
    );
    forwarder.await_reason("server_io");
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("HTTP");
    stream
        .set_read_timeout(Some(TIMEOUT))
        .expect("a live socket");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn http_and_secrets(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.sidecar(fixture);
    let url = format!(
        "postgres://{}:{}@{}/via_scram",
        READER.0,
        READER.1,
        sidecar.address()
    );
    let settings = tdx
        .settings(fixture)
        .set("DATABASE_URL", &url)
        .set("INTEL_TRUST_AUTHORITY_API_KEY", "a2V5LW9mLW91cnM=")
        .set("TEESQL_LOG", "trace")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let forwarder = Forwarder::start(&settings);
    let line = forwarder.await_log("HTTP", |line| line["message"] == "serving HTTP");
    let admin = line["address"].as_str().expect("an address").to_owned();
    assert!(get(&admin, "/ready").starts_with("HTTP/1.1 200"));
    assert_eq!(forwarder.ask(READER), "1\n");
    assert!(
        forwarder
            .ask((READER.0, "wrong-hunter2"))
            .contains("authentication_failed")
    );
    let metrics = get(&admin, "/metrics");
    let (_, body) = metrics.split_once("\r\n\r\n").expect("a body");
    for line in body
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (_, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        value
            .parse::<f64>()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    assert!(body.contains("\nteesql_"), "{body}");
    std::thread::sleep(Duration::from_millis(100));
    let seen = forwarder.log_lines().join("\n")
        + &lossy(&fs::read(format!("/proc/{}/cmdline", forwarder.pid())).expect("it runs"))
        + &forwarder.dsn
        + body;
    for secret in [READER.1, "wrong-hunter2", "a2V5LW9mLW91cnM="] {
        assert!(!seen.contains(secret), "{secret} can be seen");
    }
}
