//! Tests with a PCCS that does not respond.

use std::fs;
use std::time::{Duration, Instant};

use attest::collateral::Fmspc;
use attest::mock::{
    Behaviour, Certificate, CollateralOptions, Evidence, LeafOptions, PccsResponses, Platform,
    PlatformOptions, Validity,
};

use super::{ADMITTED, connect, refusal};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_for_both_outputs};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};
use crate::harness::{READER, http, unverified_tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::cached_collateral_survives_pccs_outage_and_restart",
        pccs_outage,
    );
    suite.add(
        "attestation_gate::collateral_shows_that_the_clock_is_slow",
        slow_clock,
    );
    suite.add(
        "attestation_gate::expired_collateral_of_a_visitor_is_no_concern",
        visitor,
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

/// The PCCS has collateral that was issued tomorrow: so it is tomorrow, whatever the clock says.
fn slow_clock(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let issued = now() + 86_400;
    let collateral = tdx.pki.collateral(&CollateralOptions::at(issued));
    let responses = PccsResponses::empty().with(
        tdx.platform.collateral_key(),
        collateral.expect("collateral"),
    );
    tdx.pccs.set_responses(responses);
    let settings = tdx.attested_sidecar_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"));
    let text = "the clock of this machine says ";
    http::await_unready(sidecar.admin_address(), "clock", text);
    sidecar.await_log("the slow clock", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR" && message.starts_with(text)
    });
    let expiring = LeafOptions {
        validity: Validity {
            from: now() - 60,
            until: now() + 3_600,
        },
        ..LeafOptions::default()
    };
    let expiring = tdx.issue_with("expiring", &Evidence::default(), &expiring);
    let select_1 = |certificate: &Certificate| {
        tdx.write_pem("client", certificate);
        run_for_both_outputs(tdx.psql(&sidecar, READER, "select 1"), TIMEOUT)
    };
    let output = select_1(&expiring);
    assert!(output.contains(&refusal("expired")), "{output}");
    assert_eq!(
        select_1(&tdx.issue("client", &Evidence::default())),
        ADMITTED
    );
}

/// A client on another kind of platform has been there, and its collateral has expired since.
fn visitor(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let own = tdx.platform.collateral_key();
    let foreign = PlatformOptions {
        fmspc: Fmspc([7; 6]),
        ..PlatformOptions::default()
    };
    let foreign = Platform::new(&tdx.pki, &foreign).expect("a platform");
    let key = foreign.collateral_key();
    let soon = Validity {
        from: now() - 60,
        until: now() + 12,
    };
    let expiring = CollateralOptions {
        tcb_info: soon,
        ..CollateralOptions::at(now()).for_key(key)
    };
    let collateral = |options: &CollateralOptions| tdx.pki.collateral(options).expect("collateral");
    let responses = PccsResponses::empty()
        .with(own, collateral(&CollateralOptions::at(now())))
        .with(key, collateral(&expiring));
    tdx.pccs.set_responses(responses);
    let settings = tdx.attested_sidecar_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"));
    let address = sidecar.admin_address();
    http::await_ready(address);
    let visitor = tdx.issue_on(&tdx.pki, &foreign, "visitor", &Evidence::default());
    tdx.write_pem("client", &visitor);
    let session = unverified_tls::session(Some(&tdx), &sidecar);
    // While it is there, its collateral is a concern.
    http::await_unready(address, "collateral", "collateral has expired");
    session.terminate();
    http::await_ready(address);
}

fn silent_pccs(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    tdx.pccs.set_behaviour(Behaviour::Stall);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_LOGIN_TIMEOUT", "6s");
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
