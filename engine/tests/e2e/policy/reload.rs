//! A policy file that changes while the sidecar or the forwarder runs.

use std::fs;

use attest::mock::Evidence;
use nix::sys::signal::Signal;

use super::{FILE, mock_os, peer, write_policy};
use crate::attestation_gate::connect;
use crate::harness::WRITER;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::http;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::scrape::await_scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(super) fn add(suite: &mut Suite) {
    suite.add("policy::reload_ends_what_is_not_granted", sidecar_reload);
    suite.add("policy::forwarder_reloads", forwarder_reload);
}

fn sidecar_reload(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let policy = write_policy(&tdx, &[peer("api", "a1", "")]);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_POLICY_FILE", &policy)
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_REVOCATION_GRACE", "off");
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let mut reader = connect(fixture, &sidecar, &certificate);
    reader.login_reader();
    let mut writer = connect(fixture, &sidecar, &certificate);
    let (role, secret) = WRITER;
    writer.login(role, "via_scram", secret).expect("a login");

    // A broken file changes nothing, and is reported with its line.
    fs::write(tdx.path(FILE), mock_os() + "[[peer]]\nname = \"api\"\n").expect("policy.toml");
    sidecar.signal(Signal::SIGHUP);
    let line = sidecar.await_message("configuration not reloaded");
    let error = line["error"].as_str().unwrap_or_default();
    assert!(error.contains("policy.toml:8: peer \"api\""), "{line}");
    let failed = "teesql_config_reloads_total{outcome=\"failed\"}";
    await_scrape(sidecar.admin_address(), |scrape| {
        scrape.value(failed) == 1.0
    });
    await_reload_reason(&sidecar, "the configuration was not reloaded");
    assert_eq!(writer.query_value("select 1"), "1");

    // The entry loses a role: its sessions end, the others stay.
    let peers = [peer("api", "a1", "roles = \"teesql_read\"")];
    write_policy(&tdx, &peers);
    sidecar.signal(Signal::SIGHUP);
    let error = writer.expect_fatal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: role_not_granted"
    );
    sidecar.await_reason("role_not_granted");
    assert_eq!(reader.query_value("select 1"), "1");

    // The entry is gone. The client does not learn which list refuses it, the log does.
    write_policy(&tdx, &[peer("other", "a2", "")]);
    sidecar.signal(Signal::SIGHUP);
    let error = reader.expect_fatal();
    assert_eq!(
        error.message,
        "client attestation no longer accepted: not_allowed"
    );
    sidecar.await_reason("app_not_allowed");
    let ok = "teesql_config_reloads_total{outcome=\"ok\"}";
    await_scrape(sidecar.admin_address(), |scrape| scrape.value(ok) == 2.0);
    await_reload_reason(&sidecar, "");
}

/// Waits until the check `accepting`, which passes, has a reason that begins with `text`, or none.
fn await_reload_reason(sidecar: &Sidecar, text: &str) {
    poll_until(TIMEOUT, || {
        let response = http::get(sidecar.admin_address(), "/ready");
        let json = response.json();
        let checks = json["checks"].as_array()?;
        let check = checks.iter().find(|check| check["name"] == "accepting")?;
        assert_eq!(check["ready"], true, "{json}");
        let reason = check["reason"].as_str().unwrap_or_default();
        (reason.starts_with(text) && reason.is_empty() == text.is_empty()).then_some(())
    })
    .unwrap_or_else(|| panic!("the check never had the reason {text:?}"));
}

fn forwarder_reload(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let policy = write_policy(&tdx, &[peer("cluster", "a1", "")]);
    let settings = tdx
        .forwarder_settings_to(fixture, sidecar.address())
        .without("TEESQL_ALLOW_ANY_SERVER")
        .set("TEESQL_POLICY_FILE", &policy);
    let forwarder = Forwarder::start(&settings);
    forwarder.assert_reader_connects();
    fs::write(tdx.path(FILE), "nonsense").expect("policy.toml");
    forwarder.signal(Signal::SIGHUP);
    forwarder.await_message("configuration not reloaded");
    forwarder.assert_reader_connects();
    write_policy(&tdx, &[peer("cluster", "a2", "")]);
    forwarder.signal(Signal::SIGHUP);
    forwarder.await_message("configuration reloaded, new policy");
    forwarder.psql_select_1(crate::harness::READER);
    forwarder.await_reason("app_not_allowed");
    forwarder.assert_running();
}
