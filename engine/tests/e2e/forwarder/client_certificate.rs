//! What the forwarder shows: the guest agent's certificate or PEM files, kept
//! good while it runs.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::agent::Method;
use attest::mock::{Agent, AgentBehaviour, AgentListen, AgentOptions, Evidence};

use super::drivers::READER;
use crate::harness::forwarder::{Forwarder, Settings};
use crate::harness::process::{TIMEOUT, lossy, poll_until, run};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::tdx_fixture::{SEED, TdxFixture, now};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::identity::of_the_guest_agent", of_the_agent);
    suite.add("forward::identity::no_guest_agent", no_agent);
    suite.add("forward::identity::files_that_change", files);
}

fn agent(tdx: &TdxFixture) -> Agent {
    let options = AgentOptions {
        seed: SEED,
        ..AgentOptions::new(now)
    };
    let listen = AgentListen::Unix(tdx.path("dstack.sock").into());
    Agent::start(Arc::clone(&tdx.pki), listen, options).expect("a guest agent")
}

fn by_agent(tdx: &TdxFixture, fixture: &Fixture, target: impl ToString) -> Settings {
    tdx.settings_to(fixture, target)
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &tdx.path("dstack.sock"))
}

/// Renewed while it runs, under a session that stays.
fn of_the_agent(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = agent(&tdx);
    let sidecar = tdx.sidecar(fixture);
    let settings =
        by_agent(&tdx, fixture, sidecar.address()).set("TEESQL_CERTIFICATE_VALIDITY", "3s");
    let forwarder = Forwarder::start(&settings);
    assert_eq!(forwarder.ask(READER), "1\n");
    let first = agent.requests(Method::GetTlsKey);
    let renewed = || (agent.requests(Method::GetTlsKey) >= first + 2).then_some(());
    poll_until(TIMEOUT, renewed).expect("it is renewed");
    forwarder.await_log("new", |line| line["message"] == "new certificate in use");
    assert_eq!(forwarder.ask(READER), "1\n", "with the new one");
    // One that the agent does not give costs nobody anything before the end.
    agent.behave(AgentBehaviour::Close);
    forwarder.await_log("a warning", |line| {
        line["message"] == "certificate not renewed"
    });
    agent.behave(AgentBehaviour::Normal);
}

fn no_agent(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = by_agent(&tdx, fixture, "db.example:5433").set("TEESQL_START_TIMEOUT", "600ms");
    let begun = Instant::now();
    let output = run(settings.command(&[]), TIMEOUT);
    let said = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("no client certificate: "), "{said}");
    assert!(said.contains("dstack.sock"), "{said}");

    let agent = agent(&tdx);
    agent.behave(AgentBehaviour::Hang(Duration::from_secs(30)));
    let output = run(settings.command(&[]), TIMEOUT);
    let said = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("did not answer within 600ms"), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waits too long"
    );

    agent.behave(AgentBehaviour::Status(403, "{\"error\":\"no\"}".to_owned()));
    let output = run(settings.command(&[]), TIMEOUT);
    assert_eq!(output.status.code(), Some(69));
}

fn files(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.sidecar(fixture);
    let settings = tdx.settings_to(fixture, sidecar.address());
    let forwarder = Forwarder::start(&settings);
    assert_eq!(forwarder.ask(READER), "1\n");
    // Half of a replacement is not used; the whole is.
    let other = tdx.issue("other client", &Evidence::default());
    fs::write(settings.get("TEESQL_CLIENT_CERT"), other.chain_pem()).expect("the certificate");
    forwarder.await_log("a mismatch", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        text.starts_with("the certificate's files have changed, and are not used")
    });
    assert_eq!(forwarder.ask(READER), "1\n");
    let key = other.key().to_pkcs8_pem().expect("a key");
    fs::write(settings.get("TEESQL_CLIENT_KEY"), key).expect("the key");
    forwarder.await_log("new", |line| line["message"] == "new certificate in use");
    assert_eq!(forwarder.ask(READER), "1\n");

    let nothing = settings.set("TEESQL_CLIENT_CERT", &tdx.path("nothing.pem"));
    let output = run(nothing.command(&[]), TIMEOUT);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}
