//! Certificates and quotes from the mock agent pass verification.

use attest::agent::TlsKeyRequest;
use attest::chain::KmsRoot;
use attest::collateral::Collateral;
use attest::evidence::UnboundEvidence;
use attest::mock::{AgentOptions, CollateralOptions, Envelope, Evidence};
use attest::policy::{KmsRootPin, Settings, TcbStatus};
use attest::values::AppId;
use attest::{Denial, Policy, TrustedRoot, Verifier, examine};

use crate::{NOW, agent, agent_with, block_on, pki};

fn verifier() -> Verifier {
    Verifier::new(TrustedRoot::dangerous(pki().root_der()).unwrap())
}

fn collateral() -> Collateral {
    pki()
        .parsed_collateral(&CollateralOptions::at(NOW))
        .unwrap()
}

fn client_request() -> TlsKeyRequest {
    TlsKeyRequest {
        subject: "client".to_owned(),
        usage_ra_tls: true,
        usage_client_auth: true,
        ..TlsKeyRequest::default()
    }
}

/// Accepts the mock's application and KMS only.
fn policy() -> Policy {
    Policy::new(Settings {
        app_id: vec![AppId([0xa1; 20])],
        kms_root: KmsRootPin::Roots(KmsRoot::from_pem(pki().kms_pem().as_bytes()).unwrap()),
        ..Settings::default()
    })
}

#[test]
fn client_certificates_verify_in_every_envelope() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let mock = agent_with(AgentOptions {
            evidence: Evidence {
                envelope,
                ..Evidence::default()
            },
            ..AgentOptions::at(NOW)
        });
        let key = block_on(mock.client().tls_key(&client_request())).unwrap();
        let evidence = examine(key.chain_der(), NOW, &policy()).unwrap();
        let peer = verifier()
            .verify(&evidence, &collateral(), &policy(), NOW)
            .unwrap();
        assert_eq!(peer.tcb_status(), TcbStatus::UpToDate, "{envelope:?}");
        assert_eq!(peer.fingerprint(), key.fingerprint());
    }
}

#[test]
fn another_application_is_refused() {
    let mock = agent_with(AgentOptions {
        evidence: Evidence {
            app_id: vec![0xee; 20],
            ..Evidence::default()
        },
        ..AgentOptions::at(NOW)
    });
    let key = block_on(mock.client().tls_key(&client_request())).unwrap();
    let evidence = examine(key.chain_der(), NOW, &policy()).unwrap();
    let denial = verifier().verify(&evidence, &collateral(), &policy(), NOW);
    assert_eq!(denial.unwrap_err().code(), "app_not_allowed");
}

#[test]
fn certificate_is_valid_through_its_last_second() {
    let request = TlsKeyRequest {
        not_before: Some(NOW - 60),
        not_after: Some(NOW),
        ..client_request()
    };
    let key = block_on(agent().client().tls_key(&request)).unwrap();
    assert!(examine(key.chain_der(), key.not_after(), &policy()).is_ok());
    let denial = examine(key.chain_der(), key.not_after() + 1, &policy());
    assert_eq!(denial.unwrap_err(), Denial::Expired);
}

#[test]
fn quotes_and_attestations_verify() {
    let mock = agent();
    let quote = block_on(mock.client().quote(b"state")).unwrap();
    let attestation = block_on(mock.client().attest(b"state")).unwrap();
    let evidence = UnboundEvidence::from_envelope(&attestation).unwrap();
    for quote in [&quote.quote, evidence.quote()] {
        assert_eq!(quote.collateral_key().unwrap(), collateral().key());
        let appraisal = verifier().appraise(quote, &collateral(), &Policy::default(), NOW);
        assert_eq!(appraisal.unwrap().tcb_status(), TcbStatus::UpToDate);
    }
    let identity = evidence
        .events()
        .prove(evidence.quote().report().rtmr3())
        .unwrap();
    assert_eq!(identity.app_id(), Some(AppId([0xa1; 20])));
}
