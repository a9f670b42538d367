//! `:8080` under attack: nobody's session and no renewal notices.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use attest::mock::{Agent, AgentListen, AgentOptions};

use super::{Method, SEED, TdxFixture, admin, now};
use crate::harness::process::TIMEOUT;
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::a_flood_costs_a_quote_an_interval", flood);
    suite.add("citizen::slow_loris_disturbs_nobody", loris);
}

/// How long, and how many requests a second.
const LASTS: Duration = Duration::from_secs(5);
const RATE: u32 = 200;
const ASKERS: u32 = 8;

/// What became of the requests.
#[derive(Default)]
struct Tally {
    given: AtomicUsize,
    later: AtomicUsize,
}

fn flood(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let options = AgentOptions {
        seed: SEED,
        quote_time: Duration::from_millis(39),
        ..AgentOptions::new(now)
    };
    let listen = AgentListen::Unix(tdx.socket());
    let agent = Agent::start(Arc::clone(&tdx.pki), listen, options).expect("an agent");
    let settings = tdx.settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_CERTIFICATE_VALIDITY", "3s"));
    let address = admin(&sidecar);
    http::await_ready(address);
    let mut session = tls::enter(Some(&tdx), &sidecar);
    let before = agent.requests(Method::GetTlsKey);
    let (tally, begun) = (Tally::default(), Instant::now());
    thread::scope(|scope| {
        for asker in 0..ASKERS {
            let tally = &tally;
            scope.spawn(move || ask_on(address, asker, begun, tally));
        }
    });
    let took = begun.elapsed();
    let (given, later) = (tally.given.into_inner(), tally.later.into_inner());
    // The interval is a second from the end of one to the start of the next.
    let most = usize::try_from(took.as_secs()).expect("small") + 1;
    let quotes = agent.requests(Method::GetQuote);
    assert!((2..=most).contains(&quotes), "{quotes} quotes in {took:?}");
    assert!(given >= quotes && later > 0, "{given} given, {later} later");
    let renewals = agent.requests(Method::GetTlsKey) - before;
    assert!(renewals >= 2, "{renewals} renewals in {took:?}");
    let scrape = Scrape::of(address);
    let failed = "teesql_identity_renewals_total{outcome=\"failed\"}";
    assert_eq!(scrape.value(failed), 0.0);
    for (outcome, count) in [
        ("made", quotes),
        ("limited", later),
        ("shared", given - quotes),
    ] {
        let series = format!("teesql_attestation_reports_total{{outcome=\"{outcome}\"}}");
        assert_eq!(scrape.value(&series), count as f64, "{outcome}");
    }
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
    tls::enter(Some(&tdx), &sidecar).terminate();
}

/// This one's part of the flood: every other request with a nonce of its own.
fn ask_on(address: SocketAddr, asker: u32, begun: Instant, tally: &Tally) {
    let pause = Duration::from_secs(1) * ASKERS / RATE;
    for number in 0_u32.. {
        if begun.elapsed() > LASTS {
            return;
        }
        let target = match number % 2 {
            0 => "/attestation".to_owned(),
            _ => format!("/attestation?nonce={asker:04x}{number:08x}"),
        };
        let answer = http::get(address, &target);
        let count = match answer.status {
            200 => &tally.given,
            429 => &tally.later,
            other => panic!("{other}: {}", answer.body),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if answer.status == 429 {
            let wait = answer.header("retry-after").map(str::parse::<u32>);
            assert!(matches!(wait, Some(Ok(1..))), "{wait:?}");
        }
        let next = begun + pause * (number + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn loris(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let sidecar = Sidecar::start(&tdx.settings(fixture));
    let address = admin(&sidecar);
    let mut session = tls::enter(Some(&tdx), &sidecar);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        for _ in 0..4 {
            scope.spawn(move || dawdle(address, over));
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            tls::enter(Some(&tdx), &sidecar).terminate();
            assert_eq!(session.ask("select 'unharmed'"), "unharmed");
            // The oldest of the slow ones makes room.
            assert_eq!(http::get(address, "/health").status, 200);
        }
        over.store(true, Ordering::Relaxed);
    });
    let left = sidecar.sockets_at_rest();
    assert!(left < 40, "{left} sockets are left");
}

/// Ever more connections that send their request byte by byte.
fn dawdle(address: SocketAddr, over: &AtomicBool) {
    let request = format!("GET /attestation HTTP/1.1\r\nHost: {address}\r\nX: ");
    let begun = Instant::now();
    let mut slow: Vec<(TcpStream, usize)> = Vec::new();
    while !over.load(Ordering::Relaxed) && begun.elapsed() < TIMEOUT {
        slow.retain_mut(|(stream, sent)| {
            let byte = request.as_bytes().get(*sent).copied().unwrap_or(b'x');
            *sent += 1;
            stream.write_all(&[byte]).is_ok()
        });
        // So many a second that a prompt client is not displaced itself.
        for _ in 0..4 {
            slow.extend(TcpStream::connect(address).ok().map(|stream| (stream, 0)));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
