//! Tests of the certificate that the forwarder presents, from the guest agent or from PEM files, and
//! of its renewal.

use std::fs;
use std::time::{Duration, Instant};

use attest::agent::Method;
use attest::mock::{AgentBehaviour, Evidence};

use crate::harness::READER;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::process::{TIMEOUT, lossy, poll_until, run};
use crate::harness::settings::Settings;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::client_certificate::renews_from_the_guest_agent",
        renews_from_the_agent,
    );
    suite.add(
        "forwarder::client_certificate::exits_without_a_guest_agent",
        exits_without_an_agent,
    );
    suite.add(
        "forwarder::client_certificate::reloads_changed_files",
        reloads_changed_files,
    );
}

fn agent_settings(tdx: &TdxFixture, fixture: &Fixture, target: impl ToString) -> Settings {
    tdx.forwarder_settings_to(fixture, target)
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &tdx.path("dstack.sock"))
}

fn renews_from_the_agent(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let settings =
        agent_settings(&tdx, fixture, sidecar.address()).set("TEESQL_CERTIFICATE_VALIDITY", "3s");
    let forwarder = Forwarder::start(&settings);
    forwarder.assert_reader_connects();
    let first = agent.requests(Method::GetTlsKey);
    let renewed = || (agent.requests(Method::GetTlsKey) >= first + 2).then_some(());
    poll_until(TIMEOUT, renewed).expect("the certificate is renewed");
    forwarder.await_message("new certificate in use");
    assert_eq!(
        forwarder.psql_select_1(READER),
        "1\n",
        "with the new certificate"
    );
    // A failed renewal has no effect before the certificate expires.
    agent.set_behaviour(AgentBehaviour::Close);
    forwarder.await_message("certificate not renewed");
    agent.set_behaviour(AgentBehaviour::Normal);
}

fn exits_without_an_agent(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings =
        agent_settings(&tdx, fixture, "db.example:5433").set("TEESQL_START_TIMEOUT", "600ms");
    let start = Instant::now();
    let output = run(settings.forwarder_command(&[]), TIMEOUT);
    let stderr = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("no client certificate: "), "{stderr}");
    assert!(stderr.contains("dstack.sock"), "{stderr}");

    let agent = tdx.start_agent();
    agent.set_behaviour(AgentBehaviour::Delay(Duration::from_secs(30)));
    let output = run(settings.forwarder_command(&[]), TIMEOUT);
    let stderr = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("did not answer within 600ms"), "{stderr}");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "it waits longer than the start timeout"
    );

    agent.set_behaviour(AgentBehaviour::Status(403, "{\"error\":\"no\"}".to_owned()));
    let output = run(settings.forwarder_command(&[]), TIMEOUT);
    assert_eq!(output.status.code(), Some(69));
}

fn reloads_changed_files(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let settings = tdx.forwarder_settings_to(fixture, sidecar.address());
    let forwarder = Forwarder::start(&settings);
    forwarder.assert_reader_connects();
    // A new certificate is used once its key has been replaced too.
    let other = tdx.issue("other client", &Evidence::default());
    fs::write(settings.get("TEESQL_CLIENT_CERT"), other.chain_pem()).expect("the certificate");
    forwarder.await_log("a mismatch", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        text.starts_with("the certificate files have changed but cannot be used")
    });
    forwarder.assert_reader_connects();
    let key = other.key().to_pkcs8_pem().expect("a key");
    fs::write(settings.get("TEESQL_CLIENT_KEY"), key).expect("the key");
    forwarder.await_message("new certificate in use");
    forwarder.assert_reader_connects();

    let missing = settings.set("TEESQL_CLIENT_CERT", &tdx.path("missing.pem"));
    let output = run(missing.forwarder_command(&[]), TIMEOUT);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}
