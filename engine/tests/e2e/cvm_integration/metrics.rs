//! Tests of `/metrics` after known traffic.

use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{
    READ_SECRET, READWRITE_SECRET, WRONG_SECRET, http, message, unverified_tls as tls,
};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::metrics::all_series_exist_from_the_start",
        all_series_exist,
    );
    suite.add(
        "cvm_integration::metrics::counts_known_traffic",
        counts_known_traffic,
    );
    suite.add(
        "cvm_integration::metrics::balances_few_connections",
        balances_few_connections,
    );
}

const HISTOGRAMS: [&str; 3] = [
    "teesql_handshake_seconds",
    "teesql_login_seconds",
    "teesql_verification_seconds",
];

fn all_series_exist(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    // No certificate from an agent and no client yet: there is no collateral.
    let certificates = &fixture.harness.certificates;
    let settings = tdx
        .agent_settings(fixture)
        .set(
            "TEESQL_TLS_CERT",
            certificates.chain.to_str().expect("UTF-8"),
        )
        .set("TEESQL_TLS_KEY", certificates.key.to_str().expect("UTF-8"));
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    http::await_ready(address);
    let first = Scrape::fetch(address);
    for name in HISTOGRAMS {
        assert_eq!(first.value(&format!("{name}_count")), 0.0);
        assert_eq!(first.value(&format!("{name}_sum")), 0.0);
        assert_eq!(first.value(&format!("{name}_bucket{{le=\"+Inf\"}}")), 0.0);
    }
    let collateral = "teesql_collateral_expires_in_seconds";
    assert!(first.value(collateral).is_nan());
    assert!(first.value("teesql_certificate_expires_in_seconds") > 0.0);
    let driver = format!(
        "teesql_driver_info{{driver=\"{}\"}}",
        fixture.variant.driver
    );
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
    tls::session(Some(&tdx), &sidecar).terminate();
    let after = await_scrape(address, |scrape| {
        scrape.sum("teesql_sessions_ended_total", "") == 1.0
    });
    // A series that appears later starts with a jump, which `rate()` does not see.
    assert!(after.series().eq(first.series()), "{after:?}");
    for name in HISTOGRAMS {
        assert_eq!(after.value(&format!("{name}_count")), 1.0, "{name}");
    }
    assert!(after.value(collateral) > 0.0);
}

fn check_documented(scrape: &Scrape) {
    let page = include_str!("../../../../docs/reference/metrics.md");
    let documented = scrape.families().filter(|name| name.starts_with("teesql_"));
    for family in documented {
        assert!(page.contains(&format!("`{family}`")), "{family}");
    }
}

fn assert_login_fails(mut client: Client, role: &str, secret: &str, database: &str) {
    client
        .login(role, database, secret)
        .expect_err("the login is refused");
}

/// Connections are balanced between shards, whichever of them accepts them.
fn balances_few_connections(fixture: &Fixture) {
    const SHARDS: usize = 3;
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let settings = tdx.agent_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_SHARDS", &SHARDS.to_string()));
    let address = sidecar.admin_address();
    http::await_ready(address);
    let session = || tls::session(Some(&tdx), &sidecar);
    let mut sessions: Vec<_> = (0..2 * SHARDS).map(|_| session()).collect();
    let accepted = |shard| format!("teesql_connections_accepted_total{{shard=\"{shard}\"}}");
    let scrape = Scrape::fetch(address);
    for shard in 0..SHARDS {
        assert_eq!(scrape.value(&accepted(shard)), 2.0, "{scrape:?}");
    }
    for session in &mut sessions {
        assert_eq!(session.query_value("select 1"), "1");
    }
    // The next connection goes to the shard that has a free slot.
    let closing = sessions.swap_remove(1);
    let peer = closing.local_address();
    closing.terminate();
    sidecar.await_connection_end(peer);
    sessions.push(session());
    let scrape = Scrape::fetch(address);
    let all: f64 = (0..SHARDS)
        .map(|shard| scrape.value(&accepted(shard)))
        .sum();
    assert_eq!(all, 7.0);
    assert!((0..SHARDS).all(|shard| scrape.value(&accepted(shard)) <= 3.0));
}

fn counts_known_traffic(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let sidecar = Sidecar::start(&tdx.agent_settings(fixture).set("TEESQL_SHARDS", "1"));
    let address = sidecar.admin_address();
    http::await_ready(address);
    let connect = || tls::connect(Some(&tdx), &sidecar);
    let session = || tls::session(Some(&tdx), &sidecar);

    let mut readers = [session(), session()];
    let mut writer = connect();
    writer
        .login("teesql_readwrite", "via_scram", READWRITE_SECRET)
        .expect("the login succeeds");
    let session_series = |role| format!("teesql_connections{{state=\"session\",role=\"{role}\"}}");
    // A session is counted a moment after its client is ready.
    let during = await_scrape(address, |scrape| {
        scrape.value("teesql_logins_total{outcome=\"accepted\",reason=\"none\"}") == 3.0
            && scrape.value(&session_series("teesql_readwrite")) == 1.0
    });
    assert_eq!(during.value(&session_series("teesql_read")), 2.0);
    assert_eq!(during.value(&session_series("teesql_readwrite")), 1.0);
    assert_eq!(during.value(&session_series("postgres")), 0.0);
    assert_eq!(
        readers[0].query_value("select repeat('x', 1000000)").len(),
        1_000_000
    );
    let length = readers[1].query_value(&format!("select length('{}')", "y".repeat(50_000)));
    assert_eq!(length, "50000");

    assert_login_fails(connect(), "teesql_read", WRONG_SECRET, "via_scram");
    assert_login_fails(connect(), "teesql_readwrite", READ_SECRET, "via_scram");
    assert_login_fails(connect(), "teesql_read", READ_SECRET, "no_such_database");
    tls::connect(None, &sidecar).expect_fatal();
    let mut canceller = connect();
    canceller.send(&message::cancel(1, &[1, 2, 3, 4]));
    canceller.expect_close();
    for client in readers {
        client.terminate();
    }
    writer.terminate();
    // The counters are not updated at the same time.
    let after = await_scrape(address, |scrape| {
        scrape.sum("teesql_connections", "") == 0.0
            && scrape.sum("teesql_sessions_ended_total", "") == 3.0
            && scrape.sum("teesql_logins_total", "refused") == 4.0
            && scrape.value("teesql_cancel_requests_total") == 1.0
    });
    check_counts(&after);
    assert_eq!(http::get(address, "/attestation").status, 200);
    let made = "teesql_attestation_reports_total{outcome=\"made\"}";
    assert_eq!(Scrape::fetch(address).value(made), 1.0);
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
        // Postgres closes the connection after Terminate.
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
