//! Bad start-up packets and bad passwords, inside TLS.

use crate::harness::READ_SECRET;
use crate::harness::client::{Client, CloseKind, TlsNegotiation};
use crate::harness::message::{
    self, CANCEL_CODE, GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, startup, tagged, untagged,
};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::invalid_openings::Answer::{Fatal, Nothing};
use crate::invalid_openings::{Bystander, Case, case, fatal, reason};

pub(crate) fn add(suite: &mut Suite) {
    for opening in TlsNegotiation::ALL {
        let name = format!("startup::packets::{opening}");
        suite.add(&name, move |fixture| startups(fixture, opening));
    }
    suite.add("startup::passwords", passwords);
}

fn startups(fixture: &Fixture, opening: TlsNegotiation) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    let raw = |tail: &[u8]| untagged(&[&PROTOCOL_3_0.to_be_bytes()[..], tail].concat());
    let header = |length: u32| [length.to_be_bytes(), PROTOCOL_3_0.to_be_bytes()].concat();
    let length = Fatal("08P01", "invalid length of startup packet");
    let layout = Fatal(
        "08P01",
        "invalid startup packet layout: expected terminator as last byte",
    );
    let no_user = Fatal(
        "28000",
        "no PostgreSQL user name specified in startup packet",
    );
    let twice = Fatal(
        "08P01",
        "more than one user name specified in startup packet",
    );
    let latin1 = Fatal(
        "08P01",
        "user name specified in startup packet is not UTF-8",
    );
    let in_tls = Fatal("08P01", "received a request for encryption in TLS");
    let version = |text| Fatal("0A000", text);
    let long = "x".repeat(9_995);
    for case in [
        case("length 0", header(0), length, "invalid_startup_length"),
        case("length 7", header(7), length, "invalid_startup_length"),
        case(
            "length 10,001",
            header(10_001),
            length,
            "invalid_startup_length",
        ),
        case(
            "length 4 GB",
            header(u32::MAX),
            length,
            "invalid_startup_length",
        ),
        case(
            "10,006 real bytes",
            startup(PROTOCOL_3_0, &[("user", &long)]),
            length,
            "invalid_startup_length",
        ),
        case(
            "no parameters",
            startup(PROTOCOL_3_0, &[]),
            no_user,
            "missing_user",
        ),
        case(
            "no user",
            startup(PROTOCOL_3_0, &[("database", "via_scram")]),
            no_user,
            "missing_user",
        ),
        case(
            "empty user",
            startup(PROTOCOL_3_0, &[("user", "")]),
            no_user,
            "missing_user",
        ),
        case(
            "two users",
            startup(
                PROTOCOL_3_0,
                &[("user", "teesql_read"), ("user", "postgres")],
            ),
            twice,
            "repeated_user",
        ),
        case(
            "user in Latin 1",
            raw(b"user\0fran\xe7ois\0\0"),
            latin1,
            "user_not_utf8",
        ),
        case(
            "NUL inside the user",
            raw(b"user\0teesql\0_read\0\0"),
            layout,
            "malformed_startup",
        ),
        case(
            "no terminator",
            raw(b"user\0teesql_read\0"),
            layout,
            "malformed_startup",
        ),
        case("no value", raw(b"user\0"), layout, "malformed_startup"),
        case(
            "bytes behind the terminator",
            raw(b"user\0teesql_read\0\0database\0x\0"),
            layout,
            "malformed_startup",
        ),
        case("nothing at all", raw(b""), layout, "malformed_startup"),
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
            in_tls,
            "encryption_request_in_tls",
        ),
        case(
            "GSSENCRequest in TLS",
            GSSENC_REQUEST,
            in_tls,
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
            "cancel without anything",
            untagged(&CANCEL_CODE.to_be_bytes()),
            Nothing,
            "malformed_cancel",
        ),
        case(
            "HTTP in TLS",
            *b"GET / HTTP/1.1\r\n\r\n",
            length,
            "invalid_startup_length",
        ),
    ] {
        let mut client = Client::open(&fixture.harness, sidecar.address(), opening);
        client.send(&case.bytes);
        expect_answer(&mut client, &case);
        assert_eq!(
            reason(&sidecar, &client.tls.sock),
            case.reason,
            "{}",
            case.name
        );
        bystander.is_well();
    }
}

fn passwords(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = Bystander::new(fixture, &sidecar);
    let size = Fatal("08P01", "invalid password packet size");
    let header = |length: u32| [&b"p"[..], &length.to_be_bytes()].concat();
    let with_nul = [READ_SECRET.as_bytes(), b"\0\0"].concat();
    let behind = [READ_SECRET.as_bytes(), b"\0behind\0"].concat();
    for case in [
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
            "a startup again",
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
            "bytes behind the terminator",
            tagged(b'p', &behind),
            size,
            "malformed_password",
        ),
    ] {
        let mut client = fixture.client(sidecar.address());
        client.start("teesql_read", "via_scram");
        // The sidecar may refuse, and close, before it was sent all of it.
        let _ = client.try_send(&case.bytes);
        expect_answer(&mut client, &case);
        assert_eq!(
            reason(&sidecar, &client.tls.sock),
            case.reason,
            "{}",
            case.name
        );
        bystander.is_well();
    }
}

fn expect_answer(client: &mut Client, case: &Case) {
    match case.answer {
        Fatal(code, text) => {
            let refusal = client.read().map(|message| message.error());
            assert_eq!(refusal, Ok(fatal(code, text)), "{}", case.name);
            assert_eq!(client.expect_close(), CloseKind::Clean, "{}", case.name);
        }
        Nothing => assert_eq!(client.expect_close(), CloseKind::Clean, "{}", case.name),
    }
}
