//! Bytes that are almost TLS, before, in and after the handshake: whatever they
//! are, the connection ends with a reason, and nothing panics.

use std::io::Read;
use std::net::Shutdown;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::harness::READ_SECRET;
use crate::harness::client::TcpClient;
use crate::harness::message::{PROTOCOL_3_0, SSL_REQUEST, query, startup};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("noise::mutated_client_hellos", mutated_client_hellos);
    suite.add("noise::broken_records", broken_records);
}

/// xorshift: the same numbers in every run.
struct Dice(u32);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % sides
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
        connection.write_tls(&mut bytes).expect("a Vec takes all");
    }
    bytes
}

fn mutated_client_hellos(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut dice = Dice(0x5eed_1234);
    for round in 0..400 {
        let mut bytes = client_hello(fixture);
        for _ in 0..1 + dice.roll(4) {
            // Half of the time among the lengths and versions at the front.
            let reach = if dice.roll(2) == 0 { 50 } else { bytes.len() };
            let place = dice.roll(reach.min(bytes.len()));
            bytes[place] ^= 1 << dice.roll(8);
        }
        // The first byte decides whether it is TLS at all: that is tested elsewhere.
        bytes[0] = 0x16;
        if dice.roll(3) == 0 {
            // In two records, the second perhaps of another kind.
            let cut = 6 + dice.roll(bytes.len() - 6);
            let rest = bytes.split_off(cut);
            let length = u16::try_from(cut - 5).expect("a short record");
            bytes[3..5].copy_from_slice(&length.to_be_bytes());
            let length = u16::try_from(rest.len()).expect("a short record");
            bytes.extend([[0x16, 0x14, 0x15, 0x17][dice.roll(4)], 3, 3]);
            bytes.extend(length.to_be_bytes());
            bytes.extend(rest);
        }
        if dice.roll(4) == 0 {
            bytes.truncate(1 + dice.roll(bytes.len()));
        }
        let mut tcp = TcpClient::connect(sidecar.address());
        if round % 2 == 0 {
            tcp.send(&SSL_REQUEST);
            let mut answer = [0];
            tcp.stream.read_exact(&mut answer).expect("S");
        }
        tcp.send(&bytes);
        // On such bytes it may have hung up already.
        let _ = tcp.stream.shutdown(Shutdown::Write);
        tcp.read_to_end();
    }
    assert_nothing_panicked(&sidecar);
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
}

/// Records that no key of the session made, sent past our own TLS.
fn broken_records(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let record = |kind: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).expect("a short record");
        [&[kind, 3, 3][..], &length.to_be_bytes(), body].concat()
    };
    let shapes = [
        ("forged data", record(0x17, &[0x5a; 100])),
        ("empty data", record(0x17, &[])),
        ("too short to be sealed", record(0x17, &[0; 10])),
        ("as long as it can be", record(0x17, &[1; 16_640])),
        ("longer than it can be", record(0x17, &[1; 16_641])),
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
        ("an unknown kind", record(0x42, b"hello")),
        ("plain PostgreSQL", query("select 1")),
        (
            "a plain startup",
            startup(PROTOCOL_3_0, &[("user", "teesql_read")]),
        ),
        ("zeros", vec![0; 1000]),
    ];
    for (what, bytes) in &shapes {
        // In place of the startup, of the password, and of a query.
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
            // On such bytes it may have hung up already.
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
