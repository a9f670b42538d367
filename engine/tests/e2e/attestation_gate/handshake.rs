//! Tests of the TLS handshake of clients with certificates: possession of the key, long chains, and
//! session resumption.

use std::fs;

use attest::mock::{Evidence, Key};
use nix::sys::signal::Signal;
use rustls::client::Resumption;

use super::{client_config, client_config_with_chain, connect, connect_with_config};
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{SEED, TdxFixture};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::requires_the_key_of_the_certificate",
        requires_the_key,
    );
    suite.add("attestation_gate::refuses_long_chains", refuses_long_chains);
    suite.add("attestation_gate::never_resumes_a_session", never_resumes);
}

/// A captured certificate is useless without its key.
fn requires_the_key(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    let certificate = tdx.issue("owner", &Evidence::default());
    let other_key = Key::derive(&SEED, "thief").expect("a key");
    let config = client_config(fixture, &certificate, &other_key);
    // With TLS 1.3 the client sees the failure at its first read.
    let opened = Client::connect_with(config, sidecar.address(), TlsNegotiation::Raw);
    sidecar.await_log("the failed proof of possession", |line| {
        line["message"] == "TLS handshake failed" && line["reason"] == "tls_certificate"
    });
    drop(opened);
    let mut owner = connect(fixture, &sidecar, &certificate);
    owner.login_reader();
}

fn refuses_long_chains(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    let certificate = tdx.issue("client", &Evidence::default());
    let [leaf, ca] = certificate.chain_der();
    let mut chain = vec![ca; 50];
    chain.insert(0, leaf);
    let config = client_config_with_chain(fixture, &chain, certificate.key());
    let mut client = connect_with_config(config, &sidecar);
    let error = client.expect_fatal();
    assert_eq!(error.message, "client attestation rejected: chain_too_long");
}

fn never_resumes(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let file = tdx.path("sidecar.toml");
    fs::write(&file, "").expect("sidecar.toml");
    let settings = tdx.production_settings(fixture).set("TEESQL_CONFIG", &file);
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("client", &Evidence::default());
    let mut config = client_config(fixture, &certificate, certificate.key());
    config.resumption = Resumption::in_memory_sessions(16);
    for _ in 0..3 {
        let opened = Client::connect_with(config.clone(), sidecar.address(), TlsNegotiation::Raw);
        let mut client = opened.expect("TLS");
        client.login_reader();
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        client.terminate();
    }
    // Tickets that the client stored do not bypass a new policy either.
    fs::write(&file, format!("allowed_mrtd = \"{}\"\n", "12".repeat(48))).expect("sidecar.toml");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration reloaded, new policy");
    let opened = Client::connect_with(config, sidecar.address(), TlsNegotiation::Raw);
    let error = opened.expect("TLS").expect_fatal();
    assert_eq!(error.message, "client attestation rejected: not_allowed");
}
