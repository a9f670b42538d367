//! Tests of a forwarder's connections and process: drivers that request SSL, limits, drain, the HTTP
//! server, and secrecy of the log.

use attest::mock::Evidence;
use nix::sys::signal::Signal;
use postgres_protocol::authentication::sasl::ChannelBinding;

use super::drivers::ForwarderAndSidecar;
use crate::harness::client::{TcpClient, await_refused_connection};
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::message::{self, PROTOCOL_3_0, SSL_REQUEST};
use crate::harness::process::{TIMEOUT, poll_until, run_for_both_outputs};
use crate::harness::recording_server::{self, RecordingServer};
use crate::harness::scram::{Exchange, PLAIN};
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READER, http};

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::lifecycle::refuses_ssl_and_other_protocols",
        refuses_ssl,
    );
    suite.add("forwarder::lifecycle::drains_on_signals", drain);
    suite.add(
        "forwarder::lifecycle::enforces_idle_timeout_and_max_connections",
        idle_and_limit,
    );
    suite.add(
        "forwarder::lifecycle::reports_server_that_closes",
        server_closes_first,
    );
    if suite.adds_driver_independent() {
        suite.add(
            "forwarder::lifecycle::http_and_log_have_no_secrets",
            http_and_secrets,
        );
    }
}

/// A plaintext session of `teesql_read`, message by message.
pub(crate) struct Session(pub(crate) TcpClient);

impl Session {
    pub(crate) fn open(forwarder: &Forwarder) -> Self {
        let mut tcp = TcpClient::connect(forwarder.address());
        let parameters = [("user", READER.0), ("database", "via_scram")];
        tcp.send(&message::startup(PROTOCOL_3_0, &parameters));
        // The sidecar does not offer SCRAM-SHA-256-PLUS to a driver without TLS.
        let offer = [&10_u32.to_be_bytes()[..], b"SCRAM-SHA-256\0\0"].concat();
        tcp.expect_prefix(&message::tagged(b'R', &offer));
        let mut session = Self(tcp);
        let mut exchange = Exchange::new(PLAIN, READER.1, ChannelBinding::unsupported());
        session.0.send(&exchange.initial_response());
        let challenge = session.read_authentication(11);
        session.0.send(&exchange.proof(&challenge));
        let last = session.read_authentication(12);
        exchange.finish(&last);
        session.read_until_ready();
        session
    }

    /// Reads an Authentication message of this type, and returns its data.
    fn read_authentication(&mut self, code: u8) -> Vec<u8> {
        let head: Vec<u8> = (0..9).map(|_| self.0.read_byte()).collect();
        assert_eq!((head[0], head[8]), (b'R', code), "{head:?}");
        let rest = message::be32(&head[1..]) - 8;
        (0..rest).map(|_| self.0.read_byte()).collect()
    }

    /// Reads everything up to ReadyForQuery.
    fn read_until_ready(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(&[b'Z', 0, 0, 0, 5, b'I']) {
            all.push(self.0.read_byte());
        }
        all
    }

    pub(crate) fn assert_responds(&mut self) {
        self.0.send(&message::query("select 'pong'"));
        let response = self.read_until_ready();
        assert!(
            response.windows(4).any(|four| four == b"pong"),
            "{response:?}"
        );
    }
}

fn refuses_ssl(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[]);
    let mut tcp = TcpClient::connect(pair.forwarder.address());
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
        let mut psql = pair.forwarder.client("psql", READER);
        psql.env("PGSSLMODE", mode).args(["-XAtc", "select 1"]);
        let output = run_for_both_outputs(psql, TIMEOUT);
        assert!(output.contains(text), "{mode}: {output}");
    }
    // Other protocols are refused.
    let mut tcp = TcpClient::connect(pair.forwarder.address());
    tcp.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(tcp.read_to_end(), b"");
    pair.forwarder.await_reason("garbage");
    let mut tcp = TcpClient::connect(pair.forwarder.address());
    tcp.send(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
    assert_eq!(tcp.read_to_end(), b"");
    pair.forwarder.await_reason("direct_tls");
    // The lines before this one are complete: the hint is logged once, however many clients ask.
    let hint = "a client requests SSL: set sslmode=disable";
    assert_eq!(pair.forwarder.count_messages(hint), 1);
}

