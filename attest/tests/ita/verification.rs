//! With valid tokens, Trust Authority gives the same peers and denials as local verification.

use attest::chain::KmsRoot;
use attest::ita::ItaError;
use attest::mock::{Binding, Fixture, PlatformLevel, QuoteFormat, Rtmr3, TokenVariant};
use attest::policy::{KmsRootPin, Settings, TcbStatus, TcbStatuses};
use attest::values::{AppId, ComposeHash, Mrtd, OsImageHash, Rtmr};
use attest::{Denial, Policy, examine};

use crate::{ItaFixture, LIFETIME, NOW};

fn policy(change: impl FnOnce(&mut Settings)) -> Policy {
    let mut settings = Settings::default();
    change(&mut settings);
    Policy::new(settings)
}

#[test]
fn valid_token_admits() {
    let fixture = ItaFixture::default();
    for variant in [
        TokenVariant::Valid,
        TokenVariant::Nested,
        TokenVariant::Rs256,
    ] {
        fixture.authority.set_token(variant.clone());
        let peer = fixture.verify().unwrap();
        let locally = fixture.peer.verify().unwrap();
        assert_eq!(peer.chain(), locally.chain());
        assert_eq!(peer.mrtd(), Mrtd([0x11; 48]));
        assert_eq!(peer.rtmrs(), locally.rtmrs());
        assert_eq!(peer.app_id(), Some(AppId([0xa1; 20])));
        assert_eq!(peer.compose_hash(), locally.compose_hash());
        assert_eq!(peer.tcb_status(), TcbStatus::UpToDate);
        assert_eq!(peer.policy_epoch(), fixture.peer.policy.epoch());
        assert!(!peer.is_debug());
        // The token expires first.
        assert_eq!(peer.valid_until(), NOW + LIFETIME - 1, "{variant:?}");
        assert!(locally.valid_until() > peer.valid_until());
    }
}

#[test]
fn every_quote_format_is_appraised() {
    for format in [QuoteFormat::V4, QuoteFormat::V5Td10, QuoteFormat::V5Td15] {
        let mut fixture = ItaFixture::default();
        fixture.peer.evidence.report.format = format;
        assert!(fixture.verify().is_ok(), "{format:?}");
    }
}

#[test]
fn policy_denials_equal_local_verification() {
    let policies: [(&str, Policy); 7] = [
        ("mrtd_not_allowed", policy(|s| s.mrtd = vec![Mrtd([1; 48])])),
        (
            "rtmr_not_allowed",
            policy(|s| s.rtmr[1] = vec![Rtmr([1; 48])]),
        ),
        (
            "app_not_allowed",
            policy(|s| s.app_id = vec![AppId([1; 20])]),
        ),
        (
            "compose_hash_not_allowed",
            policy(|s| s.compose_hash = vec![ComposeHash([1; 32])]),
        ),
        (
            "os_image_hash_not_allowed",
            policy(|s| s.os_image_hash = vec![OsImageHash([1; 32])]),
        ),
        (
            "kms_root_mismatch",
            policy(|s| {
                let root = KmsRoot::from_der(Fixture::default().pki.root_der()).unwrap();
                s.kms_root = KmsRootPin::Roots(vec![root]);
            }),
        ),
        ("admitted", policy(|s| s.mrtd = vec![Mrtd([0x11; 48])])),
    ];
    let mut fixture = ItaFixture::default();
    for (code, policy) in policies {
        fixture.peer.policy = policy;
        match (fixture.verify(), fixture.peer.verify()) {
            (Ok(_), Ok(_)) => assert_eq!(code, "admitted"),
            (Err(ItaError::Denied(by_ita)), Err(locally)) => {
                assert_eq!(by_ita, locally);
                assert_eq!(by_ita.code(), code);
            }
            (by_ita, locally) => panic!("{code}: {by_ita:?}, {locally:?}"),
        }
    }
}

#[test]
fn event_log_is_replayed() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.rtmr3 = Rtmr3::Bytes([3; 48]);
    let refused = fixture.verify().unwrap_err();
    assert_eq!(refused, ItaError::Denied(Denial::EventLogMismatch));
}

/// Intel's service accepts these attributes, and dcap-qvl does not.
#[test]
fn td_attributes_are_refused() {
    let (service_td_ext, migratable, reserved) = (1u64 << 17, 1u64 << 29, 1u64 << 33);
    for attributes in [service_td_ext, migratable, reserved] {
        let mut fixture = ItaFixture::default();
        fixture.peer.evidence.report.attributes = attributes;
        assert_eq!(fixture.peer.verify().unwrap_err(), Denial::TdAttributes);
        assert!(fixture.appraise().is_ok());
        assert_eq!(
            fixture.verify().unwrap_err(),
            ItaError::Denied(Denial::TdAttributes)
        );
    }
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.format = QuoteFormat::V5Td15;
    fixture.peer.evidence.report.mr_service_td = [1; 48];
    assert_eq!(fixture.peer.verify().unwrap_err(), Denial::TdAttributes);
    assert_eq!(
        fixture.verify().unwrap_err(),
        ItaError::Denied(Denial::TdAttributes)
    );
}

