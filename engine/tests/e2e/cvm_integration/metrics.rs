//! `/metrics` after traffic that is known.

use super::{TdxFixture, admin};
use crate::harness::client::Client;
use crate::harness::message;
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{READ_SECRET, READWRITE_SECRET, WRONG_SECRET};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "citizen::every_series_is_there_from_the_start",
        from_the_start,
    );
    suite.add("citizen::known_traffic_is_counted", known_traffic);
    suite.add(
        "citizen::few_connections_are_spread",
        few_connections_are_spread,
    );
}

const HISTOGRAMS: [&str; 3] = [
    "teesql_handshake_seconds",
    "teesql_login_seconds",
    "teesql_verification_seconds",
];

fn from_the_start(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    // No certificate from an agent, and no client yet: no collateral is held.
    let certificates = &fixture.harness.certificates;
    let settings = tdx
        .settings(fixture)
        .set(
            "TEESQL_TLS_CERT",
            certificates.chain.to_str().expect("UTF-8"),
        )
        .set("TEESQL_TLS_KEY", certificates.key.to_str().expect("UTF-8"));
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    http::await_ready(address);
    let first = Scrape::of(address);
    for name in HISTOGRAMS {
        assert_eq!(first.value(&format!("{name}_count")), 0.0);
        assert_eq!(first.value(&format!("{name}_sum")), 0.0);
        assert_eq!(first.value(&format!("{name}_bucket{{le=\"+Inf\"}}")), 0.0);
    }
    let collateral = "teesql_collateral_expires_in_seconds";
    assert!(first.value(collateral).is_nan());
    assert!(first.value("teesql_certificate_expires_in_seconds") > 0.0);
    let driver = format!("teesql_driver_info{{driver=\"{}\"}}", fixture.driver);
    for (series, value) in [
        (driver.as_str(), 1.0),
        ("teesql_mode_info{mode=\"production\"}", 1.0),
        ("teesql_mode_info{mode=\"simulator\"}", 0.0),
        ("teesql_dangerous_tdx_root", 1.0),
        ("teesql_ready{check=\"identity\"}", 1.0),
        ("teesql_identity_renewals_total{outcome=\"failed\"}", 0.0),
        ("teesql_attestation_reports_total{outcome=\"made\"}", 0.0),
        ("teesql_collateral_refreshes_total{outcome=\"ok\"}", 0.0),
    ] {
        assert_eq!(first.value(series), value, "{series}");
    }
    check_documented(&first);
    tls::enter(Some(&tdx), &sidecar).terminate();
    let then = await_scrape(address, |scrape| {
        scrape.sum("teesql_sessions_ended_total", "") == 1.0
    });
    // A series that appears later begins with a leap that no rate sees.
    assert!(then.series().eq(first.series()), "{then:?}");
    for name in HISTOGRAMS {
        assert_eq!(then.value(&format!("{name}_count")), 1.0, "{name}");
    }
    assert!(then.value(collateral) > 0.0);
}

fn check_documented(scrape: &Scrape) {
    let page = include_str!("../../../../docs/reference/metrics.md");
    let own = scrape.families().filter(|name| name.starts_with("teesql_"));
    for family in own {
        assert!(page.contains(&format!("`{family}`")), "{family}");
    }
}

fn fail(mut client: Client, role: &str, secret: &str, database: &str) {
    client
        .login(role, database, secret)
        .expect_err("it is refused");
}

/// Whichever shard the kernel gives them to.
fn few_connections_are_spread(fixture: &Fixture) {
    const SHARDS: usize = 3;
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let settings = tdx.settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_SHARDS", &SHARDS.to_string()));
    let address = admin(&sidecar);
    http::await_ready(address);
    let enter = || tls::enter(Some(&tdx), &sidecar);
    let mut sessions: Vec<_> = (0..2 * SHARDS).map(|_| enter()).collect();
    let accepted = |shard| format!("teesql_connections_accepted_total{{shard=\"{shard}\"}}");
    let spread = Scrape::of(address);
    for shard in 0..SHARDS {
        assert_eq!(spread.value(&accepted(shard)), 2.0, "{spread:?}");
    }
    for session in &mut sessions {
        assert_eq!(session.ask("select 1"), "1");
    }
    // A place that becomes free is the next one's.
    let leaving = sessions.swap_remove(1);
    let peer = leaving.local_address();
    leaving.terminate();
    sidecar.await_connection_end(peer);
    sessions.push(enter());
    let spread = Scrape::of(address);
    let all: f64 = (0..SHARDS)
        .map(|shard| spread.value(&accepted(shard)))
        .sum();
    assert_eq!(all, 7.0);
    assert!((0..SHARDS).all(|shard| spread.value(&accepted(shard)) <= 3.0));
}

