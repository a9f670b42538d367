//! A crowd at `/attestation`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use admin::Settings;

use crate::client::get;
use crate::harness::{Conduct, Stage};

const CLIENTS: usize = 8;
const EACH: usize = 50;
/// Eight clients at this pace are 200 requests a second.
const PACE: Duration = Duration::from_millis(40);
const INTERVAL: Duration = Duration::from_millis(400);

/// Statuses of [`CLIENTS`] × [`EACH`] requests, 200 and 429, for targets made from a running number.
fn flood(address: SocketAddr, target: impl Fn(usize) -> String + Sync) -> (usize, usize) {
    let (number, served, limited) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let client = || {
        let begun = Instant::now();
        for turn in 0..EACH {
            let due = PACE * u32::try_from(turn).unwrap();
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let answer = get(address, &target(number.fetch_add(1, Ordering::Relaxed)));
            match answer.status {
                200 => served.fetch_add(1, Ordering::Relaxed),
                429 => limited.fetch_add(1, Ordering::Relaxed),
                _ => panic!("{answer:?}"),
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

/// Between the end of a quote and the start of the next there was the interval, each time.
fn check_budget(stage: &Stage, begun: Instant) {
    let quotes = stage.actor.quotes.lock().unwrap();
    for pair in quotes.windows(2) {
        let pause = pair[1].0 - pair[0].1.unwrap();
        assert!(pause >= INTERVAL, "{pause:?}");
    }
    let budget = begun.elapsed().as_millis() / INTERVAL.as_millis() + 1;
    assert!(
        u128::try_from(quotes.len()).unwrap() <= budget,
        "{} > {budget}",
        quotes.len()
    );
    assert!(quotes.len() >= 2, "nobody was served");
}

fn stage() -> Stage {
    let settings = Settings {
        attestation_interval: INTERVAL,
        ..Settings::default()
    };
    Stage::with(Conduct::Good, settings)
}

#[test]
fn a_flood_without_nonces_shares_its_reports() {
    let (stage, begun) = (stage(), Instant::now());
    let (served, limited) = flood(stage.address(), |_| "/attestation".to_owned());
    assert_eq!((served, limited), (CLIENTS * EACH, 0));
    check_budget(&stage, begun);
}

#[test]
fn a_flood_of_nonces_is_told_to_come_back() {
    let (stage, begun) = (stage(), Instant::now());
    let (served, limited) = flood(stage.address(), |n| format!("/attestation?nonce={n:08x}"));
    assert_eq!(served + limited, CLIENTS * EACH);
    assert_eq!(served, stage.actor.calls());
    check_budget(&stage, begun);
    let stats = stage.server.stats();
    assert_eq!(stats.reports_limited(), u64::try_from(limited).unwrap());
}
