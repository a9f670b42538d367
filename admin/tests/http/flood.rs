//! Tests of the rate limit of `/attestation` under load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use admin::Settings;

use crate::client::get;
use crate::harness::{Harness, SourceBehavior};

const CLIENTS: usize = 8;
const REQUESTS_PER_CLIENT: usize = 50;
/// Each of these requests waits for the next quote.
const NONCES_PER_CLIENT: usize = 8;
/// Eight clients at this interval send 200 requests per second.
const REQUEST_INTERVAL: Duration = Duration::from_millis(40);
const QUOTE_INTERVAL: Duration = Duration::from_millis(400);

/// Sends `requests` requests from each of [`CLIENTS`] clients and counts the statuses 200 and 429.
/// `target` makes the request target from a running number.
fn flood(
    address: SocketAddr,
    requests: usize,
    target: impl Fn(usize) -> String + Sync,
) -> (usize, usize) {
    let (number, served, limited) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let client = || {
        let start = Instant::now();
        for round in 0..requests {
            let due = REQUEST_INTERVAL * u32::try_from(round).unwrap();
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            let response = get(address, &target(number.fetch_add(1, Ordering::Relaxed)));
            match response.status {
                200 => served.fetch_add(1, Ordering::Relaxed),
                429 => limited.fetch_add(1, Ordering::Relaxed),
                _ => panic!("{response:?}"),
            };
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
    (served.into_inner(), limited.into_inner())
}

/// Checks that the interval was kept between the end of each quote and the start of the next.
fn check_quote_rate(harness: &Harness, start: Instant) {
    let quotes = harness.source.quotes.lock().unwrap();
    for pair in quotes.windows(2) {
        let pause = pair[1].0 - pair[0].1.unwrap();
        assert!(pause >= QUOTE_INTERVAL, "{pause:?}");
    }
    let budget = start.elapsed().as_millis() / QUOTE_INTERVAL.as_millis() + 1;
    assert!(
        u128::try_from(quotes.len()).unwrap() <= budget,
        "{} > {budget}",
        quotes.len()
    );
    assert!(quotes.len() >= 2, "fewer than two quotes");
}

fn harness() -> Harness {
    let settings = Settings {
        attestation_interval: QUOTE_INTERVAL,
        ..Settings::default()
    };
    Harness::with(SourceBehavior::Good, settings)
}

#[test]
fn a_flood_without_nonces_shares_reports() {
    let (harness, start) = (harness(), Instant::now());
    let (served, limited) = flood(harness.address(), REQUESTS_PER_CLIENT, |_| {
        "/attestation".to_owned()
    });
    assert_eq!((served, limited), (CLIENTS * REQUESTS_PER_CLIENT, 0));
    check_quote_rate(&harness, start);
}

/// Each client is served by the next quote, however many nonces wait for it.
#[test]
fn a_flood_of_nonces_shares_quotes() {
    let (harness, start) = (harness(), Instant::now());
    let (served, limited) = flood(harness.address(), NONCES_PER_CLIENT, |n| {
        format!("/attestation?nonce={n:08x}")
    });
    assert_eq!((served, limited), (CLIENTS * NONCES_PER_CLIENT, 0));
    check_quote_rate(&harness, start);
    let quotes = harness.source.calls();
    assert!(quotes <= 3 * NONCES_PER_CLIENT, "{quotes}");
    let stats = harness.server.stats();
    let shared = usize::try_from(stats.reports_shared()).unwrap();
    assert_eq!(shared + quotes, served);
}
