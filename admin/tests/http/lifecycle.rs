//! The end of the server.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;

use crate::client::{connect, get, read_to_end};
use crate::harness::{Conduct, Stage};

/// Clients of every kind: silent, half-way through a request, waiting for a quote.
fn clients(stage: &Stage) -> Vec<TcpStream> {
    let said: [&[u8]; 3] = [b"", b"GET /hea", b"GET /attestation HTTP/1.0\r\n\r\n"];
    let clients = said.map(|bytes| {
        let mut stream = connect(stage.address());
        stream.write_all(bytes).unwrap();
        stream
    });
    stage.wait_for_quote();
    clients.into()
}

#[test]
fn stopping_ends_the_thread_and_every_connection() {
    let stage = Stage::new(Conduct::Hanging);
    let (clients, address) = (clients(&stage), stage.address());
    assert_eq!(get(address, "/health").status, 200);
    assert!(stage.server.stop());
    // The thread, its tasks and the quote that hung have let go of the source.
    assert_eq!(Arc::strong_count(&stage.actor), 1);
    for client in clients {
        assert_eq!(read_to_end(&client), b"");
    }
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn dropping_is_stopping() {
    let stage = Stage::new(Conduct::Hanging);
    let (clients, address) = (clients(&stage), stage.address());
    drop(stage.server);
    assert_eq!(Arc::strong_count(&stage.actor), 1);
    drop(clients);
    assert!(TcpStream::connect(address).is_err());
}
