//! Tests of the probe for the protocol version of Postgres.

use wire::backend::BackendError;
use wire::startup::ProtocolVersion;
use wire::version_probe::{ProbeStep, parse_probe_response, write_probe_request};

use crate::harness::check_startup;
use crate::packets::{authentication, claimed, error, message, recorded};

/// Recorded first responses to the probe. Authentication follows in the same read.
const PG15: &str = "760000000c000300000000000052000000170000000a534352414d2d5348412d3235360000";
const PG18: &str = "760000000c000300020000000052000000170000000a534352414d2d5348412d3235360000";

fn negotiate(version: u32, options: u32, rest: &[u8]) -> Vec<u8> {
    let body = [&version.to_be_bytes()[..], &options.to_be_bytes(), rest].concat();
    message(b'v', &body)
}

/// Parses a response, and checks that each prefix gives the same result or asks for more bytes.
fn response(bytes: &[u8]) -> ProbeStep {
    let whole = parse_probe_response(bytes);
    for split in 0..bytes.len() {
        let part = parse_probe_response(&bytes[..split]);
        assert!(part == ProbeStep::Read || part == whole, "split at {split}");
    }
    whole
}

#[test]
fn requests_a_version_that_no_server_supports() {
    let mut out = Vec::new();
    write_probe_request("some_role\0options\0-c x", &mut out);
    let (startup, consumed) = check_startup(&out).unwrap();
    assert_eq!(consumed, out.len());
    assert_eq!(startup.version().to_string(), "3.9999");
    assert!(startup.parameters().eq([(&b"user"[..], &b"some_role"[..])]));
}

#[test]
fn parses_recorded_responses() {
    assert_eq!(
        response(&recorded(PG15)),
        ProbeStep::Supports(ProtocolVersion::V3_0)
    );
    assert_eq!(
        response(&recorded(PG18)),
        ProbeStep::Supports(ProtocolVersion::V3_2)
    );
}

#[test]
fn newer_versions_are_capped_at_3_2() {
    let v3_2 = ProbeStep::Supports(ProtocolVersion::V3_2);
    assert_eq!(response(&negotiate(0x0003_0003, 0, b"")), v3_2);
    assert_eq!(response(&negotiate(0x0003_270f, 0, b"")), v3_2);
}

#[test]
fn a_server_without_negotiation_supports_3_0() {
    let v3_0 = ProbeStep::Supports(ProtocolVersion::V3_0);
    assert_eq!(response(&authentication(10, b"SCRAM-SHA-256\0\0")), v3_0);
    assert_eq!(
        response(&error("0A000", "unsupported frontend protocol 3.9999")),
        v3_0
    );
}

#[test]
fn other_responses_are_refused() {
    let malformed = ProbeStep::Refuse(BackendError::Malformed("NegotiateProtocolVersion"));
    for bytes in [
        // libpq refuses these three as well: 3.1 never existed, and the word is the whole version.
        negotiate(0x0003_0001, 0, b""),
        negotiate(0x0000_0002, 0, b""),
        negotiate(0x0002_0000, 0, b""),
        negotiate(0x0004_0000, 0, b""),
        negotiate(0x0003_0000, 1, b"_pq_.x\0"),
        negotiate(0x0003_0000, 0, b"x"),
        message(b'v', b"\0\x03\0\0"),
    ] {
        assert_eq!(response(&bytes), malformed);
    }
    let refused = response(&error("57P03", "the database system is starting up"));
    assert!(matches!(
        refused,
        ProbeStep::Refuse(BackendError::Refused { .. })
    ));
    let unexpected = |tag| ProbeStep::Refuse(BackendError::UnexpectedMessage { tag });
    assert_eq!(response(&message(b'N', b"\0")), unexpected(b'N'));
    assert_eq!(response(b"HTTP/1.1 400"), unexpected(b'H'));
    let (tag, length) = (b'v', u32::MAX);
    assert_eq!(
        response(&claimed(b'v', u32::MAX, b"")),
        ProbeStep::Refuse(BackendError::MessageTooLong { tag, length })
    );
}
