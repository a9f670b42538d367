//! Tests of PROXY protocol headers: which addresses may send them, and malformed ones.

use crate::harness::client::{Client, TcpClient};
use crate::harness::fixture::Fixture;
use crate::harness::message::SSL_REQUEST;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "proxy_protocol::accepts_header_from_trusted_proxy",
        accepts_header_from_trusted_proxy,
    );
    suite.add(
        "proxy_protocol::refuses_malformed_headers",
        refuses_malformed_headers,
    );
    suite.add(
        "proxy_protocol::refuses_header_from_other_addresses",
        refuses_header_from_other_addresses,
    );
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.44 198.51.100.7 54321 5433\r\n";

/// TCP over IPv4, 192.0.2.55:54322 to 198.51.100.7:5433, followed by a TLV.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x37\xc6\x33\x64\x07\xd4\x32\x15\x39\x04\0\x01x";

/// `LOCAL`: a health check of the proxy itself.
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A client that sends `header` before the TLS handshake.
fn client_with_header(fixture: &Fixture, sidecar: &Sidecar, header: &[u8]) -> Client {
    let mut tcp = TcpClient::connect(sidecar.address());
    tcp.send(header);
    Client::handshake(fixture.harness.certificates.client(None), tcp)
        .expect("the TLS handshake succeeds")
}

fn accepts_header_from_trusted_proxy(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "10.0.0.0/8,127.0.0.0/8");
    let sidecar = Sidecar::start(&settings);
    for (header, client_in_log) in [
        (V1, Some("192.0.2.44:54321")),
        (V2, Some("192.0.2.55:54322")),
        (V2_LOCAL, None),
        (b"", None),
    ] {
        let mut client = client_with_header(fixture, &sidecar, header);
        client.login_reader();
        let peer = client.local_address();
        client.terminate();
        let line = sidecar.await_connection_end(peer);
        assert_eq!(line["client"].as_str(), client_in_log, "{line}");
    }
    // Byte by byte, and before SSLRequest.
    let mut tcp = TcpClient::connect(sidecar.address());
    for byte in [V2, &SSL_REQUEST].concat() {
        tcp.send(&[byte]);
    }
    tcp.expect_prefix(b"S");
}

fn refuses_malformed_headers(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "127.0.0.0/8");
    let sidecar = Sidecar::start(&settings);
    let long_v1 = [b"PROXY TCP4 ", &[b'1'; 120][..]].concat();
    let repeated = [V1, V1].concat();
    let long_v2 = [&V2[..12], b"\x21\x11\xff\xff"].concat();
    for (bytes, reason) in [
        (&b"PROXY TCP4 1.2.3.4\r\n"[..], "proxy_malformed"),
        (b"PROXY HELLO\r\n", "proxy_malformed"),
        (&long_v1, "proxy_too_long"),
        (&long_v2, "proxy_too_long"),
        (&repeated, "proxy_misplaced"),
    ] {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(bytes);
        assert_eq!(tcp.read_to_end(), b"", "{bytes:?}");
        let line = sidecar.await_connection_end(tcp.local_address());
        assert_eq!(line["reason"], reason, "{bytes:?}: {line}");
    }
}

fn refuses_header_from_other_addresses(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_PROXY_PROTOCOL_FROM", "10.0.0.0/8,::1/128");
    let sidecar = Sidecar::start(&settings);
    for header in [V1, V2] {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(header);
        assert_eq!(tcp.read_to_end(), b"");
        let line = sidecar.await_connection_end(tcp.local_address());
        assert_eq!(line["reason"], "proxy_not_allowed", "{line}");
    }
    // Without a header, the client is accepted.
    fixture.session(&sidecar).terminate();
}
