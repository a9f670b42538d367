//! Conformance with recorded evidence, each at a fixed time.

use attest::certificate::Leaf;
use attest::chain::KmsRoot;
use attest::collateral::{CaType, Collateral};
use attest::evidence::{EvidenceFormat, UnboundEvidence};
use attest::mock::recorded::{
    self, APP_ID, COMPOSE_HASH, HARDWARE_NOW, INSTANCE_ID, MOCK_NOW, OS_IMAGE_HASH, OUTDATED_NOW,
    attestation, hardware, mock, tls_key,
};
use attest::policy::{KmsRootPin, TcbStatus};
use attest::quote::{ReportKind, TdQuote};
use attest::{Denial, Policy, TrustedRoot, Verifier, examine};

use crate::policy_with;

#[test]
fn default_root_is_intels() {
    let root = TrustedRoot::intel();
    let published = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";
    assert_eq!(root.fingerprint().to_string(), published);
    assert!(!root.is_dangerous());
    assert!(
        !TrustedRoot::dangerous(root.der()).unwrap().is_dangerous(),
        "Intel's root is not dangerous, however it is given"
    );
    assert!(TrustedRoot::dangerous(b"-----BEGIN NONSENSE-----").is_err());
    assert!(TrustedRoot::dangerous(&[0x30, 0x00]).is_err());
}

#[test]
fn hardware_quote_is_up_to_date() {
    let Some((quote, collateral)) = hardware("tdx_quote") else {
        return;
    };
    let quote = TdQuote::parse(&quote).unwrap();
    assert_eq!(
        (quote.version(), quote.report().kind()),
        (4, ReportKind::Td10)
    );
    let key = quote.collateral_key().unwrap();
    assert_eq!(key, collateral.key());
    assert_eq!(key.ca, CaType::Platform);
    let verifier = Verifier::new(TrustedRoot::intel());
    let appraisal = verifier
        .appraise(&quote, &collateral, &Policy::default(), HARDWARE_NOW)
        .unwrap();
    assert_eq!(appraisal.tcb_status(), TcbStatus::UpToDate);
    assert!(appraisal.advisories().is_empty());
    assert!(appraisal.valid_until() > HARDWARE_NOW);
}

#[test]
fn hardware_quote_outside_its_collaterals_validity_is_refused() {
    let Some((quote, collateral)) = hardware("tdx_quote") else {
        return;
    };
    let quote = TdQuote::parse(&quote).unwrap();
    let verifier = Verifier::new(TrustedRoot::intel());
    let at = |now| {
        verifier
            .appraise(&quote, &collateral, &Policy::default(), now)
            .map(|_| ())
    };
    assert_eq!(at(collateral.valid_from()), Ok(()));
    assert_eq!(
        at(collateral.valid_from() - 1),
        Err(Denial::CollateralNotYetValid)
    );
    assert_eq!(at(collateral.expires_at() - 1), Ok(()));
    assert_eq!(at(collateral.expires_at()), Err(Denial::CollateralExpired));
    assert_eq!(at(MOCK_NOW), Err(Denial::CollateralExpired));
}

#[test]
fn outdated_hardware_is_refused() {
    let Some((quote, collateral)) = hardware("tdx_quote_outdated") else {
        return;
    };
    let quote = TdQuote::parse(&quote).unwrap();
    assert_eq!(quote.version(), 5);
    let verifier = Verifier::new(TrustedRoot::intel());
    let denial = verifier.appraise(&quote, &collateral, &Policy::default(), OUTDATED_NOW);
    assert_eq!(denial.unwrap_err().code(), "tcb_out_of_date");
}

#[test]
fn hardware_quote_under_another_root_is_refused() {
    let Some((quote, collateral)) = hardware("tdx_quote") else {
        return;
    };
    let Some((verifier, _)) = mock("dstack-mock-v0") else {
        return;
    };
    let quote = TdQuote::parse(&quote).unwrap();
    let denial = verifier.appraise(&quote, &collateral, &Policy::default(), HARDWARE_NOW);
    assert_eq!(denial.unwrap_err(), Denial::BadSignature);
}

#[test]
fn sgx_quote_is_refused() {
    let Some(quote) = recorded::read("tdx-hardware/sgx_quote") else {
        return;
    };
    assert_eq!(TdQuote::parse(&quote).unwrap_err(), Denial::NotTdx);
    let collateral = recorded::read("tdx-hardware/sgx_quote_collateral.json").unwrap();
    assert!(Collateral::from_json(&collateral).is_err());
}

