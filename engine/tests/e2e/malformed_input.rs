//! Tests of malformed TLS before, during and after the handshake: the connection ends with a reason
//! code, and nothing panics.

use std::net::Shutdown;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::harness::READ_SECRET;
use crate::harness::client::TcpClient;
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, SSL_REQUEST, query, startup};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "malformed_input::survives_mutated_client_hellos",
        mutated_client_hellos,
    );
    suite.add("malformed_input::refuses_forged_records", forged_records);
}

/// An xorshift generator with a fixed seed: the same numbers in every run.
struct XorShift(u32);

impl XorShift {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % limit
    }
}

fn assert_nothing_panicked(sidecar: &Sidecar) {
    let panics: Vec<String> = sidecar
        .log_lines()
        .into_iter()
        .filter(|line| line.contains("panic"))
        .collect();
    let first = panics.first();
    assert!(panics.is_empty(), "{} panics: {first:?}", panics.len());
}

fn client_hello(fixture: &Fixture) -> Vec<u8> {
    let config = Arc::new(fixture.harness.certificates.client(Some(b"postgresql")));
    let name = ServerName::try_from("localhost").expect("a good name");
    let mut connection = ClientConnection::new(config, name).expect("good settings");
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection
            .write_tls(&mut bytes)
            .expect("a Vec accepts everything");
    }
    bytes
}

fn mutated_client_hellos(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut random = XorShift(0x5eed_1234);
    for round in 0..400 {
        let mut bytes = client_hello(fixture);
        for _ in 0..1 + random.below(4) {
            // Half of the changes are in the lengths and versions at the front.
            let reach = if random.below(2) == 0 {
                50
            } else {
                bytes.len()
            };
            let position = random.below(reach.min(bytes.len()));
            bytes[position] ^= 1 << random.below(8);
        }
        // The first byte decides whether it is TLS, which invalid_openings tests.
        bytes[0] = 0x16;
        if random.below(3) == 0 {
            // Split into two records, the second possibly of another type.
            let cut = 6 + random.below(bytes.len() - 6);
            let rest = bytes.split_off(cut);
            let length = u16::try_from(cut - 5).expect("a short record");
            bytes[3..5].copy_from_slice(&length.to_be_bytes());
            let length = u16::try_from(rest.len()).expect("a short record");
            bytes.extend([[0x16, 0x14, 0x15, 0x17][random.below(4)], 3, 3]);
            bytes.extend(length.to_be_bytes());
            bytes.extend(rest);
        }
        if random.below(4) == 0 {
            bytes.truncate(1 + random.below(bytes.len()));
        }
        let mut tcp = TcpClient::connect(sidecar.address());
        if round % 2 == 0 {
            tcp.send(&SSL_REQUEST);
            tcp.expect_prefix(b"S");
        }
        tcp.send(&bytes);
        // The sidecar may have closed the connection already.
        let _ = tcp.stream.shutdown(Shutdown::Write);
        tcp.read_to_end();
    }
    assert_nothing_panicked(&sidecar);
    fixture.session(&sidecar).terminate();
}

/// Records that bypass our own TLS and are not encrypted with a key of the session.
fn forged_records(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let record = |kind: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).expect("a short record");
        [&[kind, 3, 3][..], &length.to_be_bytes(), body].concat()
    };
    let forged = [
        ("forged data", record(0x17, &[0x5a; 100])),
        ("empty data", record(0x17, &[])),
        ("too short for encrypted data", record(0x17, &[0; 10])),
        ("of the maximum length", record(0x17, &[1; 16_640])),
        ("above the maximum length", record(0x17, &[1; 16_641])),
        ("a ClientHello again", client_hello(fixture)),
        (
            "a handshake message",
            record(0x16, &[20, 0, 0, 4, 1, 2, 3, 4]),
        ),
        ("a fatal alert in plaintext", record(0x15, &[2, 40])),
        ("a warning in plaintext", record(0x15, &[1, 90])),
        (
            "ChangeCipherSpec",
            [record(0x14, &[1]), record(0x14, &[1])].concat(),
        ),
        ("an unknown type", record(0x42, b"hello")),
        ("plain PostgreSQL", query("select 1")),
        (
            "a plain startup",
            startup(PROTOCOL_3_0, &[("user", "teesql_read")]),
        ),
        ("zeros", vec![0; 1000]),
    ];
    for (what, bytes) in &forged {
        // Instead of the StartupMessage, of the password, and of a query.
        for progress in 0..3 {
            let mut client = fixture.client(sidecar.address());
            if progress > 0 {
                let response = client.start("teesql_read", "via_scram");
                if progress > 1 {
                    client
                        .authenticate(READ_SECRET, response)
                        .expect("the login succeeds");
                }
            }
            let tcp = &mut client.tls.sock;
            tcp.send(bytes);
            // The sidecar may have closed the connection already.
            let _ = tcp.stream.shutdown(Shutdown::Write);
            tcp.read_to_end();
            let line = sidecar.await_connection_end(client.local_address());
            let reason = line["reason"].as_str().expect("a code");
            let known = reason.starts_with("tls_") || reason.starts_with("client_");
            assert!(known, "{what}, {progress}: {line}");
        }
    }
    assert_nothing_panicked(&sidecar);
}
