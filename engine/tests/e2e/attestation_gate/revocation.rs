//! Tests of sessions whose clients a new policy or new collateral no longer admits.

use std::fs;
use std::time::{Duration, Instant};

use attest::mock::{
    Behaviour, Certificate, CollateralOptions, Evidence, LeafOptions, PccsResponses, Validity,
};
use nix::sys::signal::Signal;

use super::connect;
use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::policy_change_ends_sessions",
        policy_change,
    );
    suite.add(
        "attestation_gate::policy_restored_within_grace_keeps_sessions",
        policy_restored,
    );
    suite.add("attestation_gate::tcb_recovery_ends_sessions", tcb_recovery);
    suite.add(
        "attestation_gate::a_session_outlives_its_certificate",
        certificate_expires,
    );
    suite.add(
        "attestation_gate::expired_collateral_ends_sessions_after_its_grace",
        collateral_expires,
    );
}

/// In the folder of the TDX fixture.
const CONFIG: &str = "sidecar.toml";

/// Writes a policy that allows only the MRTD that consists of this byte.
fn allow_mrtd(tdx: &TdxFixture, byte: &str) {
    let text = format!("allowed_mrtd = \"{}\"\n", byte.repeat(48));
    fs::write(tdx.path(CONFIG), text).expect("sidecar.toml");
}

/// A sidecar whose policy admits `certificate`, and a session with that certificate.
fn admitted_session(
    tdx: &TdxFixture,
    fixture: &Fixture,
    grace: &str,
    certificate: &Certificate,
) -> (Sidecar, Client) {
    allow_mrtd(tdx, "11");
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_CONFIG", &tdx.path(CONFIG))
        .set("TEESQL_REVOCATION_GRACE", grace);
    let sidecar = Sidecar::start(&settings);
    let mut session = connect(fixture, &sidecar, certificate);
    session.login_reader();
    (sidecar, session)
}

fn policy_change(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let certificate = tdx.issue("client", &Evidence::default());
    let (sidecar, mut session) = admitted_session(&tdx, fixture, "1s", &certificate);
    let peer = session.local_address();

    fs::write(tdx.path(CONFIG), "allowed_mrtd = \"nonsense\"\n").expect("sidecar.toml");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration not reloaded");
    assert_eq!(
        session.query_value("select 1"),
        "1",
        "the previous policy stays active"
    );

    allow_mrtd(&tdx, "12");
    sidecar.signal(Signal::SIGHUP);
    let error = session.expect_fatal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: not_allowed"
    );
    assert_eq!(
        sidecar.await_connection_end(peer)["reason"],
        "mrtd_not_allowed"
    );
    let mut again = connect(fixture, &sidecar, &certificate);
    let error = again.expect_fatal();
    assert_eq!(error.message, "client attestation rejected: not_allowed");

    allow_mrtd(&tdx, "11");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_messages("configuration reloaded, new policy", 2);
    let mut again = connect(fixture, &sidecar, &certificate);
    again.login_reader();
}

/// A client that only a short-lived policy refuses keeps its session.
fn policy_restored(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let certificate = tdx.issue("client", &Evidence::default());
    let (sidecar, mut session) = admitted_session(&tdx, fixture, "3s", &certificate);

    allow_mrtd(&tdx, "12");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("sessions no longer admitted, closing them after the grace period");
    allow_mrtd(&tdx, "11");
    sidecar.signal(Signal::SIGHUP);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(session.query_value("select 1"), "1");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sleeps until the clock shows a later second than `time`.
fn sleep_past(time: u64) {
    while now() <= time {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A certificate does its part in the handshake. A policy still ends the session after it has expired.
fn certificate_expires(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let validity = Validity {
        from: now() - 60,
        until: now() + 4,
    };
    let leaf = LeafOptions {
        validity,
        ..LeafOptions::default()
    };
    let certificate = tdx.issue_with("client", &Evidence::default(), &leaf);
    let (sidecar, mut session) = admitted_session(&tdx, fixture, "off", &certificate);
    sleep_past(validity.until + 1);
    let mut late = connect(fixture, &sidecar, &certificate);
    let error = late.expect_fatal();
    assert_eq!(error.message, "client attestation rejected: expired");

    let values = ["11", "12"].map(|byte| byte.repeat(48));
    let text = format!("allowed_mrtd = \"{}\"\n", values.join(","));
    fs::write(tdx.path(CONFIG), text).expect("sidecar.toml");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration reloaded, new policy");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(session.query_value("select 1"), "1");
    }
    allow_mrtd(&tdx, "12");
    sidecar.signal(Signal::SIGHUP);
    let error = session.expect_fatal();
    assert_eq!(
        error.message,
        "client attestation no longer accepted: not_allowed"
    );
}

/// No new session begins with expired collateral, and an old one ends after the grace period.
fn collateral_expires(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let mut options = CollateralOptions::at(now());
    let until = now() + 8;
    options.tcb_info.until = until;
    let collateral = tdx.pki.collateral(&options).expect("collateral");
    let responses = PccsResponses::empty().with(tdx.platform.collateral_key(), collateral);
    tdx.pccs.set_responses(responses);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_COLLATERAL_GRACE", "4s");
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let mut session = connect(fixture, &sidecar, &certificate);
    session.login_reader();
    tdx.pccs.set_behaviour(Behaviour::Close);
    sleep_past(until);
    assert_eq!(session.query_value("select 1"), "1", "the grace period");
    let mut late = connect(fixture, &sidecar, &certificate);
    let error = late.expect_fatal();
    assert_eq!(error.code, "57P03", "{error}");
    let error = session.expect_fatal();
    assert!(now() > until + 3, "{error}");
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: collateral_expired"
    );
}

/// Later collateral rates the platform as out of date: its sessions end.
fn tcb_recovery(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    // Collateral that expires so soon that the sidecar refreshes it within ten seconds.
    let mut options = CollateralOptions::at(now());
    options.tcb_info.until = now() + 40;
    let responses = |options: &CollateralOptions| {
        let collateral = tdx.pki.collateral(options).expect("collateral");
        PccsResponses::empty().with(tdx.platform.collateral_key(), collateral)
    };
    tdx.pccs.set_responses(responses(&options));
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_REVOCATION_GRACE", "off");
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let mut session = connect(fixture, &sidecar, &certificate);
    session.login_reader();
    tdx.pccs.set_responses(responses(&CollateralOptions {
        evaluation_number: options.evaluation_number + 1,
        recovery: true,
        ..CollateralOptions::at(now())
    }));
    let error = session.expect_fatal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: tcb_out_of_date"
    );
}
