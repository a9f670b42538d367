//! Tests of invalid first bytes of a connection: the sidecar responds as the protocol allows, logs the
//! reason, and continues to serve other sessions.

use std::net::Shutdown;

use rustls::AlertDescription;

use crate::harness::READ_SECRET;
use crate::harness::client::{Client, TcpClient, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::message::{self, GSSENC_REQUEST, PROTOCOL_3_0, PgError, SSL_REQUEST, startup};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "invalid_openings::refuses_invalid_plaintext",
        refuses_invalid_plaintext,
    );
    suite.add(
        "invalid_openings::refuses_invalid_bytes_after_negotiation",
        refuses_invalid_bytes_after_negotiation,
    );
    suite.add("invalid_openings::refuses_invalid_tls", refuses_invalid_tls);
    suite.add(
        "invalid_openings::logs_truncated_openings",
        logs_truncated_openings,
    );
    suite.add("invalid_openings::refuses_other_alpn", alpn);
    suite.add(
        "invalid_openings::requires_alpn_if_configured",
        required_alpn,
    );
}

/// What the client sends, how the sidecar responds, and the reason code in the log.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) response: ExpectedResponse,
    pub(crate) reason: &'static str,
}

#[derive(Clone, Copy)]
pub(crate) enum ExpectedResponse {
    /// A FATAL ErrorResponse with this SQLSTATE and text, then the close.
    Fatal(&'static str, &'static str),
    /// The close, without a byte before it.
    Nothing,
}

use ExpectedResponse::{Fatal, Nothing};

pub(crate) fn case(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    response: ExpectedResponse,
    reason: &'static str,
) -> Case {
    Case {
        name,
        bytes: bytes.into(),
        response,
        reason,
    }
}

/// A session that stays open during the test and must not be affected.
pub(crate) struct Bystander(Client);

impl Bystander {
    pub(crate) fn new(fixture: &Fixture, sidecar: &Sidecar) -> Self {
        let client = fixture.session(sidecar);
        Self(client)
    }

    pub(crate) fn assert_unaffected(&mut self) {
        assert_eq!(self.0.query_value("select 'unaffected'"), "unaffected");
    }
}

pub(crate) fn reason(sidecar: &Sidecar, tcp: &TcpClient) -> String {
    let line = sidecar.await_connection_end(tcp.local_address());
    line["reason"].as_str().expect("a code").to_owned()
}

pub(crate) fn fatal(code: &str, text: &str) -> PgError {
    PgError {
        severity: "FATAL".to_owned(),
        code: code.to_owned(),
        message: text.to_owned(),
    }
}

const EARLY_BYTES: ExpectedResponse = Fatal(
    "08P01",
    "received unencrypted data after a request for encryption",
);
const TLS_REQUIRED: ExpectedResponse = Fatal(
    "28000",
    "TLS is required: this server takes no plaintext connections",
);

/// Checks the response in plaintext and the reason in the log.
fn expect_response(sidecar: &Sidecar, tcp: &mut TcpClient, case: &Case) {
    let name = case.name;
    match case.response {
        Fatal(code, text) => {
            assert_eq!(
                tcp.read_final_message().error(),
                fatal(code, text),
                "{name}"
            );
        }
        Nothing => assert_eq!(tcp.read_to_end(), b"", "{name}"),
    }
    assert_eq!(reason(sidecar, tcp), case.reason, "{name}");
}

