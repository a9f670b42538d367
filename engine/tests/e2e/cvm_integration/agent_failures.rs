//! Tests of a guest agent that fails while the sidecar runs.

use std::thread;
use std::time::Duration;

use attest::agent::Method;
use attest::mock::AgentBehaviour;

use crate::harness::fixture::Fixture;
use crate::harness::scrape::await_scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::agent_failures::renewal_recovers",
        renewal_recovers,
    );
    suite.add(
        "cvm_integration::agent_failures::recovers_after_the_socket_is_removed",
        socket_is_removed,
    );
}

const FAILED: &str = "teesql_identity_renewals_total{outcome=\"failed\"}";

/// Each failure, and its text in the log. A delay is logged only after a timeout of half a minute,
/// but `/ready` does not wait for that.
fn failures() -> [(AgentBehaviour, Option<&'static str>); 7] {
    let refusal = r#"{"error":"no key today"}"#.to_owned();
    let status = AgentBehaviour::Status(400, refusal);
    let delay = AgentBehaviour::Delay(Duration::from_secs(30));
    [
        (status, Some("HTTP status 400: no key today")),
        (AgentBehaviour::Html, Some("is not a JSON object")),
        (
            AgentBehaviour::TruncatedBody,
            Some("closed the connection before"),
        ),
        (
            AgentBehaviour::WrongKey,
            Some("is not the key of the certificate"),
        ),
        (
            AgentBehaviour::WrongReportData,
            Some("no evidence that is bound to its key"),
        ),
        (AgentBehaviour::Close, Some("closed the connection before")),
        (delay, None),
    ]
}

fn renewal_recovers(fixture: &Fixture) {
    thread::scope(|scope| {
        for (behaviour, text) in failures() {
            scope.spawn(move || renewal_recovers_from(fixture, behaviour, text));
        }
    });
}

fn start_with_short_lived_certificate(fixture: &Fixture, tdx: &TdxFixture) -> Sidecar {
    let settings = tdx
        .agent_settings(fixture)
        .set("TEESQL_SHARDS", "1")
        .set("TEESQL_CERTIFICATE_VALIDITY", "4s");
    Sidecar::start(&settings)
}

fn renewal_recovers_from(fixture: &Fixture, behaviour: AgentBehaviour, text: Option<&str>) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let sidecar = start_with_short_lived_certificate(fixture, &tdx);
    let address = sidecar.admin_address();
    let mut session = tls::session(Some(&tdx), &sidecar);
    http::await_ready(address);

    agent.set_behaviour_for(Method::GetTlsKey, behaviour.clone());
    let requests = agent.requests(Method::GetTlsKey);
    if let Some(text) = text {
        sidecar.await_log(text, |line| {
            let error = line["error"].as_str().unwrap_or_default();
            let message = line["message"] == "certificate not renewed";
            message && line["level"] == "WARN" && error.contains(text)
        });
        await_scrape(address, |scrape| scrape.value(FAILED) >= 1.0);
    }
    let reason = "the certificate is about to expire, and its renewal fails";
    http::await_unready(address, "identity", reason);
    assert!(
        agent.requests(Method::GetTlsKey) > requests,
        "{behaviour:?}"
    );
    // A client that does not check dates can still connect.
    let before = tls::presented_chain(sidecar.address());
    tls::session(Some(&tdx), &sidecar).terminate();
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");

    agent.set_behaviour_for(Method::GetTlsKey, AgentBehaviour::Normal);
    http::await_ready(address);
    assert_ne!(
        tls::presented_chain(sidecar.address()),
        before,
        "{behaviour:?}"
    );
    tls::session(Some(&tdx), &sidecar).terminate();
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
}

fn socket_is_removed(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let sidecar = start_with_short_lived_certificate(fixture, &tdx);
    let address = sidecar.admin_address();
    let mut session = tls::session(Some(&tdx), &sidecar);
    drop(agent);
    let path = tdx.path("dstack.sock");
    sidecar.await_log("the path", |line| {
        let error = line["error"].as_str().unwrap_or_default();
        line["message"] == "certificate not renewed" && error.contains(&path)
    });
    http::await_unready(address, "identity", "its renewal fails");
    let report = http::get(address, "/attestation");
    assert_eq!(report.status, 503, "{}", report.body);
    assert!(report.body.contains(&path), "{}", report.body);
    tls::session(Some(&tdx), &sidecar).terminate();
    let _agent = tdx.start_agent();
    http::await_ready(address);
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
}
