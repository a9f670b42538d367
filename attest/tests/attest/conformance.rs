//! The shared fixtures, each at a fixed `now`.

use attest::certificate::Leaf;
use attest::chain::KmsRoot;
use attest::collateral::{CaType, Collateral};
use attest::evidence::{EvidenceFormat, UnboundEvidence};
use attest::policy::TcbStatus;
use attest::quote::{ReportKind, TdQuote};
use attest::{Denial, Policy, TrustedRoot, Verifier, examine};

use crate::fixtures::{
    self, HARDWARE_NOW, MOCK_NOW, OUTDATED_NOW, envelope, hardware, mock, policy, tls_key,
};

const APP_ID: &str = "5bb4ff9a3837357f19dc176407a5709c62eb6c56";
const COMPOSE_HASH: &str = "c143116fef3940e7f776bfc0919c256232ae5338a6e948c96b711e0b2383483a";
const INSTANCE_ID: &str = "1691ed1b47506cad7d08834668691d88246f5b1f";
const OS_IMAGE_HASH: &str = "e61be43dd1cc6a6f5edefd7c51b608983780839b0000ce60dd99737dcffe09b9";

#[test]
fn the_root_is_intels() {
    let root = TrustedRoot::intel();
    let published = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";
    assert_eq!(root.fingerprint().to_string(), published);
    assert!(!root.is_dangerous());
    assert!(
        !TrustedRoot::dangerous(root.der()).unwrap().is_dangerous(),
        "Intel's by another way"
    );
    assert!(TrustedRoot::dangerous(b"-----BEGIN NONSENSE-----").is_err());
    assert!(TrustedRoot::dangerous(&[0x30, 0x00]).is_err());
}

#[test]
fn hardware_up_to_date() {
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
fn hardware_outside_its_window() {
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
fn hardware_out_of_date() {
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
fn hardware_under_another_root() {
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
fn sgx_is_not_tdx() {
    let Some(quote) = fixtures::read("tdx-hardware/sgx_quote") else {
        return;
    };
    assert_eq!(TdQuote::parse(&quote).unwrap_err(), Denial::NotTdx);
    let collateral = fixtures::read("tdx-hardware/sgx_quote_collateral.json").unwrap();
    assert!(Collateral::from_json(&collateral).is_err());
}

#[test]
fn a_hardware_attestation_replays() {
    let Some(envelope) = fixtures::read("tdx-hardware/dstack_attestation_v0.bin") else {
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
fn both_envelopes_of_the_agent_replay() {
    for (folder, form) in [
        ("dstack-mock-v0", EvidenceFormat::V0),
        ("dstack-mock-v1", EvidenceFormat::V1),
        ("dstack-plain-v0", EvidenceFormat::V0),
    ] {
        let Some(envelope) = envelope(folder) else {
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

/// The mock fixtures' chains: the CA, whose key is public, signed the leaf.
#[test]
fn mock_leaves_are_accepted_under_their_root() {
    for folder in ["dstack-mock-v0", "dstack-mock-v1"] {
        let Some((verifier, collateral)) = mock(folder) else {
            return;
        };
        for name in ["GetTlsKey", "GetTlsKey_client_only"] {
            let chain = tls_key(folder, name).unwrap().chain;
            let pinned = policy(|settings| {
                settings.app_id = vec![APP_ID.parse().unwrap()];
                settings.compose_hash = vec![COMPOSE_HASH.parse().unwrap()];
                settings.os_image_hash = vec![OS_IMAGE_HASH.parse().unwrap()];
                settings.kms_roots = vec![KmsRoot::from_der(&chain[1]).unwrap()];
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
fn mock_leaves_are_refused_under_intels_root() {
    let Some((_, collateral)) = mock("dstack-mock-v1") else {
        return;
    };
    let chain = tls_key("dstack-mock-v1", "GetTlsKey").unwrap().chain;
    let policy = Policy::default();
    let evidence = examine(&chain, MOCK_NOW, &policy).unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let denial = intel
        .verify(&evidence, &collateral, &policy, MOCK_NOW)
        .unwrap_err();
    assert_eq!(denial, Denial::BadSignature);
}

/// A hardware quote whose report data was patched, so that it is bound, but not signed.
#[test]
fn plain_v0_has_a_bad_signature() {
    let Some(tls_key) = tls_key("dstack-plain-v0", "GetTlsKey") else {
        return;
    };
    // Of another platform, but from the time of its PCK certificate. The leaf starts in 1975.
    let (_, hardware) = hardware("tdx_quote_outdated").unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let (under_mock, mock) = mock("dstack-mock-v0").unwrap();
    for (verifier, collateral, now) in [
        (intel, hardware, OUTDATED_NOW),
        (under_mock, mock, MOCK_NOW),
    ] {
        let policy = Policy::default();
        let evidence = examine(&tls_key.chain, now, &policy).unwrap();
        let denial = verifier.verify(&evidence, &collateral, &policy, now);
        assert_eq!(denial.unwrap_err(), Denial::BadSignature);
    }
}

#[test]
fn the_leaf_says_what_the_notes_say() {
    let Some(tls_key) = tls_key("dstack-mock-v1", "GetTlsKey") else {
        return;
    };
    let leaf = Leaf::parse(&tls_key.chain[0]).unwrap();
    assert_eq!(leaf.spki().len(), 91);
    assert_eq!(leaf.extensions().usage, Some(&b"app:custom"[..]));
    assert_eq!(leaf.extensions().attestation.map(<[u8]>::len), Some(6164));
    assert!(leaf.extensions().quote.is_none());
    let plain = self::tls_key("dstack-mock-v1", "GetTlsKey_no_ratls").unwrap();
    let denial = examine(&plain.chain, MOCK_NOW, &Policy::default()).unwrap_err();
    assert_eq!(denial, Denial::NoEvidence);
}

/// The certificate with dates, from 2026-11-20 06:21:36 for a day and an hour.
#[test]
fn dates_and_age() {
    const FROM: u64 = 1_795_155_696;
    const UNTIL: u64 = 1_795_245_696;
    let Some(tls_key) = tls_key("dstack-mock-v0", "GetTlsKey_app_info_validity") else {
        return;
    };
    let at = |now, policy: &Policy| examine(&tls_key.chain, now, policy).map(|_| ());
    let any = Policy::default();
    assert_eq!(at(FROM - 301, &any), Err(Denial::NotYetValid));
    assert_eq!(at(FROM - 300, &any), Ok(()));
    assert_eq!(at(UNTIL, &any), Ok(()));
    assert_eq!(at(UNTIL + 1, &any), Err(Denial::Expired));
    let young = policy(|s| s.max_certificate_age = Some(std::time::Duration::from_secs(3600)));
    assert_eq!(at(FROM + 3600, &young), Ok(()));
    assert_eq!(at(FROM + 3601, &young), Err(Denial::TooOld));
}
