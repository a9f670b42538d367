//! A guest agent that stops answering as it should while the sidecar runs.

use std::thread;
use std::time::Duration;

use attest::mock::AgentBehaviour;

use super::{Method, TdxFixture, admin};
use crate::harness::scrape::await_scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::renewal_fails_and_recovers", fails_and_recovers);
    suite.add("citizen::agent_s_socket_is_removed", removed);
}

const FAILED: &str = "teesql_identity_renewals_total{outcome=\"failed\"}";

/// Each way to fail, and what the log says of it. One that only hangs is found
/// out after its deadlines, of half a minute: `/ready` does not wait for that.
fn behaviours() -> [(AgentBehaviour, Option<&'static str>); 7] {
    let refusal = r#"{"error":"no key today"}"#.to_owned();
    let status = AgentBehaviour::Status(400, refusal);
    let hangs = AgentBehaviour::Hang(Duration::from_secs(30));
    [
        (status, Some("HTTP status 400: no key today")),
        (AgentBehaviour::Html, Some("is no JSON object")),
        (AgentBehaviour::HalfBody, Some("hung up")),
        (
            AgentBehaviour::WrongKey,
            Some("is not the key of the certificate"),
        ),
        (
            AgentBehaviour::WrongReportData,
            Some("no evidence that is bound to its key"),
        ),
        (AgentBehaviour::Close, Some("hung up")),
        (hangs, None),
    ]
}

fn fails_and_recovers(fixture: &Fixture) {
    thread::scope(|scope| {
        for (behaviour, words) in behaviours() {
            scope.spawn(move || fails(fixture, behaviour, words));
        }
    });
}

fn short_lived(fixture: &Fixture, tdx: &TdxFixture) -> Sidecar {
    let settings = tdx
        .settings(fixture)
        .set("TEESQL_SHARDS", "1")
        .set("TEESQL_CERTIFICATE_VALIDITY", "4s");
    Sidecar::start(&settings)
}

fn fails(fixture: &Fixture, behaviour: AgentBehaviour, words: Option<&str>) {
    let tdx = TdxFixture::new();
    let agent = tdx.agent();
    let sidecar = short_lived(fixture, &tdx);
    let address = admin(&sidecar);
    let mut session = tls::enter(Some(&tdx), &sidecar);
    http::await_ready(address);

    agent.behave_for(Method::GetTlsKey, behaviour.clone());
    let asked = agent.requests(Method::GetTlsKey);
    if let Some(words) = words {
        sidecar.await_log(words, |line| {
            let error = line["error"].as_str().unwrap_or_default();
            let message = line["message"] == "certificate not renewed";
            message && line["level"] == "WARN" && error.contains(words)
        });
        await_scrape(address, |scrape| scrape.value(FAILED) >= 1.0);
    }
    let why = "the certificate is about to expire; its renewal fails";
    http::await_unready(address, "identity", why);
    assert!(agent.requests(Method::GetTlsKey) > asked, "{behaviour:?}");
    // Whoever asks no dates gets in still.
    let before = tls::shown(sidecar.address());
    tls::enter(Some(&tdx), &sidecar).terminate();
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");

    agent.behave_for(Method::GetTlsKey, AgentBehaviour::Normal);
    http::await_ready(address);
    assert_ne!(tls::shown(sidecar.address()), before, "{behaviour:?}");
    tls::enter(Some(&tdx), &sidecar).terminate();
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
}

fn removed(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.agent();
    let sidecar = short_lived(fixture, &tdx);
    let address = admin(&sidecar);
    let mut session = tls::enter(Some(&tdx), &sidecar);
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
    tls::enter(Some(&tdx), &sidecar).terminate();
    let _agent = tdx.agent();
    http::await_ready(address);
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
}
