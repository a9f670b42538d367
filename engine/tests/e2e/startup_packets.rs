//! Tests of invalid start-up packets and password messages inside TLS.

use crate::harness::READ_SECRET;
use crate::harness::client::{Client, CloseKind, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::message::{
    self, CANCEL_CODE, GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, startup, tagged, untagged,
};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::invalid_openings::ExpectedResponse::{self, Fatal, Nothing};
use crate::invalid_openings::{Bystander, Case, case, fatal, reason};

pub(crate) fn add(suite: &mut Suite) {
    for negotiation in TlsNegotiation::ALL {
        let name = format!("startup_packets::refuses_invalid_packets::{negotiation}");
        suite.add(&name, move |fixture| {
            refuses_invalid_packets(fixture, negotiation)
        });
    }
    suite.add(
        "startup_packets::refuses_invalid_passwords",
        refuses_invalid_passwords,
    );
}

const INVALID_LENGTH: ExpectedResponse = Fatal("08P01", "invalid length of startup packet");
const INVALID_LAYOUT: ExpectedResponse = Fatal(
    "08P01",
    "invalid startup packet layout: expected terminator as last byte",
);
const NO_USER: ExpectedResponse = Fatal(
    "28000",
    "no PostgreSQL user name specified in startup packet",
);
const REPEATED_USER: ExpectedResponse = Fatal(
    "08P01",
    "more than one user name specified in startup packet",
);
const USER_NOT_UTF8: ExpectedResponse = Fatal(
    "08P01",
    "user name specified in startup packet is not UTF-8",
);
const REQUEST_IN_TLS: ExpectedResponse = Fatal("08P01", "received a request for encryption in TLS");

fn invalid_lengths() -> Vec<Case> {
    let header = |length: u32| [length.to_be_bytes(), PROTOCOL_3_0.to_be_bytes()].concat();
    let long = "x".repeat(9_995);
    vec![
        case(
            "length 0",
            header(0),
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
        case(
            "length 7",
            header(7),
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
        case(
            "length 10,001",
            header(10_001),
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
        case(
            "length 4 GB",
            header(u32::MAX),
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
        case(
            "10,006 real bytes",
            startup(PROTOCOL_3_0, &[("user", &long)]),
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
    ]
}

fn invalid_parameters() -> Vec<Case> {
    let raw = |tail: &[u8]| untagged(&[&PROTOCOL_3_0.to_be_bytes()[..], tail].concat());
    vec![
        case(
            "no parameters",
            startup(PROTOCOL_3_0, &[]),
            NO_USER,
            "missing_user",
        ),
        case(
            "no user",
            startup(PROTOCOL_3_0, &[("database", "via_scram")]),
            NO_USER,
            "missing_user",
        ),
        case(
            "empty user",
            startup(PROTOCOL_3_0, &[("user", "")]),
            NO_USER,
            "missing_user",
        ),
        case(
            "two users",
            startup(
                PROTOCOL_3_0,
                &[("user", "teesql_read"), ("user", "postgres")],
            ),
            REPEATED_USER,
            "repeated_user",
        ),
        case(
            "user in Latin 1",
            raw(b"user\0fran\xe7ois\0\0"),
            USER_NOT_UTF8,
            "user_not_utf8",
        ),
        case(
            "NUL inside the user",
            raw(b"user\0teesql\0_read\0\0"),
            INVALID_LAYOUT,
            "malformed_startup",
        ),
        case(
            "no terminator",
            raw(b"user\0teesql_read\0"),
            INVALID_LAYOUT,
            "malformed_startup",
        ),
        case(
            "no value",
            raw(b"user\0"),
            INVALID_LAYOUT,
            "malformed_startup",
        ),
        case(
            "bytes after the terminator",
            raw(b"user\0teesql_read\0\0database\0x\0"),
            INVALID_LAYOUT,
            "malformed_startup",
        ),
        case("empty body", raw(b""), INVALID_LAYOUT, "malformed_startup"),
    ]
}

fn invalid_requests() -> Vec<Case> {
    let version = |text| Fatal("0A000", text);
    vec![
        case(
            "protocol 2.0",
            startup(0x0002_0000, &[]),
            version("unsupported frontend protocol 2.0: server supports 3.0 to 3.2"),
            "unsupported_protocol",
        ),
        case(
            "protocol 9.9",
            startup(0x0009_0009, &[]),
            version("unsupported frontend protocol 9.9: server supports 3.0 to 3.2"),
            "unsupported_protocol",
        ),
        case(
            "SSLRequest in TLS",
            SSL_REQUEST,
            REQUEST_IN_TLS,
            "encryption_request_in_tls",
        ),
        case(
            "GSSENCRequest in TLS",
            GSSENC_REQUEST,
            REQUEST_IN_TLS,
            "encryption_request_in_tls",
        ),
        case(
            "cancel with a key of 3 bytes",
            message::cancel(1, &[1, 2, 3]),
            Nothing,
            "malformed_cancel",
        ),
        case(
            "cancel with a key of 257 bytes",
            message::cancel(1, &[1; 257]),
            Nothing,
            "malformed_cancel",
        ),
        case(
            "cancel without process id and key",
            untagged(&CANCEL_CODE.to_be_bytes()),
            Nothing,
            "malformed_cancel",
        ),
        case(
            "HTTP in TLS",
            *b"GET / HTTP/1.1\r\n\r\n",
            INVALID_LENGTH,
            "invalid_startup_length",
        ),
    ]
}

fn refuses_invalid_packets(fixture: &Fixture, negotiation: TlsNegotiation) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    let cases = invalid_lengths()
        .into_iter()
        .chain(invalid_parameters())
        .chain(invalid_requests());
    for case in cases {
        let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
        client.send(&case.bytes);
        expect_response(&mut client, &case);
        assert_eq!(
            reason(&sidecar, &client.tls.sock),
            case.reason,
            "{}",
            case.name
        );
        bystander.assert_unaffected();
    }
}

fn invalid_passwords() -> Vec<Case> {
    let size = Fatal("08P01", "invalid password packet size");
    let header = |length: u32| [&b"p"[..], &length.to_be_bytes()].concat();
    let with_nul = [READ_SECRET.as_bytes(), b"\0\0"].concat();
    let trailing = [READ_SECRET.as_bytes(), b"\0trailing\0"].concat();
    vec![
        case(
            "a query",
            message::query("select 1"),
            Fatal("08P01", "expected password response, got message type 81"),
            "unexpected_message",
        ),
        case(
            "terminate",
            tagged(b'X', &[]),
            Fatal("08P01", "expected password response, got message type 88"),
            "unexpected_message",
        ),
        case(
            "a second startup",
            startup(PROTOCOL_3_0, &[("user", "x")]),
            Fatal("08P01", "expected password response, got message type 0"),
            "unexpected_message",
        ),
        case(
            "1 GB",
            [&header(0x4000_0000)[..], &[b'x'; 100_000]].concat(),
            size,
            "password_too_long",
        ),
        case("4 GB", header(u32::MAX), size, "password_too_long"),
        case(
            "1,025 bytes",
            tagged(b'p', &[b'x'; 1_021]),
            size,
            "password_too_long",
        ),
        case("length 3", header(3), size, "malformed_password"),
        case("empty body", header(4), size, "malformed_password"),
        case(
            "no terminator",
            tagged(b'p', READ_SECRET.as_bytes()),
            size,
            "malformed_password",
        ),
        case(
            "two terminators",
            tagged(b'p', &with_nul),
            size,
            "malformed_password",
        ),
        case(
            "bytes after the terminator",
            tagged(b'p', &trailing),
            size,
            "malformed_password",
        ),
    ]
}

fn refuses_invalid_passwords(fixture: &Fixture) {
    let settings = fixture.settings().set("TEESQL_CLIENT_AUTH", "password");
    let sidecar = Sidecar::start(&settings);
    let mut bystander = Bystander::new(fixture, &sidecar);
    for case in invalid_passwords() {
        let mut client = fixture.client(sidecar.address());
        client.start("teesql_read", "via_scram");
        // The sidecar may refuse and close before it has received everything.
        let _ = client.try_send(&case.bytes);
        expect_response(&mut client, &case);
        assert_eq!(
            reason(&sidecar, &client.tls.sock),
            case.reason,
            "{}",
            case.name
        );
        bystander.assert_unaffected();
    }
}

fn expect_response(client: &mut Client, case: &Case) {
    match case.response {
        Fatal(code, text) => {
            let refusal = client.read().map(|message| message.error());
            assert_eq!(refusal, Ok(fatal(code, text)), "{}", case.name);
            assert_eq!(client.expect_close(), CloseKind::Clean, "{}", case.name);
        }
        Nothing => assert_eq!(client.expect_close(), CloseKind::Clean, "{}", case.name),
    }
}
