//! Tests with a PCCS that does not respond.

use std::fs;
use std::time::{Duration, Instant};

use attest::collateral::Fmspc;
use attest::mock::{Behaviour, Evidence, Platform, PlatformOptions};

use super::{ADMITTED, connect, refusal};
use crate::harness::fixture::Fixture;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::cached_collateral_survives_pccs_outage_and_restart",
        pccs_outage,
    );
    suite.add(
        "attestation_gate::login_timeout_applies_while_the_pccs_is_silent",
        silent_pccs,
    );
}

/// Cached collateral admits clients while the PCCS is down, and a restarted sidecar reads it from
/// disk.
fn pccs_outage(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let cache = tdx.path("collateral");
    fs::create_dir(&cache).expect("a folder");
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_COLLATERAL_DIR", &cache);
    let first = Sidecar::start(&settings);
    let certificate = tdx.issue("first", &Evidence::default());
    let output = tdx.psql_select_1(fixture, &first, Some(&certificate));
    assert_eq!(output, ADMITTED);

    tdx.pccs.set_behaviour(Behaviour::Close);
    let new_client = tdx.issue("new client", &Evidence::default());
    let output = tdx.psql_select_1(fixture, &first, Some(&new_client));
    assert_eq!(output, ADMITTED);
    let other_platform = PlatformOptions {
        fmspc: Fmspc([7; 6]),
        ..PlatformOptions::default()
    };
    let other = Platform::new(&tdx.pki, &other_platform).expect("a platform");
    let other = tdx.issue_on(&tdx.pki, &other, "family", &Evidence::default());
    let output = tdx.psql_select_1(fixture, &first, Some(&other));
    assert!(
        output.contains(&refusal("collateral_unavailable")),
        "{output}"
    );
    drop(first);

    let second = Sidecar::start(&settings);
    let output = tdx.psql_select_1(fixture, &second, Some(&new_client));
    assert_eq!(output, ADMITTED);
}

fn silent_pccs(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    tdx.pccs.set_behaviour(Behaviour::Stall);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_LOGIN_TIMEOUT", "2s");
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let start = Instant::now();
    let mut client = connect(fixture, &sidecar, &certificate);
    let peer = client.local_address();
    let error = client.expect_fatal();
    assert_eq!(error.code, "57P03", "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "the deadline is not enforced"
    );
    assert_eq!(
        sidecar.await_connection_end(peer)["reason"],
        "collateral_unavailable"
    );
}
