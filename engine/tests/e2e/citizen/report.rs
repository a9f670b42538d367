//! `/attestation` and `/ready`: what is said, and that the quote says it too.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use attest::mock::{Behaviour, CollateralOptions};
use attest::quote::TdQuote;
use attest::{Policy, TrustedRoot, Verifier};
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::http::{Answer, get};
use super::{Method, Town, admin, http, now, tls};
use crate::cluster::{Cluster, Plan};
use crate::process::{PATIENCE, poll};
use crate::sidecar::{Settings, Sidecar};
use crate::suite::{Suite, World};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::report_is_what_the_quote_signs", quoted);
    suite.add("citizen::report_of_a_postgres_in_every_state", states);
    suite.add("citizen::ready_tells_each_reason", reasons);
}

/// A report, as soon as there may be one.
fn report(address: SocketAddr, target: &str) -> Value {
    let mut last: Option<Answer> = None;
    poll(PATIENCE, || {
        let answer = last.insert(get(address, target));
        (answer.status != 429).then_some(())
    });
    let answer = last.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Everything that a verifier can find out about a report.
pub(super) fn check(town: &Town, json: &Value, nonce: Option<&[u8]>) {
    let bytes = hex::decode(text(&json["quote"])).expect("hex");
    let quote = TdQuote::parse(&bytes).expect("a quote");
    let root = TrustedRoot::dangerous(town.pki.root_pem().as_bytes()).expect("a root");
    let collateral = town.pki.parsed_collateral(&CollateralOptions::at(now()));
    let collateral = collateral.expect("collateral");
    Verifier::new(root)
        .appraise(&quote, &collateral, &Policy::default(), now())
        .expect("genuine under the mock root");

    let state = &json["postgres_state"];
    let mut hash = Sha256::new();
    for part in [
        &state["wal_lsn"],
        &state["controldata_hash"],
        &json["timestamp"],
    ] {
        hash.update(text(part));
    }
    hash.update(nonce.unwrap_or_default());
    let signed = quote.report().report_data();
    assert_eq!(signed[..32], hash.finalize()[..], "{json}");
    assert_eq!(signed[32..], [0; 32]);
    assert_eq!(text(&json["report_data"]), hex::encode(signed));
    let said = json["nonce"].as_str().map(str::to_owned);
    assert_eq!(said, nonce.map(hex::encode));
    let measured = quote.report();
    let tcb = &json["tcb_info"];
    assert_eq!(text(&tcb["mrtd"]), measured.mrtd().to_string());
    for (number, rtmr) in measured.rtmrs().iter().enumerate() {
        assert_eq!(text(&tcb[format!("rtmr{number}")]), rtmr.to_string());
    }
    let said = text(&json["report_data_is"]);
    assert_eq!(said.contains("nonce"), nonce.is_some(), "{said}");
}

fn prompt(settings: Settings) -> Settings {
    settings.set("TEESQL_ATTESTATION_INTERVAL", "10ms")
}

fn quoted(world: &World) {
    let town = Town::new();
    let agent = town.agent();
    let sidecar = Sidecar::start(&prompt(town.settings(world)));
    let address = admin(&sidecar);
    // Before it is, the report may say that Postgres has not been looked at.
    http::await_ready(address);
    let json = report(address, "/attestation");
    check(&town, &json, None);
    let state = &json["postgres_state"];
    assert_eq!(state["error"], Value::Null, "{json}");
    assert_eq!(state["in_recovery"], false, "{json}");
    let source = text(&state["controldata_source"]);
    assert!(["pg_controldata", "functions"].contains(&source), "{json}");
    assert_eq!(text(&state["controldata_hash"]).len(), 64, "{json}");
    let version = world.cluster().ask("show server_version");
    assert_eq!(text(&state["pg_version"]), version);
    let lsn = text(&state["wal_lsn"]);
    let passed = format!("select '{lsn}'::pg_lsn <= pg_current_wal_lsn()");
    assert_eq!(world.cluster().ask(&passed), "t");
    assert_eq!(json["mode"], "production");
    assert_eq!(text(&json["dangerous_tdx_root"]).len(), 64, "{json}");
    assert_eq!(text(&json["app_id"]).len(), 40, "{json}");
    assert_eq!(text(&json["compose_hash"]).len(), 64, "{json}");
    assert!(json["event_log"].is_array(), "{json}");

    for nonce in [&[7_u8][..], &[0xab; 32]] {
        let target = format!("/attestation?nonce={}", hex::encode(nonce));
        check(&town, &report(address, &target), Some(nonce));
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
        let answer = get(address, &format!("/attestation?{wrong}"));
        assert_eq!(answer.status, 400, "{wrong}");
    }
    assert_eq!(agent.requests(Method::GetQuote), 3);
}

fn private(world: &World) -> Cluster {
    let plan = Plan {
        databases: vec!["via_scram"],
        settings: vec!["wal_level=replica"],
        ..Plan::default()
    };
    world.stage.private_cluster(&world.stage.installed, &plan)
}

/// Down, and back in recovery.
fn states(world: &World) {
    let town = Town::new();
    let _agent = town.agent();
    let cluster = private(world);
    let settings = town.with_agent(world.settings_for(&cluster.address().to_string()));
    let sidecar = Sidecar::start(&prompt(settings));
    let address = admin(&sidecar);
    http::await_ready(address);

    cluster.stop(Signal::SIGINT);
    let json = report(address, "/attestation?nonce=0102");
    check(&town, &json, Some(&[1, 2]));
    let state = &json["postgres_state"];
    assert!(text(&state["error"]).contains("refused"), "{json}");
    assert!(state["controldata_hash"].is_null(), "{json}");

    cluster.stand_by();
    let json = report(address, "/attestation");
    check(&town, &json, None);
    let state = &json["postgres_state"];
    assert_eq!(state["in_recovery"], true, "{json}");
    assert!(state["error"].is_null(), "{json}");
    assert!(!state["wal_lsn"].is_null(), "{json}");
}

/// The other reasons are with the trials of an agent that is away.
fn reasons(world: &World) {
    let town = Town::new();
    let _agent = town.agent();
    town.pccs.set_behaviour(Behaviour::Close);
    let cluster = private(world);
    let settings = town
        .with_agent(world.settings_for(&cluster.address().to_string()))
        .set("TEESQL_DRAIN_TIMEOUT", "60s");
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    http::await_unready(address, "collateral", "F07EE5010000-platform");
    thread::sleep(Duration::from_secs(4));
    let lines = sidecar.lines();
    let complaints = lines.iter().filter(|line| line.contains("not refreshed"));
    let complaints = complaints.count();
    assert!((1..=4).contains(&complaints), "{complaints} lines in 4 s");
    town.pccs.set_behaviour(Behaviour::Normal);
    http::await_ready(address);

    let mut session = tls::enter(Some(&town), &sidecar);
    cluster.stop(Signal::SIGINT);
    session.expect_refusal();
    http::await_unready(address, "postgres", "Postgres does not answer: ");
    cluster.start();
    http::await_ready(address);

    let session = tls::enter(Some(&town), &sidecar);
    sidecar.signal(Signal::SIGTERM);
    http::await_unready(address, "accepting", "draining");
    assert_eq!(get(address, "/health").status, 200, "to the very end");
    session.quit();
    assert_eq!(sidecar.await_exit().code(), Some(0));
}
