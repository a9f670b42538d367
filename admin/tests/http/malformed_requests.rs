//! Malformed requests get at most one response, and then the connection is closed.
//!
//! Each test appends a request to `/attestation`. If it were smuggled through, it would show as a
//! second response and as a quote.

use std::io::{Read, Write};

use crate::client::{Response, connect, exchange, get, read_to_end, request};
use crate::harness::{Harness, SourceBehavior};

const SMUGGLED: &str = "GET /attestation HTTP/1.1\r\nHost: sidecar\r\n\r\n";

/// The status of the only response to `bytes` followed by [`SMUGGLED`]; 0 without a response.
fn status(harness: &Harness, bytes: &str) -> u16 {
    let text = exchange(harness.address(), format!("{bytes}{SMUGGLED}").as_bytes());
    let responses = text.matches("HTTP/1.").count();
    assert!(responses <= 1, "{bytes:?}: {text}");
    assert_eq!(harness.source.calls(), 0, "{bytes:?}");
    text.get(9..12).map_or(0, |status| status.parse().unwrap())
}

/// Checks the status of the only response to each request.
fn check_all(requests: &[(&str, u16)]) {
    let harness = Harness::new(SourceBehavior::Good);
    for (bytes, expected) in requests {
        assert_eq!(status(&harness, bytes), *expected, "{bytes:?}");
    }
    assert_eq!(get(harness.address(), "/health").status, 200);
}

#[test]
fn declared_bodies_are_rejected() {
    check_all(&[
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 48\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
            413,
        ),
        (
            "HEAD /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            413,
        ),
        (
            "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            405,
        ),
        // Declares an empty body.
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            200,
        ),
    ]);
}

#[test]
fn contradictory_lengths_are_rejected() {
    check_all(&[
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            413,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 48\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 48\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            400,
        ),
        (
            "GET /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
    ]);
}

#[test]
fn malformed_lines_smuggle_no_request() {
    check_all(&[
        // obs-fold.
        ("GET /health HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        // Bare LF ends a line, as RFC 9112, section 2.2, allows: the request after it gets no
        // response.
        ("GET /health HTTP/1.1\nHost: a\n\n", 200),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX: b\n\n", 200),
        // Bare CR does not end a line.
        ("GET /health HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        ("GET  /health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ]);
}

#[test]
fn other_protocols_are_rejected() {
    check_all(&[
        ("GET /health\r\n", 400),
        ("GET /health HTTP/0.9\r\n\r\n", 400),
        ("GET /health HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        ("GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 0),
        ("\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03", 400),
        // The upgrade is ignored.
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
            200,
        ),
        ("CONNECT sidecar:5432 HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    ]);
}

#[test]
fn request_targets_and_host_headers_are_checked() {
    check_all(&[
        // RFC 9112, section 3.2.2: a server must accept the absolute form. Nothing is forwarded.
        (
            "GET http://elsewhere/health HTTP/1.1\r\nHost: a\r\n\r\n",
            200,
        ),
        ("GET http://elsewhere/x HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET health HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /health HTTP/1.0\r\n\r\n", 200),
    ]);
}

#[test]
fn pipelined_and_keep_alive_requests_get_one_response() {
    check_all(&[
        ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            200,
        ),
        (
            "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            200,
        ),
    ]);
}

#[test]
fn oversized_request_heads_are_rejected() {
    let harness = Harness::new(SourceBehavior::Good);
    let head = |headers: &str| format!("GET /health HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    let sized = |bytes: usize| head(&format!("X: {}\r\n", "x".repeat(bytes)));
    assert_eq!(request(harness.address(), &sized(7_000)).status, 200);
    assert_eq!(request(harness.address(), &sized(9_000)).status, 431);
    assert_eq!(request(harness.address(), &sized(200_000)).status, 431);
    let endless = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9_000));
    assert_eq!(request(harness.address(), &endless).status, 431);
    assert_eq!(
        request(harness.address(), &head(&"A: b\r\n".repeat(63))).status,
        200
    );
    assert_eq!(
        request(harness.address(), &head(&"A: b\r\n".repeat(64))).status,
        431
    );
}

#[test]
fn a_client_that_sends_a_large_body_still_receives_the_response() {
    let harness = Harness::new(SourceBehavior::Good);
    let mut stream = connect(harness.address());
    let head = "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n";
    let request = format!("{head}{}", "x".repeat(200_000));
    stream.write_all(request.as_bytes()).unwrap();
    // No reset either: on some systems it would overtake the response.
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let response = Response::parse(&text);
    assert_eq!(
        (response.status, response.error().as_str()),
        (413, "request bodies are not accepted")
    );
    assert_eq!(response.header("connection"), Some("close"));
}

#[test]
fn a_request_sent_byte_by_byte_is_parsed() {
    let harness = Harness::new(SourceBehavior::Good);
    let mut stream = connect(harness.address());
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    let text = String::from_utf8(read_to_end(&stream)).unwrap();
    assert_eq!(Response::parse(&text).status, 200);
}