fn known_traffic(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let sidecar = Sidecar::start(&tdx.settings(fixture).set("TEESQL_SHARDS", "1"));
    let address = admin(&sidecar);
    http::await_ready(address);
    let open = || tls::connect(Some(&tdx), &sidecar);
    let enter = || tls::enter(Some(&tdx), &sidecar);

    let mut readers = [enter(), enter()];
    let mut writer = open();
    writer
        .login("teesql_readwrite", "via_scram", READWRITE_SECRET)
        .expect("the login succeeds");
    let session = |role| format!("teesql_connections{{state=\"session\",role=\"{role}\"}}");
    // A client may know of its session a moment before it is counted.
    let during = await_scrape(address, |scrape| {
        scrape.value("teesql_logins_total{outcome=\"accepted\",reason=\"none\"}") == 3.0
            && scrape.value(&session("teesql_readwrite")) == 1.0
    });
    assert_eq!(during.value(&session("teesql_read")), 2.0);
    assert_eq!(during.value(&session("teesql_readwrite")), 1.0);
    assert_eq!(during.value(&session("postgres")), 0.0);
    assert_eq!(
        readers[0].ask("select repeat('x', 1000000)").len(),
        1_000_000
    );
    let asked = readers[1].ask(&format!("select length('{}')", "y".repeat(50_000)));
    assert_eq!(asked, "50000");

    fail(open(), "teesql_read", WRONG_SECRET, "via_scram");
    fail(open(), "teesql_readwrite", READ_SECRET, "via_scram");
    fail(open(), "teesql_read", READ_SECRET, "no_such_database");
    tls::connect(None, &sidecar).expect_fatal();
    let mut canceller = open();
    canceller.send(&message::cancel(1, &[1, 2, 3, 4]));
    canceller.expect_close();
    for client in readers {
        client.terminate();
    }
    writer.terminate();
    // One line of the book is written after the other.
    let after = await_scrape(address, |scrape| {
        scrape.sum("teesql_connections", "") == 0.0
            && scrape.sum("teesql_sessions_ended_total", "") == 3.0
            && scrape.sum("teesql_logins_total", "refused") == 4.0
            && scrape.value("teesql_cancel_requests_total") == 1.0
    });
    check_counts(&after);
    assert_eq!(http::get(address, "/attestation").status, 200);
    let made = "teesql_attestation_reports_total{outcome=\"made\"}";
    assert_eq!(Scrape::of(address).value(made), 1.0);
}

fn check_counts(after: &Scrape) {
    for (series, value) in [
        (
            "teesql_logins_total{outcome=\"accepted\",reason=\"none\"}",
            3.0,
        ),
        (
            "teesql_logins_total{outcome=\"refused\",reason=\"authentication_failed\"}",
            2.0,
        ),
        (
            "teesql_logins_total{outcome=\"refused\",reason=\"no_certificate\"}",
            1.0,
        ),
        (
            "teesql_logins_total{outcome=\"refused\",reason=\"upstream_refused_session\"}",
            1.0,
        ),
        // Postgres hangs up when it is told good-bye.
        (
            "teesql_sessions_ended_total{reason=\"upstream_closed\"}",
            3.0,
        ),
        ("teesql_cancel_requests_total", 1.0),
        ("teesql_panics_total", 0.0),
        ("teesql_connections_accepted_total{shard=\"0\"}", 8.0),
        ("teesql_handshake_seconds_count", 8.0),
        ("teesql_login_seconds_count", 3.0),
        (
            "teesql_verdicts_total{source=\"verification\",outcome=\"accepted\"}",
            1.0,
        ),
        (
            "teesql_verdicts_total{source=\"cache\",outcome=\"accepted\"}",
            6.0,
        ),
    ] {
        assert_eq!(after.value(series), value, "{series}");
    }
    assert_eq!(after.sum("teesql_logins_total", "refused"), 4.0);
    assert_eq!(after.sum("teesql_upstream_failures_total", ""), 1.0);
    assert_eq!(after.sum("teesql_sessions_ended_total", ""), 3.0);
    let sent = after.sum("teesql_bytes_total", "direction=\"sent\"");
    let received = after.sum("teesql_bytes_total", "direction=\"received\"");
    assert!((1_000_000.0..1_010_000.0).contains(&sent), "{sent}");
    assert!((50_000.0..52_000.0).contains(&received), "{received}");
}
