//! Tests with slow clients, and with others that connect at the same time.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use admin::Settings;

use crate::client::{TIMEOUT, connect, exchange, get, read_to_end};
use crate::harness::{Harness, SourceBehavior, wait_until};

/// More than twice the number of connection slots.
const SLOW_CLIENTS: usize = 150;

/// A slowloris attack: keeps [`SLOW_CLIENTS`] connections open, sends a byte on each every 50 ms,
/// and replaces those that are closed.
fn run_slow_clients(address: SocketAddr, stop: &AtomicBool) {
    let open = || {
        let mut stream = connect(address);
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nX: ");
        stream
    };
    let mut streams: Vec<TcpStream> = (0..SLOW_CLIENTS).map(|_| open()).collect();
    while !stop.load(Ordering::Relaxed) {
        for stream in &mut streams {
            if stream.write_all(b"x").is_err() {
                *stream = open();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_served(address: SocketAddr, path: &str) -> bool {
    exchange(address, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).contains(" 200 OK\r\n")
}

#[test]
fn slow_requests_do_not_block_new_clients() {
    let harness = Harness::new(SourceBehavior::Good);
    let (address, stop) = (harness.address(), AtomicBool::new(false));
    let stats = Arc::clone(harness.server.stats());
    std::thread::scope(|scope| {
        scope.spawn(|| run_slow_clients(address, &stop));
        wait_until(|| stats.evicted() > 0);
        // A client that is delayed between connect and request may be evicted as well, and retries.
        let answered = |path| (0..20).any(|_| is_served(address, path));
        let all_served = (0..50).all(|_| answered("/health"));
        let report = answered("/attestation");
        stop.store(true, Ordering::Relaxed);
        assert!(all_served && report);
    });
}

#[test]
fn an_endless_request_times_out() {
    let settings = Settings {
        header_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let harness = Harness::with(SourceBehavior::Good, settings);
    let start = Instant::now();
    let (silent, mut slow) = (connect(harness.address()), connect(harness.address()));
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        .unwrap();
    // More bytes do not extend the timeout.
    while slow.write_all(b"X: y\r\n").is_ok() {
        assert!(start.elapsed() < TIMEOUT);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(read_to_end(&silent), b"");
    wait_until(|| harness.server.stats().timed_out() == 2);
}

#[test]
fn a_client_that_does_not_read_times_out() {
    let settings = Settings {
        write_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let harness = Harness::with(SourceBehavior::Verbose, settings);
    let mut stream = connect(harness.address());
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let start = Instant::now();
    while harness.server.stats().timed_out() == 0 {
        assert_eq!(get(harness.address(), "/health").status, 200);
        assert!(start.elapsed() < TIMEOUT);
    }
    assert!(read_to_end(&stream).len() < 32 << 20);
}

#[test]
fn a_large_response_is_sent_completely() {
    let harness = Harness::new(SourceBehavior::Verbose);
    let response = exchange(harness.address(), b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(response.len() > 32 << 20);
    assert_eq!(harness.server.stats().timed_out(), 0);
}

#[test]
fn connections_end_at_their_maximum_lifetime() {
    let settings = Settings {
        connection_lifetime: Duration::from_millis(300),
        ..Settings::default()
    };
    let harness = Harness::with(SourceBehavior::Hanging, settings);
    let start = Instant::now();
    assert_eq!(
        exchange(harness.address(), b"GET /attestation HTTP/1.0\r\n\r\n"),
        ""
    );
    assert!(start.elapsed() < TIMEOUT);
    // It is counted after the connection was closed.
    wait_until(|| harness.server.stats().timed_out() == 1);
}

#[test]
fn waiters_for_a_quote_leave_slots_for_other_clients() {
    let harness = Harness::new(SourceBehavior::Hanging);
    let request = |_| {
        let mut stream = connect(harness.address());
        stream
            .write_all(b"GET /attestation HTTP/1.0\r\n\r\n")
            .unwrap();
        stream
    };
    let waiting: Vec<TcpStream> = (0..100).map(request).collect();
    wait_until(|| harness.server.stats().reports_limited() == 68);
    for _ in 0..10 {
        assert_eq!(get(harness.address(), "/health").status, 200);
    }
    assert_eq!(harness.source.calls(), 1);
    drop(waiting);
}