#[test]
fn event_log_of_a_hardware_attestation_replays() {
    let Some(envelope) = recorded::read("tdx-hardware/dstack_attestation_v0.bin") else {
        return;
    };
    let evidence = UnboundEvidence::from_envelope(&envelope).unwrap();
    let identity = evidence
        .events()
        .prove(evidence.quote().report().rtmr3())
        .unwrap();
    assert_eq!(identity.app_id().unwrap().to_string(), APP_ID);
    assert_eq!(identity.compose_hash().unwrap().to_string(), COMPOSE_HASH);
    assert_eq!(identity.instance_id().unwrap().to_string(), INSTANCE_ID);
    assert_eq!(identity.os_image_hash().unwrap().to_string(), OS_IMAGE_HASH);
    assert!(
        identity
            .key_provider()
            .unwrap()
            .starts_with(r#"{"name":"kms","id":"3059"#)
    );
}

#[test]
fn event_logs_of_both_envelopes_replay() {
    for (folder, form) in [
        ("dstack-mock-v0", EvidenceFormat::V0),
        ("dstack-mock-v1", EvidenceFormat::V1),
        ("dstack-plain-v0", EvidenceFormat::V0),
    ] {
        let Some(envelope) = attestation(folder) else {
            return;
        };
        let evidence = UnboundEvidence::from_envelope(&envelope).unwrap();
        assert_eq!(evidence.format(), form, "{folder}");
        let identity = evidence
            .events()
            .prove(evidence.quote().report().rtmr3())
            .unwrap();
        assert_eq!(identity.app_id().unwrap().to_string(), APP_ID, "{folder}");
    }
}

/// These chains are signed by the simulator's CA, whose key is public.
#[test]
fn simulator_leaves_are_accepted_under_their_root() {
    for folder in ["dstack-mock-v0", "dstack-mock-v1"] {
        let Some((verifier, collateral)) = mock(folder) else {
            return;
        };
        for name in ["GetTlsKey", "GetTlsKey_client_only"] {
            let chain = tls_key(folder, name).unwrap().chain_der();
            let pinned = policy_with(|settings| {
                settings.app_id = vec![APP_ID.parse().unwrap()];
                settings.compose_hash = vec![COMPOSE_HASH.parse().unwrap()];
                settings.os_image_hash = vec![OS_IMAGE_HASH.parse().unwrap()];
                let root = KmsRoot::from_der(&chain[1]).unwrap();
                settings.kms_root = KmsRootPin::Roots(vec![root]);
            });
            let evidence = examine(&chain, MOCK_NOW, &pinned).unwrap();
            assert_eq!(evidence.collateral_key().unwrap(), collateral.key());
            let peer = verifier
                .verify(&evidence, &collateral, &pinned, MOCK_NOW)
                .unwrap();
            assert_eq!(peer.app_id().unwrap().to_string(), APP_ID);
            assert_eq!(peer.tcb_status(), TcbStatus::UpToDate);
            assert_eq!(peer.valid_until(), collateral.expires_at() - 1);
            assert_eq!(peer.policy_epoch(), pinned.epoch());
            assert!(!peer.is_debug());
        }
    }
}

#[test]
fn simulator_leaves_are_refused_under_intels_root() {
    let Some((_, collateral)) = mock("dstack-mock-v1") else {
        return;
    };
    let chain = tls_key("dstack-mock-v1", "GetTlsKey").unwrap().chain_der();
    let policy = Policy::default();
    let evidence = examine(&chain, MOCK_NOW, &policy).unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let denial = intel
        .verify(&evidence, &collateral, &policy, MOCK_NOW)
        .unwrap_err();
    assert_eq!(denial, Denial::BadSignature);
}

/// The report data of this hardware quote was patched. It is bound to the key, and its signature is wrong.
#[test]
fn patched_quote_has_a_bad_signature() {
    let Some(tls_key) = tls_key("dstack-plain-v0", "GetTlsKey") else {
        return;
    };
    // Collateral of another platform, from the validity of its PCK certificate. The leaf starts in 1975.
    let (_, hardware) = hardware("tdx_quote_outdated").unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let (under_mock, mock) = mock("dstack-mock-v0").unwrap();
    for (verifier, collateral, now) in [
        (intel, hardware, OUTDATED_NOW),
        (under_mock, mock, MOCK_NOW),
    ] {
        let policy = Policy::default();
        let evidence = examine(&tls_key.chain_der(), now, &policy).unwrap();
        let denial = verifier.verify(&evidence, &collateral, &policy, now);
        assert_eq!(denial.unwrap_err(), Denial::BadSignature);
    }
}

#[test]
fn simulator_leaf_has_the_documented_extensions() {
    let Some(tls_key) = tls_key("dstack-mock-v1", "GetTlsKey") else {
        return;
    };
    let chain = tls_key.chain_der();
    let leaf = Leaf::parse(&chain[0]).unwrap();
    assert_eq!(leaf.spki().len(), 91);
    assert_eq!(leaf.extensions().usage, Some(&b"app:custom"[..]));
    assert_eq!(leaf.extensions().attestation.map(<[u8]>::len), Some(6164));
    assert!(leaf.extensions().quote.is_none());
    let plain = self::tls_key("dstack-mock-v1", "GetTlsKey_no_ratls").unwrap();
    let denial = examine(&plain.chain_der(), MOCK_NOW, &Policy::default()).unwrap_err();
    assert_eq!(denial, Denial::NoEvidence);
}

/// A certificate that is valid from 2026-11-20 06:21:36 for a day and an hour.
#[test]
fn certificate_dates_and_age_are_enforced() {
    const FROM: u64 = 1_795_155_696;
    const UNTIL: u64 = 1_795_245_696;
    let Some(tls_key) = tls_key("dstack-mock-v0", "GetTlsKey_app_info_validity") else {
        return;
    };
    let at = |now, policy: &Policy| examine(&tls_key.chain_der(), now, policy).map(|_| ());
    let any = Policy::default();
    assert_eq!(at(FROM - 301, &any), Err(Denial::NotYetValid));
    assert_eq!(at(FROM - 300, &any), Ok(()));
    assert_eq!(at(UNTIL, &any), Ok(()));
    assert_eq!(at(UNTIL + 1, &any), Err(Denial::Expired));
    let young = policy_with(|s| s.max_certificate_age = Some(std::time::Duration::from_secs(3600)));
    assert_eq!(at(FROM + 3600, &young), Ok(()));
    assert_eq!(at(FROM + 3601, &young), Err(Denial::TooOld));
}