fn drain(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[("TEESQL_DRAIN_TIMEOUT", "700ms")]);
    let mut remaining = Session::open(&pair.forwarder);
    let mut ending = Session::open(&pair.forwarder);
    pair.forwarder.signal(Signal::SIGTERM);
    await_refused_connection(pair.forwarder.address());
    ending.assert_responds();
    ending.0.send(&message::tagged(b'X', b""));
    assert_eq!(ending.0.read_to_end(), b"");
    let error = remaining.0.read_final_message().error();
    assert_eq!(error.code, "57P01", "{error}");
    assert!(pair.forwarder.await_exit().success());

    // A second signal ends the drain.
    let pair = ForwarderAndSidecar::start(fixture, &[("TEESQL_DRAIN_TIMEOUT", "1h")]);
    let mut remaining = Session::open(&pair.forwarder);
    pair.forwarder.signal(Signal::SIGINT);
    // Two signals at the same time would count as one.
    await_refused_connection(pair.forwarder.address());
    remaining.assert_responds();
    pair.forwarder.signal(Signal::SIGINT);
    let error = remaining.0.read_final_message().error();
    assert_eq!(error.code, "57P01", "{error}");
    assert!(pair.forwarder.await_exit().success());
}

fn idle_and_limit(fixture: &Fixture) {
    let limit = ("TEESQL_MAX_CONNECTIONS", "1");
    let pair = ForwarderAndSidecar::start(fixture, &[limit]);
    let _session = Session::open(&pair.forwarder);
    let output = pair.forwarder.psql_select_1(READER);
    assert!(
        output.contains("FATAL:  sorry, too many clients already"),
        "{output}"
    );
    pair.forwarder.await_reason("too_many_connections");

    let idle_timeout = ("TEESQL_IDLE_TIMEOUT", "2s");
    let pair = ForwarderAndSidecar::start(fixture, &[limit, idle_timeout]);
    let mut session = Session::open(&pair.forwarder);
    let error = session.0.read_final_message().error();
    assert_eq!(error.code, "57P05", "{error}");
    let free = || (pair.forwarder.psql_select_1(READER) == "1\n").then_some(());
    poll_until(TIMEOUT, free).expect("the slot is free again");
}

/// The forwarder closes the connection of an idle driver when the server has gone, and reports a
/// server that closes during the login.
fn server_closes_first(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[]);
    let sockets = pair.forwarder.settled_sockets();
    let mut session = Session::open(&pair.forwarder);
    session.assert_responds();
    drop(pair.sidecar);
    pair.forwarder.await_sockets(sockets);
    assert_eq!(session.0.read_to_end(), b"");

    let tdx = TdxFixture::new();
    let certificate = tdx.issue("server", &Evidence::default());
    let server = RecordingServer::tls_that_closes(recording_server::config(&certificate));
    let forwarder = Forwarder::start(&tdx.forwarder_settings_to(fixture, server.address()));
    let output = forwarder.psql_select_1(READER);
    assert!(
        output.contains("FATAL:  connection to the server lost: "),
        "{output}"
    );
    forwarder.await_reason("server_io");
}

fn http_and_secrets(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let url = format!(
        "postgres://{}:{}@{}/via_scram",
        READER.0,
        READER.1,
        sidecar.address()
    );
    let settings = tdx
        .forwarder_settings(fixture)
        .set("DATABASE_URL", &url)
        .set("INTEL_TRUST_AUTHORITY_API_KEY", "a2V5LW9mLW91cnM=")
        .set("TEESQL_LOG", "trace")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let forwarder = Forwarder::start(&settings);
    let line = forwarder.await_message("serving HTTP");
    let admin = line["address"].as_str().expect("an address");
    let admin = admin.parse().expect("an address");
    assert_eq!(http::get(admin, "/ready").status, 200);
    forwarder.assert_reader_connects();
    let output = forwarder.psql_select_1((READER.0, "wrong-hunter2"));
    assert!(output.contains("authentication_failed"), "{output}");
    let body = http::get(admin, "/metrics").body;
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
    let command_line = forwarder.command_line();
    // After the exit, the log is complete.
    forwarder.signal(Signal::SIGTERM);
    assert!(forwarder.await_exit().success());
    let visible = forwarder.log_lines().join("\n") + &command_line + &forwarder.dsn + &body;
    for secret in [READER.1, "wrong-hunter2", "a2V5LW9mLW91cnM="] {
        assert!(!visible.contains(secret), "{secret} is visible");
    }
}
