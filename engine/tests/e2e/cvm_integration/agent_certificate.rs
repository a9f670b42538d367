//! Tests of the certificate from the guest agent, as clients see it.

use std::fs;
use std::sync::Arc;

use attest::agent::Method;
use attest::certificate::Leaf;
use attest::evidence::UnboundEvidence;
use attest::mock::{Agent, AgentListen, AgentOptions, Pki};

use crate::harness::fixture::Fixture;
use crate::harness::process::{
    TIMEOUT, lossy, poll_until, run, run_for_both_outputs, run_successfully,
};
use crate::harness::settings::sidecar_command;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};
use crate::harness::{READER, http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    for (name, over_http) in [("socket", false), ("http", true)] {
        let name =
            format!("cvm_integration::agent_certificate::verify_full_with_agent_over_{name}");
        suite.add(&name, move |fixture| verify_full(fixture, over_http));
    }
    suite.add(
        "cvm_integration::agent_certificate::verify_command_accepts_the_sidecar",
        verify_command,
    );
    suite.add(
        "cvm_integration::agent_certificate::judges_its_own_evidence",
        judges_its_own_evidence,
    );
}

/// A guest agent whose quotes are of another root than the sidecar's: no peer with this root accepts the sidecar. Each
/// renewal is judged again.
fn judges_its_own_evidence(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let start = |pki: Pki| {
        let listen = AgentListen::Unix(tdx.agent_socket());
        Agent::start(Arc::new(pki), listen, AgentOptions::new(now)).expect("a guest agent")
    };
    let agent = start(Pki::new(&[0x66; 32]).expect("another root"));
    let settings = tdx.agent_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_CERTIFICATE_VALIDITY", "6s"));
    let address = sidecar.admin_address();
    http::await_unready(address, "evidence", "own evidence: bad_signature: ");
    sidecar.await_message("peers will refuse this sidecar's own evidence");
    drop(agent);
    let _agent = tdx.start_agent();
    sidecar.await_message("this sidecar's own evidence is genuine");
    let is_genuine = || {
        let unready = http::unready(address);
        let evidence = unready.iter().any(|(name, _)| name == "evidence");
        (!evidence).then_some(())
    };
    poll_until(TIMEOUT, is_genuine).expect("the check passes");
}

/// psql with `sslmode=verify-full` accepts the CA that `ca` prints and the configured names.
fn verify_full(fixture: &Fixture, over_http: bool) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent_at(
        match over_http {
            true => AgentListen::Tcp,
            false => AgentListen::Unix(tdx.agent_socket()),
        },
        |_| (),
    );
    let address = agent.endpoint().to_string();
    let names = "db.example,localhost,127.0.0.1";
    let settings = tdx
        .agent_settings(fixture)
        .set("TEESQL_GUEST_AGENT", &address)
        .set("TEESQL_CERTIFICATE_SUBJECT", "db one")
        .set("TEESQL_CERTIFICATE_ALT_NAMES", names);
    let sidecar = Sidecar::start(&settings);
    let ca = run_successfully(
        sidecar_command(&["ca", "--guest-agent", &address], &[]),
        TIMEOUT,
    );
    assert_eq!(ca.matches("BEGIN CERTIFICATE").count(), 1, "{ca}");
    fs::write(tdx.path("printed.pem"), &ca).expect("a file");

    let (accepted, refused) = ("teesql_read\n", "does not match host name");
    for (name, expected) in [
        ("localhost", accepted),
        ("127.0.0.1", accepted),
        ("db.example", accepted),
        ("other.example", refused),
    ] {
        let mut psql = tdx.psql(&sidecar, READER, "select current_user");
        psql.env("PGHOST", name);
        psql.env("PGSSLROOTCERT", tdx.path("printed.pem"));
        let text = run_for_both_outputs(psql, TIMEOUT);
        assert!(text.contains(expected), "{name}: {text}");
    }
    check_presented_chain(&sidecar);
    // One for the sidecar, and one without a quote for `ca`.
    assert_eq!(agent.requests(Method::GetTlsKey), 2);
    assert_eq!(agent.requests(Method::GetQuote), 0);
}

/// The presented certificate carries evidence that is bound to its key.
fn check_presented_chain(sidecar: &Sidecar) {
    let chain = tls::presented_chain(sidecar.address());
    assert_eq!(chain.len(), 2, "leaf and CA");
    let leaf = Leaf::parse(&chain[0]).expect("a leaf");
    let evidence = UnboundEvidence::from_extensions(leaf.extensions()).expect("evidence");
    evidence
        .check_binding(leaf.spki())
        .expect("bound to its key");
    let remaining = leaf.not_after() - now();
    assert!(
        (86_000..=86_400).contains(&remaining),
        "valid for {remaining} s, not a day"
    );
}

/// `teesql-sidecar verify` accepts the sidecar under the mock root and refuses it under Intel's.
fn verify_command(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let sidecar = Sidecar::start(&tdx.agent_settings(fixture));
    let target = format!("localhost:{}", sidecar.port());
    let (root, pccs) = (tdx.path("root.pem"), tdx.pccs.url());
    let intel = ["verify", &target, "--pccs", &pccs];
    let mock = [&intel[..], &["--dangerous-tdx-root-ca", &root]].concat();
    let output = run(sidecar_command(&mock, &[]), TIMEOUT);
    let text = lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.lines().last(), Some("ACCEPTED"), "{text}");

    let output = run(sidecar_command(&intel, &[]), TIMEOUT);
    let text = lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("REFUSED: bad_signature"), "{text}");
}
