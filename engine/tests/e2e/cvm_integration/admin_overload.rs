//! Tests of a flood of requests to the HTTP server, which must affect neither sessions nor certificate
//! renewals.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use attest::agent::Method;

use crate::harness::fixture::Fixture;
use crate::harness::process::TIMEOUT;
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::admin_overload::flood_makes_one_quote_per_interval",
        flood,
    );
    suite.add(
        "cvm_integration::admin_overload::slow_requests_do_not_affect_sessions",
        slow_requests,
    );
}

/// How long the flood lasts.
const DURATION: Duration = Duration::from_secs(5);
/// Requests per second, as long as they do not wait.
const RATE: u32 = 200;
const CLIENTS: u32 = 8;

/// Responses by status.
#[derive(Default)]
struct ResponseCounts {
    ok: AtomicUsize,
    limited: AtomicUsize,
}

fn flood(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent_with(|options| options.quote_time = Duration::from_millis(39));
    let settings = tdx.agent_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_CERTIFICATE_VALIDITY", "3s"));
    let address = sidecar.admin_address();
    http::await_ready(address);
    let mut session = tls::session(Some(&tdx), &sidecar);
    let before = agent.requests(Method::GetTlsKey);
    let (counts, start) = (ResponseCounts::default(), Instant::now());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let counts = &counts;
            scope.spawn(move || send_requests(address, client, start, counts));
        }
    });
    let took = start.elapsed();
    let (ok, limited) = (counts.ok.into_inner(), counts.limited.into_inner());
    // A second passes from the end of one quote to the start of the next.
    let max = usize::try_from(took.as_secs()).expect("small") + 1;
    let quotes = agent.requests(Method::GetQuote);
    assert!((2..=max).contains(&quotes), "{quotes} quotes in {took:?}");
    // Requests with a nonce wait for the next quote, and share it.
    assert!(
        ok > 2 * quotes && limited == 0,
        "{ok} ok, {limited} limited"
    );
    let renewals = agent.requests(Method::GetTlsKey) - before;
    assert!(renewals >= 2, "{renewals} renewals in {took:?}");
    let scrape = Scrape::fetch(address);
    let failed = "teesql_identity_renewals_total{outcome=\"failed\"}";
    assert_eq!(scrape.value(failed), 0.0);
    for (outcome, count) in [
        ("made", quotes),
        ("limited", limited),
        ("shared", ok - quotes),
    ] {
        let series = format!("teesql_attestation_reports_total{{outcome=\"{outcome}\"}}");
        assert_eq!(scrape.value(&series), count as f64, "{outcome}");
    }
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
    tls::session(Some(&tdx), &sidecar).terminate();
}

/// One client of the flood: every other request has a unique nonce.
fn send_requests(address: SocketAddr, client: u32, start: Instant, counts: &ResponseCounts) {
    let pause = Duration::from_secs(1) * CLIENTS / RATE;
    for number in 0_u32.. {
        if start.elapsed() > DURATION {
            return;
        }
        let target = match number % 2 {
            0 => "/attestation".to_owned(),
            _ => format!("/attestation?nonce={client:04x}{number:08x}"),
        };
        let response = http::get(address, &target);
        let counter = match response.status {
            200 => &counts.ok,
            429 => &counts.limited,
            other => panic!("{other}: {}", response.body),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if response.status == 429 {
            let wait = response.header("retry-after").map(str::parse::<u32>);
            assert!(matches!(wait, Some(Ok(1..))), "{wait:?}");
        }
        let next = start + pause * (number + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn slow_requests(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let sidecar = Sidecar::start(&tdx.agent_settings(fixture));
    let address = sidecar.admin_address();
    let mut session = tls::session(Some(&tdx), &sidecar);
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = &stopped;
        for _ in 0..4 {
            scope.spawn(move || send_slowly(address, stopped));
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            tls::session(Some(&tdx), &sidecar).terminate();
            assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
            // The server closes the oldest slow connection to accept a new one.
            assert_eq!(http::get(address, "/health").status, 200);
        }
        stopped.store(true, Ordering::Relaxed);
    });
    let open = sidecar.settled_sockets();
    assert!(open < 40, "{open} sockets are still open");
}

/// Opens more and more connections that send their request byte by byte.
fn send_slowly(address: SocketAddr, stopped: &AtomicBool) {
    let request = format!("GET /attestation HTTP/1.1\r\nHost: {address}\r\nX: ");
    let start = Instant::now();
    let mut slow: Vec<(TcpStream, usize)> = Vec::new();
    while !stopped.load(Ordering::Relaxed) && start.elapsed() < TIMEOUT {
        slow.retain_mut(|(stream, sent)| {
            let byte = request.as_bytes().get(*sent).copied().unwrap_or(b'x');
            *sent += 1;
            stream.write_all(&[byte]).is_ok()
        });
        // Few enough that a fast client is not displaced.
        for _ in 0..4 {
            slow.extend(TcpStream::connect(address).ok().map(|stream| (stream, 0)));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
