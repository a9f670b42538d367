//! Tests of an upstream that violates the protocol during the login, because it is not Postgres or is
//! malicious.

use std::io::{self, Write};
use std::net::TcpStream;

use crate::harness::READWRITE_SECRET;
use crate::harness::fake_server::{
    FakeServer, accept_login, error_response, is_version_probe, read_message, read_startup,
};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, tagged};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::upstream::{failed, refusal};

pub(crate) fn add(suite: &mut Suite) {
    for (name, case) in VIOLATIONS {
        suite.add(
            &format!("upstream_protocol_errors::{name}"),
            move |fixture| login_fails(fixture, case),
        );
    }
}

type Script = fn(&mut TcpStream) -> io::Result<()>;

/// The script of the fake server, the SQLSTATE and text for the client, and the reason code.
type Violation = (Script, &'static str, &'static str, &'static str);

fn request_authentication(stream: &mut TcpStream, code: u32, rest: &[u8]) -> io::Result<()> {
    stream.write_all(&tagged(b'R', &[&code.to_be_bytes()[..], rest].concat()))
}

/// Starts SCRAM and responds to the client's first message with `response`, in which `{nonce}` is
/// replaced by the client's nonce.
pub(crate) fn scram(stream: &mut TcpStream, response: &str) -> io::Result<()> {
    request_authentication(stream, 10, b"SCRAM-SHA-256\0\0")?;
    let (_, first) = read_message(stream)?;
    let first = String::from_utf8_lossy(&first).into_owned();
    let nonce = first.split("r=").nth(1).unwrap_or_default();
    request_authentication(stream, 11, response.replace("{nonce}", nonce).as_bytes())
}

const VIOLATIONS: [(&str, Violation); 18] = [
    (
        "closes_immediately",
        (|_| Ok(()), "57P03", "early eof", "postgres_early_eof"),
    ),
    (
        "closes_before_password_request",
        (
            |s| read_startup(s).map(drop),
            "57P03",
            "early eof",
            "postgres_early_eof",
        ),
    ),
    (
        "closes_after_the_password",
        (
            |s| {
                read_startup(s)?;
                request_authentication(s, 3, &[])?;
                read_message(s).map(drop)
            },
            "57P03",
            "early eof",
            "postgres_early_eof",
        ),
    ),
    (
        "closes_within_a_message",
        (
            |s| {
                read_startup(s)?;
                s.write_all(&[b'R', 0, 0])
            },
            "57P03",
            "early eof",
            "postgres_early_eof",
        ),
    ),
    (
        "answers_http",
        (
            |s| {
                read_startup(s)?;
                s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            },
            "57P03",
            "unexpected message 0x48 from the server",
            "postgres_unexpected_message",
        ),
    ),
    (
        "ready_before_ok",
        (
            |s| {
                read_startup(s)?;
                s.write_all(&tagged(b'Z', b"I"))
            },
            "57P03",
            "unexpected message 0x5a from the server",
            "postgres_unexpected_message",
        ),
    ),
    (
        "huge_message",
        (
            |s| {
                read_startup(s)?;
                s.write_all(&[b'R', 0x7f, 0xff, 0xff, 0xff])
            },
            "57P03",
            "message 0x52 of 2147483647 bytes from the server is too long",
            "postgres_message_too_long",
        ),
    ),
    (
        "length_0",
        (
            |s| {
                read_startup(s)?;
                s.write_all(&[b'R', 0, 0, 0, 0])
            },
            "57P03",
            "malformed message from the server: length below 4",
            "postgres_malformed",
        ),
    ),
    (
        "requests_gssapi",
        (
            |s| {
                read_startup(s)?;
                request_authentication(s, 7, &[])
            },
            "57P03",
            "the server asks for an authentication method that is not supported (GSSAPI)",
            "postgres_auth_method",
        ),
    ),
    (
        "sasl_without_scram",
        (
            |s| {
                read_startup(s)?;
                request_authentication(s, 10, b"OAUTHBEARER\0SCRAM-SHA-256-PLUS\0\0")
            },
            "57P03",
            "the server asks for an authentication method that is not supported (SASL without SCRAM-SHA-256)",
            "postgres_auth_method",
        ),
    ),
    (
        "requests_password_twice",
        (
            |s| {
                read_startup(s)?;
                request_authentication(s, 3, &[])?;
                read_message(s)?;
                request_authentication(s, 3, &[])
            },
            "57P03",
            "malformed message from the server: Authentication out of order",
            "postgres_malformed",
        ),
    ),
    (
        "md5_with_short_salt",
        (
            |s| {
                read_startup(s)?;
                request_authentication(s, 5, &[1, 2])
            },
            "57P03",
            "malformed message from the server: md5 salt",
            "postgres_malformed",
        ),
    ),
    (
        "scram_with_2_billion_iterations",
        (
            |s| {
                read_startup(s)?;
                scram(s, "r={nonce}x,s=c2FsdHNhbHRzYWx0,i=2147483647")?;
                read_message(s).map(drop)
            },
            "57P03",
            "the server asks for 2147483647 SCRAM iterations, which is too many",
            "postgres_scram_iterations",
        ),
    ),
    (
        "scram_with_another_nonce",
        (
            |s| {
                read_startup(s)?;
                scram(s, "r=abcdef,s=c2FsdHNhbHRzYWx0,i=4096")?;
                read_message(s).map(drop)
            },
            "57P03",
            "the server's SCRAM nonce does not continue ours",
            "postgres_scram_nonce",
        ),
    ),
    (
        "scram_with_wrong_signature",
        (
            |s| {
                read_startup(s)?;
                scram(s, "r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096")?;
                read_message(s)?;
                request_authentication(s, 12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
            },
            "57P03",
            "the server's SCRAM signature is wrong: it does not know the password",
            "postgres_scram_signature",
        ),
    ),
    (
        "scram_cut_short_by_ok",
        (
            |s| {
                read_startup(s)?;
                scram(s, "r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096")?;
                read_message(s)?;
                accept_login(s)
            },
            "57P03",
            "the server ended SCRAM without proving that it knows the password",
            "postgres_scram_no_proof",
        ),
    ),
    (
        "endless_notices",
        (
            |s| {
                read_startup(s)?;
                let notice = tagged(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhm\0\0");
                for _ in 0..100_000 {
                    s.write_all(&notice)?;
                }
                Ok(())
            },
            "57P03",
            "too many notices from the server",
            "postgres_too_many_notices",
        ),
    ),
    (
        "starting_up",
        (
            |s| {
                read_startup(s)?;
                s.write_all(&error_response(
                    "57P03",
                    "the database system is starting up\r\n\x07",
                ))
            },
            "57P03",
            "the database system is starting up    (SQLSTATE 57P03)",
            "postgres_refused",
        ),
    ),
];

fn login_fails(fixture: &Fixture, (script, code, text, reason): Violation) {
    let postgres = FakeServer::start(move |mut stream| {
        // The script is for logins only.
        if is_version_probe(&stream)? {
            read_startup(&mut stream)?;
            let body = [PROTOCOL_3_0.to_be_bytes(), [0; 4]].concat();
            return stream.write_all(&tagged(b'v', &body));
        }
        script(&mut stream)
    });
    let sidecar = Sidecar::start(&fixture.settings_for_fake(&postgres));
    for _ in 0..2 {
        let (error, logged) = refusal(fixture, &sidecar, "teesql_readwrite", READWRITE_SECRET, "d");
        assert_eq!(error, failed(code, text));
        assert_eq!(logged, reason);
    }
}