fn invalid_plaintext_cases() -> Vec<Case> {
    let user: &[(&str, &str)] = &[("user", "teesql_read")];
    let with_ssl = |tail: &[u8]| [&SSL_REQUEST[..], tail].concat();
    vec![
        case(
            "startup",
            startup(PROTOCOL_3_0, user),
            TLS_REQUIRED,
            "plaintext_startup",
        ),
        case(
            "startup 3.9999",
            startup(0x0003_270f, user),
            TLS_REQUIRED,
            "plaintext_startup",
        ),
        case("early byte", with_ssl(b"x"), EARLY_BYTES, "early_bytes"),
        case(
            "early ClientHello",
            with_ssl(&[0x16, 3, 1, 2, 0, 1, 0, 1]),
            EARLY_BYTES,
            "early_bytes",
        ),
        case(
            "early startup",
            with_ssl(&startup(PROTOCOL_3_0, user)),
            EARLY_BYTES,
            "early_bytes",
        ),
        case(
            "two SSLRequests in one segment",
            with_ssl(&SSL_REQUEST),
            EARLY_BYTES,
            "early_bytes",
        ),
        case(
            "early byte after GSSENCRequest",
            [&GSSENC_REQUEST[..], b"x"].concat(),
            EARLY_BYTES,
            "early_bytes",
        ),
        case(
            "cancel",
            message::cancel(4711, &[1, 2, 3, 4]),
            Nothing,
            "plaintext_cancel",
        ),
        case(
            "HTTP",
            *b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Nothing,
            "garbage",
        ),
        case("SSH", *b"SSH-2.0-OpenSSH_9.2\r\n", Nothing, "garbage"),
        case("noise", [0xff; 64], Nothing, "garbage"),
        case("zeros", [0; 64], Nothing, "garbage"),
        case(
            "protocol 2.0",
            startup(0x0002_0000, user),
            Nothing,
            "garbage",
        ),
        case(
            "length 10,001",
            [0, 0, 0x27, 0x11, 0, 3, 0, 0],
            Nothing,
            "garbage",
        ),
        case(
            "length 2 GB",
            [0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            Nothing,
            "garbage",
        ),
        case("length 7", [0, 0, 0, 7, 0, 3, 0], Nothing, "garbage"),
        case(
            "invalid TLS version",
            [0x16, 0x02, 0, 0, 5],
            Nothing,
            "garbage",
        ),
        case(
            "PROXY v1",
            *b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            Nothing,
            "proxy_not_allowed",
        ),
        case(
            "PROXY v2",
            *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            Nothing,
            "proxy_not_allowed",
        ),
    ]
}

fn refuses_invalid_plaintext(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    for case in invalid_plaintext_cases() {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(&case.bytes);
        expect_response(&sidecar, &mut tcp, &case);
        bystander.assert_unaffected();
    }
}

/// The request, the sidecar's response to it, and the invalid bytes that follow.
fn cases_after_negotiation() -> Vec<([u8; 8], u8, Case)> {
    let twice = Fatal("08P01", "received a second request for encryption");
    let user: &[(&str, &str)] = &[("user", "teesql_read")];
    vec![
        (
            SSL_REQUEST,
            b'S',
            case("SSLRequest again", SSL_REQUEST, twice, "repeated_request"),
        ),
        (
            SSL_REQUEST,
            b'S',
            case("startup", startup(PROTOCOL_3_0, user), Nothing, "not_tls"),
        ),
        (
            SSL_REQUEST,
            b'S',
            case("GSSENCRequest", GSSENC_REQUEST, Nothing, "not_tls"),
        ),
        (
            SSL_REQUEST,
            b'S',
            case("noise", [0xff; 64], Nothing, "not_tls"),
        ),
        (
            GSSENC_REQUEST,
            b'N',
            case(
                "GSSENCRequest again",
                GSSENC_REQUEST,
                twice,
                "repeated_request",
            ),
        ),
        (
            GSSENC_REQUEST,
            b'N',
            case(
                "startup",
                startup(PROTOCOL_3_0, user),
                TLS_REQUIRED,
                "plaintext_startup",
            ),
        ),
        (
            GSSENC_REQUEST,
            b'N',
            case("noise", [0xff; 64], Nothing, "garbage"),
        ),
    ]
}

/// Invalid bytes after the sidecar has responded with `S` or `N`.
fn refuses_invalid_bytes_after_negotiation(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    for (request, byte, case) in cases_after_negotiation() {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(&request);
        assert_eq!(tcp.read_byte(), byte, "{}", case.name);
        tcp.send(&case.bytes);
        expect_response(&sidecar, &mut tcp, &case);
        bystander.assert_unaffected();
    }
}

/// Invalid TLS records, and whether the sidecar sends an alert.
fn invalid_tls_records() -> Vec<(&'static str, Vec<u8>, bool)> {
    let record = |kind: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).expect("a short record");
        [&[kind, 3, 1][..], &length.to_be_bytes(), body].concat()
    };
    let hello = |kind: u8| [&[kind, 0, 0, 60][..], &[3; 60]].concat();
    let half = record(0x16, &[1, 0, 0, 60, 3, 3, 3, 3]);
    let tls10 = [
        &[1, 0, 0, 41, 3, 1][..],
        &[7; 32],
        &[0, 0, 2, 0, 0x2f, 1, 0],
    ]
    .concat();
    vec![
        ("a ServerHello", record(0x16, &hello(2)), true),
        ("a broken ClientHello", record(0x16, &hello(1)), true),
        (
            "a record of 32 KiB",
            [&[0x16, 3, 1, 0x7f, 0xff][..], &[0; 64]].concat(),
            true,
        ),
        ("a message of 15 MB", record(0x16, &[0xee; 64]), false),
        ("a message of 64 KiB", record(0x16, &[1; 64]), false),
        (
            "another record within a message",
            [half.clone(), record(0x17, &[0; 40])].concat(),
            false,
        ),
        (
            "a message with an invalid continuation",
            [half.clone(), record(0x16, &[0xff; 56])].concat(),
            true,
        ),
        (
            "an alert within a message",
            [half, record(0x15, &[2, 40])].concat(),
            false,
        ),
        ("TLS 1.0", record(0x16, &tls10), true),
    ]
}

