//! A guest agent that stops answering as it should while the sidecar runs.

use std::thread;
use std::time::Duration;

use attest::mock::AgentBehaviour;

use super::scrape::await_scrape;
use super::{Method, Town, admin, http, tls};
use crate::sidecar::Sidecar;
use crate::suite::{Suite, World};

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
    let hangs = AgentBehaviour::Delay(Duration::from_secs(30));
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
        (hangs, None),
    ]
}

fn fails_and_recovers(world: &World) {
    thread::scope(|scope| {
        for (behaviour, words) in behaviours() {
            scope.spawn(move || fails(world, behaviour, words));
        }
    });
}

fn short_lived(world: &World, town: &Town) -> Sidecar {
    let settings = town
        .settings(world)
        .set("TEESQL_SHARDS", "1")
        .set("TEESQL_CERTIFICATE_VALIDITY", "4s");
    Sidecar::start(&settings)
}

fn fails(world: &World, behaviour: AgentBehaviour, words: Option<&str>) {
    let town = Town::new();
    let agent = town.agent();
    let sidecar = short_lived(world, &town);
    let address = admin(&sidecar);
    let mut session = tls::enter(Some(&town), &sidecar);
    http::await_ready(address);

    agent.set_behaviour_for(Method::GetTlsKey, behaviour.clone());
    let asked = agent.requests(Method::GetTlsKey);
    if let Some(words) = words {
        sidecar.await_line(words, |line| {
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
    tls::enter(Some(&town), &sidecar).quit();
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");

    agent.set_behaviour_for(Method::GetTlsKey, AgentBehaviour::Normal);
    http::await_ready(address);
    assert_ne!(tls::shown(sidecar.address()), before, "{behaviour:?}");
    tls::enter(Some(&town), &sidecar).quit();
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
}

fn removed(world: &World) {
    let town = Town::new();
    let agent = town.agent();
    let sidecar = short_lived(world, &town);
    let address = admin(&sidecar);
    let mut session = tls::enter(Some(&town), &sidecar);
    drop(agent);
    let path = town.path("dstack.sock");
    sidecar.await_line("the path", |line| {
        let error = line["error"].as_str().unwrap_or_default();
        line["message"] == "certificate not renewed" && error.contains(&path)
    });
    http::await_unready(address, "identity", "its renewal fails");
    let report = http::get(address, "/attestation");
    assert_eq!(report.status, 503, "{}", report.body);
    assert!(report.body.contains(&path), "{}", report.body);
    tls::enter(Some(&town), &sidecar).quit();
    let _agent = town.agent();
    http::await_ready(address);
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
}
