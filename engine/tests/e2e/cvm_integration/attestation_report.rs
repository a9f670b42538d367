//! Tests of `/attestation` and `/ready`: the report, its signature by the quote, and the reasons for
//! not being ready.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use attest::agent::Method;
use attest::mock::{Behaviour, CollateralOptions};
use attest::quote::TdQuote;
use attest::{Policy, TrustedRoot, Verifier};
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::fixture::Fixture;
use crate::harness::http::{Response, get};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::attestation_report::is_signed_by_the_quote",
        is_signed_by_the_quote,
    );
    suite.add(
        "cvm_integration::attestation_report::reports_postgres_down_and_in_recovery",
        postgres_states,
    );
    suite.add(
        "cvm_integration::attestation_report::ready_reports_each_reason",
        ready_reasons,
    );
}

/// Requests a report until the rate limit allows it.
fn report(address: SocketAddr, target: &str) -> Value {
    let mut last: Option<Response> = None;
    poll_until(TIMEOUT, || {
        let response = last.insert(get(address, target));
        (response.status != 429).then_some(())
    });
    let response = last.expect("a response");
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The first half of the report data, computed from the report as its documentation says.
fn expected_report_data(json: &Value, with_nonces: bool) -> [u8; 32] {
    let state = &json["postgres_state"];
    let timestamp = json["timestamp"].as_u64().expect("a number").to_string();
    let [lsn, control] = [&state["wal_lsn"], &state["controldata_hash"]].map(text);
    let mut hash = Sha256::new();
    if !with_nonces {
        for part in [lsn, control, &timestamp] {
            hash.update(part);
        }
        return hash.finalize().into();
    }
    let timeline = state["timeline"].as_u64();
    let timeline = timeline.map_or_else(String::new, |timeline| timeline.to_string());
    let [mode, root, key] =
        [&json["mode"], &json["dangerous_tdx_root"], &json["tls_key"]].map(text);
    let role = text(&state["role"]);
    let fields = [lsn, control, &timestamp, mode, root, role, &timeline, key];
    let nonces = json["nonces"].as_array().expect("an array");
    let nonces = nonces
        .iter()
        .map(|nonce| hex::decode(text(nonce)).expect("hex"));
    hash.update("teesql-attestation-report-v1");
    for field in fields.into_iter().map(Vec::from).chain(nonces) {
        let len = u32::try_from(field.len()).expect("short");
        hash.update(len.to_be_bytes());
        hash.update(&field);
    }
    hash.finalize().into()
}

/// Checks everything that a verifier can check in a report.
pub(super) fn check(tdx: &TdxFixture, json: &Value, nonce: Option<&[u8]>) {
    let bytes = hex::decode(text(&json["quote"])).expect("hex");
    let quote = TdQuote::parse(&bytes).expect("a quote");
    let root = TrustedRoot::dangerous(tdx.pki.root_pem().as_bytes()).expect("a root");
    let collateral = tdx.pki.parsed_collateral(&CollateralOptions::at(now()));
    let collateral = collateral.expect("collateral");
    Verifier::new(root)
        .appraise(&quote, &collateral, &Policy::default(), now())
        .expect("genuine under the mock root");

    let made = json["timestamp"].as_u64().expect("a number");
    assert!((now() - 60..=now()).contains(&made), "{made}");
    let signed = quote.report().report_data();
    let expected = expected_report_data(json, nonce.is_some());
    assert_eq!(signed[..32], expected, "{json}");
    assert_eq!(signed[32..], [0; 32]);
    assert_eq!(text(&json["report_data"]), hex::encode(signed));
    let nonces = json["nonces"].as_array().expect("an array");
    assert_eq!(nonces.is_empty(), nonce.is_none(), "{json}");
    if let Some(nonce) = nonce {
        assert!(nonces.contains(&hex::encode(nonce).into()), "{json}");
    }
    let measured = quote.report();
    let tcb = &json["tcb_info"];
    assert_eq!(text(&tcb["mrtd"]), measured.mrtd().to_string());
    for (number, rtmr) in measured.rtmrs().iter().enumerate() {
        assert_eq!(text(&tcb[format!("rtmr{number}")]), rtmr.to_string());
    }
    let value = text(&json["report_data_is"]);
    assert_eq!(value.contains("nonce"), nonce.is_some(), "{value}");
}

/// SHA-256 of the key in the certificate that clients see.
fn served_key(sidecar: &Sidecar) -> String {
    let chain = tls::presented_chain(sidecar.address());
    let leaf = chain.first().expect("a certificate");
    let leaf = attest::certificate::Leaf::parse(leaf).expect("a certificate");
    hex::encode(Sha256::digest(leaf.spki()))
}

fn with_short_interval(settings: Settings) -> Settings {
    settings.set("TEESQL_ATTESTATION_INTERVAL", "10ms")
}

fn is_signed_by_the_quote(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let sidecar = Sidecar::start(&with_short_interval(tdx.agent_settings(fixture)));
    let address = sidecar.admin_address();
    // Before that, the report may say that the state of Postgres is not known yet.
    http::await_ready(address);
    let json = report(address, "/attestation");
    check(&tdx, &json, None);
    let state = &json["postgres_state"];
    assert_eq!(state["error"], Value::Null, "{json}");
    assert_eq!(state["in_recovery"], false, "{json}");
    assert_eq!(state["role"], "primary", "{json}");
    assert_eq!(state["timeline"], 1, "{json}");
    let source = text(&state["controldata_source"]);
    assert!(
        ["pg_controldata", "pg_control_functions"].contains(&source),
        "{json}"
    );
    assert_eq!(text(&state["controldata_hash"]).len(), 64, "{json}");
    let version = fixture.cluster().admin_sql("show server_version");
    assert_eq!(text(&state["pg_version"]), version);
    let lsn = text(&state["wal_lsn"]);
    let reached = format!("select '{lsn}'::pg_lsn <= pg_current_wal_lsn()");
    assert_eq!(fixture.cluster().admin_sql(&reached), "t");
    assert_eq!(json["mode"], "production");
    let key = served_key(&sidecar);
    assert_eq!(text(&json["tls_key"]), key, "{json}");
    assert_eq!(text(&json["dangerous_tdx_root"]).len(), 64, "{json}");
    assert_eq!(text(&json["app_id"]).len(), 40, "{json}");
    assert_eq!(text(&json["compose_hash"]).len(), 64, "{json}");
    assert!(json["event_log"].is_array(), "{json}");

    for nonce in [&[7_u8][..], &[0xab; 32]] {
        let target = format!("/attestation?nonce={}", hex::encode(nonce));
        check(&tdx, &report(address, &target), Some(nonce));
    }
    let long = format!("nonce={}", "00".repeat(33));
    for wrong in [
        "nonce=xy",
        "nonce=",
        "nonce=abc",
        "nonce=00&nonce=01",
        "user=postgres",
        &long,
    ] {
        let response = get(address, &format!("/attestation?{wrong}"));
        assert_eq!(response.status, 400, "{wrong}");
    }
    assert_eq!(agent.requests(Method::GetQuote), 3);
}

fn private_cluster(fixture: &Fixture) -> Cluster {
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        settings: vec!["wal_level=replica"],
        ..ClusterOptions::default()
    };
    fixture.private_cluster(&options)
}

