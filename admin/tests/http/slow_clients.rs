//! Clients that take their time, and those that come beside them.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use admin::Settings;

use crate::client::{PATIENCE, connect, exchange, get, read_to_end};
use crate::harness::{Conduct, Stage, wait_until};

/// More than twice the seats that there are.
const LORISES: usize = 150;

/// Keeps [`LORISES`] connections open, sends a byte on each now and then, and replaces what is closed.
fn crawl(address: SocketAddr, stop: &AtomicBool) {
    let begin = || {
        let mut stream = connect(address);
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nX: ");
        stream
    };
    let mut streams: Vec<TcpStream> = (0..LORISES).map(|_| begin()).collect();
    while !stop.load(Ordering::Relaxed) {
        for stream in &mut streams {
            if stream.write_all(b"x").is_err() {
                *stream = begin();
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_served(address: SocketAddr, path: &str) -> bool {
    exchange(address, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).contains(" 200 OK\r\n")
}

#[test]
fn slow_requests_do_not_keep_others_out() {
    let stage = Stage::new(Conduct::Good);
    let (address, stop) = (stage.address(), AtomicBool::new(false));
    let stats = Arc::clone(stage.server.stats());
    std::thread::scope(|scope| {
        scope.spawn(|| crawl(address, &stop));
        wait_until(|| stats.displaced() > 0);
        // Who is held up between connecting and asking may be displaced as well, and asks again.
        let answered = |path| (0..20).any(|_| is_served(address, path));
        let all = (0..50).all(|_| answered("/health"));
        let report = answered("/attestation");
        stop.store(true, Ordering::Relaxed);
        assert!(all && report);
    });
}

#[test]
fn a_request_that_never_ends_is_cut_off() {
    let settings = Settings {
        header_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let stage = Stage::with(Conduct::Good, settings);
    let begun = Instant::now();
    let (silent, mut dribbling) = (connect(stage.address()), connect(stage.address()));
    dribbling
        .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        .unwrap();
    // Bytes do not prolong it.
    while dribbling.write_all(b"X: y\r\n").is_ok() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(read_to_end(&silent), b"");
    wait_until(|| stage.server.stats().too_slow() == 2);
}

#[test]
fn who_does_not_read_its_answer_is_cut_off() {
    let settings = Settings {
        write_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let stage = Stage::with(Conduct::Verbose, settings);
    let mut stream = connect(stage.address());
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let begun = Instant::now();
    while stage.server.stats().too_slow() == 0 {
        assert_eq!(get(stage.address(), "/health").status, 200);
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(read_to_end(&stream).len() < 32 << 20);
}

#[test]
fn a_large_answer_is_given_to_who_reads_it() {
    let stage = Stage::new(Conduct::Verbose);
    let answer = exchange(stage.address(), b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(answer.len() > 32 << 20);
    assert_eq!(stage.server.stats().too_slow(), 0);
}

#[test]
fn nothing_lives_longer_than_a_connection_may() {
    let settings = Settings {
        connection_life: Duration::from_millis(300),
        ..Settings::default()
    };
    let stage = Stage::with(Conduct::Hanging, settings);
    let begun = Instant::now();
    assert_eq!(
        exchange(stage.address(), b"GET /attestation HTTP/1.0\r\n\r\n"),
        ""
    );
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(stage.server.stats().too_slow(), 1);
}

#[test]
fn those_who_wait_for_a_quote_leave_seats_for_others() {
    let stage = Stage::new(Conduct::Hanging);
    let ask = |_| {
        let mut stream = connect(stage.address());
        stream
            .write_all(b"GET /attestation HTTP/1.0\r\n\r\n")
            .unwrap();
        stream
    };
    let waiting: Vec<TcpStream> = (0..100).map(ask).collect();
    wait_until(|| stage.server.stats().reports_limited() == 68);
    for _ in 0..10 {
        assert_eq!(get(stage.address(), "/health").status, 200);
    }
    assert_eq!(stage.actor.calls(), 1);
    drop(waiting);
}
