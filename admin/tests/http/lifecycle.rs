//! Tests of the server's shutdown.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crate::client::{connect, get, read_to_end};
use crate::harness::{Harness, SourceBehavior};

/// Clients in every phase: silent, half-way through a request, waiting for a quote.
fn clients(harness: &Harness) -> Vec<TcpStream> {
    let sent: [&[u8]; 3] = [b"", b"GET /hea", b"GET /attestation HTTP/1.0\r\n\r\n"];
    let clients = sent.map(|bytes| {
        let mut stream = connect(harness.address());
        stream.write_all(bytes).unwrap();
        stream
    });
    harness.wait_for_quote();
    clients.into()
}

#[test]
fn stop_ends_the_thread_and_every_connection() {
    let harness = Harness::new(SourceBehavior::Hanging);
    let (clients, address) = (clients(&harness), harness.address());
    assert_eq!(get(address, "/health").status, 200);
    assert!(harness.server.stop());
    // The thread, its tasks and the hanging quote have dropped the source.
    assert_eq!(Arc::strong_count(&harness.source), 1);
    for client in clients {
        assert_eq!(read_to_end(&client), b"");
    }
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn drop_stops_the_server() {
    let harness = Harness::new(SourceBehavior::Hanging);
    let (clients, address) = (clients(&harness), harness.address());
    drop(harness.server);
    assert_eq!(Arc::strong_count(&harness.source), 1);
    drop(clients);
    assert!(TcpStream::connect(address).is_err());
}