/// Invalid TLS: the sidecar logs a failed handshake, and sends an alert where TLS has one.
fn refuses_invalid_tls(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    for (what, bytes, alerted) in invalid_tls_records() {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(&bytes);
        let response = tcp.read_to_end();
        if alerted {
            assert_eq!(response.first(), Some(&0x15), "{what}: {response:02x?}");
        }
        let line = sidecar.await_connection_end(tcp.local_address());
        assert_eq!(line["message"], "TLS handshake failed", "{what}: {line}");
        assert_eq!(line["level"], "WARN", "{what}: {line}");
        let reason = line["reason"].as_str().expect("a code");
        assert!(reason.starts_with("tls_"), "{what}: {line}");
        bystander.assert_unaffected();
    }
    let panicked = sidecar
        .log_lines()
        .iter()
        .any(|line| line.contains("panic"));
    assert!(!panicked, "the log contains a panic");
}

/// Part of an SSLRequest, a ClientHello, a start-up packet or a password, then the close.
fn logs_truncated_openings(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    let sockets = sidecar.sockets();
    let expect_client_gone = |bytes: &[u8], response: &[u8]| {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(bytes);
        tcp.stream.shutdown(Shutdown::Write).expect("a live socket");
        assert_eq!(tcp.read_to_end(), response, "{bytes:02x?}");
        assert_eq!(reason(&sidecar, &tcp), "client_gone", "{bytes:02x?}");
    };
    expect_client_gone(b"", b"");
    for length in 1..SSL_REQUEST.len() {
        expect_client_gone(&SSL_REQUEST[..length], b"");
    }
    expect_client_gone(&SSL_REQUEST, b"S");
    expect_client_gone(&GSSENC_REQUEST, b"N");
    expect_client_gone(&[0x16], b"");
    expect_client_gone(&[0x16, 3, 1, 2, 0, 1, 0], b"");

    let whole = startup(PROTOCOL_3_0, &[("user", "teesql_read")]);
    for length in [0, 3, 7, 8, whole.len() - 1] {
        let mut client = fixture.client(sidecar.address());
        client.send(&whole[..length]);
        let tcp = &client.tls.sock;
        tcp.stream.shutdown(Shutdown::Write).expect("a live socket");
        assert_eq!(
            reason(&sidecar, tcp),
            "client_gone",
            "{length} bytes of a startup"
        );
    }
    for cut in [0, 1, 5, usize::MAX] {
        let mut client = fixture.client(sidecar.address());
        let response = client.start("teesql_read", "via_scram");
        let exchange = client.exchange(READ_SECRET, &response.mechanisms);
        let message = exchange.initial_response();
        let length = cut.min(message.len() - 1);
        client.send(&message[..length]);
        let peer = client.local_address();
        client.disconnect();
        let line = sidecar.await_connection_end(peer);
        assert_eq!(
            line["reason"], "client_gone",
            "{length} bytes of a SCRAM message: {line}"
        );
    }
    bystander.assert_unaffected();
    sidecar.await_sockets(sockets);
}

fn alpn(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    for negotiation in [TlsNegotiation::Direct, TlsNegotiation::SslRequest] {
        let config = fixture.harness.certificates.client(Some(b"h2"));
        let error = Client::connect_with(config, sidecar.address(), negotiation).err();
        let alert = error.and_then(|e| e.into_inner()?.downcast::<rustls::Error>().ok());
        let expected = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(alert.as_deref(), Some(&expected), "{negotiation}");
    }
    // libpq 17 offers ALPN after SSLRequest too.
    let config = fixture.harness.certificates.client(Some(b"postgresql"));
    let client = Client::connect_with(config, sidecar.address(), TlsNegotiation::SslRequest);
    let mut client = client.expect("the TLS handshake succeeds");
    assert_eq!(client.tls.conn.alpn_protocol(), Some(&b"postgresql"[..]));
    client.login_reader();
    client.terminate();
}

fn required_alpn(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings().set("TEESQL_REQUIRE_ALPN", "true"));
    for negotiation in TlsNegotiation::ALL {
        let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
        if negotiation == TlsNegotiation::Direct {
            client.login_reader();
            client.terminate();
            continue;
        }
        client.send(&startup(PROTOCOL_3_0, &[("user", "teesql_read")]));
        let refusal = client.expect_fatal();
        assert_eq!(
            refusal,
            fatal("08P01", "ALPN protocol \"postgresql\" is required"),
            "{negotiation}"
        );
        assert_eq!(
            reason(&sidecar, &client.tls.sock),
            "alpn_missing",
            "{negotiation}"
        );
    }
}
