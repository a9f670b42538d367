//! What the forwarder shows: the guest agent's certificate or PEM files, kept
//! good while it runs.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::agent::Method;
use attest::mock::{Agent, AgentBehaviour, AgentListen, AgentOptions, Evidence};

use super::lab::{Lab, SEED, now};
use super::run::{Forwarder, Settings};
use super::through::READER;
use crate::process::{PATIENCE, lossy, poll, run};
use crate::suite::{Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::identity::of_the_guest_agent", of_the_agent);
    suite.add("forward::identity::no_guest_agent", no_agent);
    suite.add("forward::identity::files_that_change", files);
}

fn agent(lab: &Lab) -> Agent {
    let options = AgentOptions {
        seed: SEED,
        ..AgentOptions::new(now)
    };
    let listen = AgentListen::Unix(lab.path("dstack.sock").into());
    Agent::start(Arc::clone(&lab.pki), listen, options).expect("a guest agent")
}

fn by_agent(lab: &Lab, world: &World, target: impl ToString) -> Settings {
    lab.settings_to(world, target)
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &lab.path("dstack.sock"))
}

/// Renewed while it runs, under a session that stays.
fn of_the_agent(world: &World) {
    let lab = Lab::new();
    let agent = agent(&lab);
    let sidecar = lab.sidecar(world);
    let settings =
        by_agent(&lab, world, sidecar.address()).set("TEESQL_CERTIFICATE_VALIDITY", "3s");
    let forwarder = Forwarder::start(&settings);
    assert_eq!(forwarder.ask(READER), "1\n");
    let first = agent.requests(Method::GetTlsKey);
    let renewed = || (agent.requests(Method::GetTlsKey) >= first + 2).then_some(());
    poll(PATIENCE, renewed).expect("it is renewed");
    forwarder.await_line("new", |line| line["message"] == "new certificate in use");
    assert_eq!(forwarder.ask(READER), "1\n", "with the new one");
    // One that the agent does not give costs nobody anything before the end.
    agent.set_behaviour(AgentBehaviour::Close);
    forwarder.await_line("a warning", |line| {
        line["message"] == "certificate not renewed"
    });
    agent.set_behaviour(AgentBehaviour::Normal);
}

fn no_agent(world: &World) {
    let lab = Lab::new();
    let settings = by_agent(&lab, world, "db.example:5433").set("TEESQL_START_TIMEOUT", "600ms");
    let begun = Instant::now();
    let output = run(settings.command(&[]), PATIENCE);
    let said = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("no client certificate: "), "{said}");
    assert!(said.contains("dstack.sock"), "{said}");

    let agent = agent(&lab);
    agent.set_behaviour(AgentBehaviour::Delay(Duration::from_secs(30)));
    let output = run(settings.command(&[]), PATIENCE);
    let said = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("did not answer within 600ms"), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waits too long"
    );

    agent.set_behaviour(AgentBehaviour::Status(403, "{\"error\":\"no\"}".to_owned()));
    let output = run(settings.command(&[]), PATIENCE);
    assert_eq!(output.status.code(), Some(69));
}

fn files(world: &World) {
    let lab = Lab::new();
    let sidecar = lab.sidecar(world);
    let settings = lab.settings_to(world, sidecar.address());
    let forwarder = Forwarder::start(&settings);
    assert_eq!(forwarder.ask(READER), "1\n");
    // Half of a replacement is not used; the whole is.
    let other = lab.issue("other client", &Evidence::default());
    fs::write(settings.get("TEESQL_CLIENT_CERT"), other.chain_pem()).expect("the certificate");
    forwarder.await_line("a mismatch", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        text.starts_with("the certificate's files have changed, and are not used")
    });
    assert_eq!(forwarder.ask(READER), "1\n");
    let key = other.key().to_pkcs8_pem().expect("a key");
    fs::write(settings.get("TEESQL_CLIENT_KEY"), key).expect("the key");
    forwarder.await_line("new", |line| line["message"] == "new certificate in use");
    assert_eq!(forwarder.ask(READER), "1\n");

    let nothing = settings.set("TEESQL_CLIENT_CERT", &lab.path("nothing.pem"));
    let output = run(nothing.command(&[]), PATIENCE);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}