/// Postgres is down, then in recovery.
fn postgres_states(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let cluster = private_cluster(fixture);
    let settings = tdx.with_agent(fixture.settings_for(&cluster.address().to_string()));
    let sidecar = Sidecar::start(&with_short_interval(settings));
    let address = sidecar.admin_address();
    http::await_ready(address);

    cluster.stop(Signal::SIGINT);
    let json = report(address, "/attestation?nonce=0102");
    check(&tdx, &json, Some(&[1, 2]));
    let state = &json["postgres_state"];
    assert!(text(&state["error"]).contains("refused"), "{json}");
    assert!(state["controldata_hash"].is_null(), "{json}");

    cluster.restart_as_standby();
    let json = report(address, "/attestation");
    check(&tdx, &json, None);
    let state = &json["postgres_state"];
    assert_eq!(state["in_recovery"], true, "{json}");
    assert_eq!(state["role"], "standby", "{json}");
    assert_eq!(state["timeline"], 1, "{json}");
    assert!(state["error"].is_null(), "{json}");
    assert!(!state["wal_lsn"].is_null(), "{json}");
}

/// The reasons of `/ready` that `delayed_dependencies` and `agent_failures` do not test.
fn ready_reasons(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    tdx.pccs.set_behaviour(Behaviour::Close);
    let cluster = private_cluster(fixture);
    let settings = tdx
        .with_agent(fixture.settings_for(&cluster.address().to_string()))
        .set("TEESQL_DRAIN_TIMEOUT", "60s");
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    http::await_unready(address, "collateral", "F07EE5010000-platform");
    thread::sleep(Duration::from_secs(4));
    let lines = sidecar.log_lines();
    let warnings = lines.iter().filter(|line| line.contains("not refreshed"));
    let warnings = warnings.count();
    assert!((1..=4).contains(&warnings), "{warnings} lines in 4 s");
    tdx.pccs.set_behaviour(Behaviour::Normal);
    http::await_ready(address);

    let mut session = tls::session(Some(&tdx), &sidecar);
    cluster.stop(Signal::SIGINT);
    session.expect_fatal();
    http::await_unready(address, "postgres", "Postgres does not answer: ");
    cluster.start();
    http::await_ready(address);

    let session = tls::session(Some(&tdx), &sidecar);
    sidecar.signal(Signal::SIGTERM);
    http::await_unready(address, "accepting", "draining");
    assert_eq!(get(address, "/health").status, 200, "until the exit");
    session.terminate();
    assert_eq!(sidecar.await_exit().code(), Some(0));
}