#[test]
fn policy_decides_on_tcb_statuses() {
    let mut fixture = ItaFixture::default();
    fixture.peer.platform.level = PlatformLevel::OutOfDate;
    let refused = fixture.verify().unwrap_err();
    assert_eq!(
        refused,
        ItaError::Denied(fixture.peer.verify().unwrap_err())
    );
    assert!(refused.to_string().starts_with(
        "Unacceptable TCB status: \"OutOfDate\". Acceptable statuses: OK, SWHardeningNeeded, \
         ConfigurationNeeded, ConfigurationAndSWHardeningNeeded. "
    ));
    assert_eq!(refused.code(), "tcb_out_of_date");
    fixture.peer.policy = policy(|s| s.tcb_statuses = TcbStatuses::new([TcbStatus::OutOfDate]));
    assert_eq!(fixture.verify().unwrap().tcb_status(), TcbStatus::OutOfDate);
}

#[test]
fn tcb_statuses_of_a_token_are_parsed() {
    let fixture = ItaFixture::default();
    let verify = |name: &str| {
        fixture
            .authority
            .set_token(TokenVariant::Claim("attester_tcb_status", name.into()));
        fixture.verify()
    };
    for accepted in ["OK", "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded"] {
        assert!(verify(accepted).is_ok(), "{accepted}");
    }
    for (name, code) in [
        ("OutOfDate", "tcb_out_of_date"),
        (
            "OutOfDateConfigurationNeeded",
            "tcb_out_of_date_configuration_needed",
        ),
        ("Revoked", "tcb_revoked"),
        ("TDRelaunchAdvised", "tcb_relaunch_advised"),
        ("", "ita_tcb_unknown"),
        ("uptodate", "ita_tcb_unknown"),
        ("Fine", "ita_tcb_unknown"),
    ] {
        assert_eq!(verify(name).unwrap_err().code(), code, "{name}");
    }
}

#[test]
fn refused_advisories_are_enforced() {
    let mut fixture = ItaFixture::default();
    fixture.peer.policy =
        policy(|s| s.refused_advisories = vec!["INTEL-SA-00837".parse().unwrap()]);
    let verify = |ids: serde_json::Value| {
        fixture
            .authority
            .set_token(TokenVariant::Claim("attester_advisory_ids", ids));
        fixture.verify()
    };
    assert!(verify(serde_json::json!(["INTEL-SA-00615"])).is_ok());
    assert!(verify(serde_json::Value::Null).is_ok());
    let refused = verify(serde_json::json!(["INTEL-SA-00615", "intel-sa-00837"]));
    assert_eq!(refused.unwrap_err().code(), "advisory_refused");
    let refused = verify("INTEL-SA-00837".into());
    assert_eq!(refused.unwrap_err().code(), "ita_malformed_token");
}

#[test]
fn debug_tds_are_refused_unless_allowed() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.debug = true;
    let refused = fixture.verify().unwrap_err();
    assert_eq!(refused, ItaError::Denied(Denial::DebugTd));
    assert!(refused.to_string().starts_with(
        "TDX TD is in debug mode — connection refused. Debug TDs have no confidentiality guarantees. "
    ));
    fixture.peer.policy = policy(|s| s.allow_debug_td = true);
    assert!(fixture.verify().unwrap().is_debug());
}

#[test]
fn unbound_quote_is_refused_without_a_request() {
    let mut fixture = ItaFixture::default();
    let other = fixture.peer.key("another peer");
    fixture.peer.evidence.binding = Binding::Bytes(other.report_data());
    let refused = examine(
        &fixture.peer.certificate().chain_der(),
        NOW,
        &fixture.peer.policy,
    );
    assert_eq!(refused.unwrap_err(), Denial::UnboundKey);
    assert_eq!(fixture.authority.appraisals(), 0);
}

#[test]
fn quote_of_another_pki_is_refused_by_trust_authority() {
    let mut fixture = ItaFixture::default();
    fixture.peer.pki = attest::mock::Pki::new(&[8; 32]).unwrap();
    assert_eq!(fixture.appraise().unwrap_err(), ItaError::QuoteRefused);
}

/// A changed policy needs no new appraisal, and an expired token does.
#[test]
fn appraisal_is_reused_until_its_token_expires() {
    let fixture = ItaFixture::default();
    let appraised = fixture.appraise().unwrap();
    assert_eq!(appraised.appraisal().valid_until(), NOW + LIFETIME - 1);
    let strict = policy(|s| s.app_id = vec![AppId([1; 20])]);
    assert!(appraised.admit(&fixture.peer.policy, NOW).is_ok());
    assert_eq!(
        appraised.admit(&strict, NOW).unwrap_err().code(),
        "app_not_allowed"
    );
    assert!(
        appraised
            .admit(&fixture.peer.policy, NOW + LIFETIME - 1)
            .is_ok()
    );
    let ended = appraised.admit(&fixture.peer.policy, NOW + LIFETIME);
    assert_eq!(ended.unwrap_err(), ItaError::Expired);
    assert_eq!(fixture.authority.appraisals(), 1);
}
