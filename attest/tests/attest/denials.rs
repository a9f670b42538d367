//! The code of each denial: one thing is wrong in each case.

use std::time::Duration;

use attest::collateral::CaType;
use attest::mock::{
    Binding, Envelope, Event, Fixture, Key, ModuleLevel, PlatformLevel, QeLevel, QuoteFormat,
    Revoked, Rtmr3, Validity,
};
use attest::policy::{TcbStatus, TcbStatuses};
use attest::values::{AppId, ComposeHash, Mrtd, OsImageHash, Rtmr};
use attest::{Denial, TrustedRoot, Verifier, examine};

use crate::NOW;
use crate::policy_with;

const DAY: u64 = 86_400;

#[test]
fn peer_without_faults_is_admitted() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let peer = Fixture::with(|f| f.evidence.envelope = envelope)
            .verify()
            .unwrap();
        assert_eq!(peer.app_id(), Some(AppId([0xa1; 20])));
        assert_eq!(peer.compose_hash(), Some(ComposeHash([0xc0; 32])));
        assert_eq!(peer.instance_id().unwrap().0, [0x1d; 20]);
        assert_eq!(peer.os_image_hash(), Some(OsImageHash([0x05; 32])));
        assert_eq!(peer.key_provider(), Some(r#"{"name":"kms","id":"mock"}"#));
        assert_eq!(peer.mrtd(), Mrtd([0x11; 48]));
        assert_eq!(
            peer.rtmrs()[..3],
            [Rtmr([0x20; 48]), Rtmr([0x21; 48]), Rtmr([0x22; 48])]
        );
        assert_eq!(peer.tcb_status(), TcbStatus::UpToDate);
    }
}

#[test]
fn quote_version_5_and_tdx_1_5_are_admitted() {
    for format in [QuoteFormat::V5Td10, QuoteFormat::V5Td15] {
        assert_eq!(
            Fixture::with(|f| f.evidence.report.format = format).outcome(),
            "admitted",
            "{format:?}"
        );
    }
}

#[test]
fn sgx_is_refused() {
    assert_eq!(
        Fixture::with(|f| f.evidence.report.format = QuoteFormat::SgxV3).outcome(),
        "not_tdx"
    );
}

#[test]
fn missing_certificate_and_missing_evidence_are_refused() {
    let fixture = Fixture::with(|f| f.evidence.envelope = Envelope::None);
    assert_eq!(fixture.outcome(), "no_evidence");
    let none: [&[u8]; 0] = [];
    assert_eq!(
        examine(&none, NOW, &fixture.policy).unwrap_err(),
        Denial::NoCertificate
    );
}

#[test]
fn chain_of_fifty_is_refused() {
    let fixture = Fixture::default();
    let certificate = fixture.certificate();
    let chain = [certificate.der()].repeat(50);
    assert_eq!(
        fixture.verify_chain(&chain).unwrap_err(),
        Denial::ChainTooLong
    );
}

#[test]
fn certificate_and_collateral_dates_are_enforced() {
    let outcome = |from: u64, until: u64, now: u64| {
        Fixture::with(|f| {
            f.leaf.validity = Validity { from, until };
            f.now = now;
        })
        .outcome()
    };
    assert_eq!(outcome(NOW, NOW + DAY, NOW), "admitted");
    assert_eq!(outcome(NOW + DAY, NOW + 2 * DAY, NOW), "not_yet_valid");
    assert_eq!(outcome(NOW - 2 * DAY, NOW - DAY, NOW), "expired");
    assert_eq!(outcome(NOW - DAY, NOW - 1, NOW), "expired");
    // A clock that is wrong by a day, with a fresh leaf and collateral that is one hour old.
    assert_eq!(outcome(NOW - 60, NOW + 3600, NOW - DAY), "not_yet_valid");
    assert_eq!(outcome(NOW - 60, NOW + 3600, NOW + DAY), "expired");
    assert_eq!(
        outcome(0, NOW + 100 * DAY, NOW - DAY),
        "collateral_not_yet_valid"
    );
    assert_eq!(
        outcome(0, NOW + 100 * DAY, NOW + 31 * DAY),
        "collateral_expired"
    );
}

#[test]
fn certificate_age_is_enforced() {
    let aged = |age| {
        Fixture::with(|f| {
            f.leaf.validity.from = NOW - 3600;
            f.policy = policy_with(|s| s.max_certificate_age = Some(Duration::from_secs(age)));
        })
    };
    assert_eq!(aged(3599).outcome(), "too_old");
    let peer = aged(3600 + 60).verify().unwrap();
    assert_eq!(
        peer.valid_until(),
        NOW + 60,
        "a verdict ends at the maximum age"
    );
}

#[test]
fn quote_bound_to_another_key_is_refused() {
    let other = Key::derive(&[9; 32], "other").unwrap();
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy] {
        let fixture = Fixture::with(|f| {
            f.evidence.envelope = envelope;
            f.evidence.binding = Binding::Bytes(other.report_data());
        });
        assert_eq!(fixture.outcome(), "unbound_key", "{envelope:?}");
    }
}

#[test]
fn every_byte_of_the_report_data_is_compared() {
    let own = Fixture::default().certificate().key().report_data();
    for byte in 0..64 {
        let mut data = own;
        data[byte] ^= 1;
        let fixture = Fixture::with(|f| f.evidence.binding = Binding::Bytes(data));
        assert_eq!(fixture.outcome(), "unbound_key", "byte {byte}");
    }
}

#[test]
fn debug_td_is_refused_unless_allowed() {
    let debug = Fixture::with(|f| f.evidence.report.debug = true);
    assert_eq!(debug.outcome(), "debug_td");
    for bit in 1..=7 {
        let profiled = Fixture::with(|f| f.evidence.report.attributes = 1 << bit);
        assert_eq!(profiled.outcome(), "debug_td", "bit {bit}");
    }
    let allowed = Fixture::with(|f| {
        f.evidence.report.debug = true;
        f.policy = policy_with(|s| s.allow_debug_td = true);
    });
    assert!(allowed.verify().unwrap().is_debug());
}

/// dcap-qvl also refuses debug TDs, but only after it has verified the signatures.
#[test]
fn debug_td_is_refused_before_signatures_are_verified() {
    let fixture = Fixture::with(|f| f.evidence.report.debug = true);
    let evidence = examine(&fixture.certificate().chain_der(), NOW, &fixture.policy).unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let denial = intel
        .verify(&evidence, &fixture.issue_collateral(), &fixture.policy, NOW)
        .unwrap_err();
    assert_eq!(denial, Denial::DebugTd);
}

#[test]
fn weakening_td_attributes_are_refused() {
    for bit in [17, 29, 40] {
        let fixture = Fixture::with(|f| f.evidence.report.attributes = 1 << bit);
        assert_eq!(fixture.outcome(), "td_attributes_refused", "bit {bit}");
    }
    let bound_to_service = Fixture::with(|f| {
        f.evidence.report.format = QuoteFormat::V5Td15;
        f.evidence.report.mr_service_td = [1; 48];
    });
    assert_eq!(bound_to_service.outcome(), "td_attributes_refused");
}

#[test]
fn tcb_statuses_are_enforced() {
    for (level, code) in [
        (PlatformLevel::UpToDate, "admitted"),
        (PlatformLevel::SwHardeningNeeded, "admitted"),
        (PlatformLevel::ConfigurationNeeded, "admitted"),
        (PlatformLevel::ConfigurationAndSwHardeningNeeded, "admitted"),
        (PlatformLevel::OutOfDate, "tcb_out_of_date"),
        (
            PlatformLevel::OutOfDateConfigurationNeeded,
            "tcb_out_of_date_configuration_needed",
        ),
        (PlatformLevel::Revoked, "tcb_revoked"),
        (PlatformLevel::Unknown, "tcb_out_of_date"),
    ] {
        assert_eq!(
            Fixture::with(|f| f.platform.level = level).outcome(),
            code,
            "{level:?}"
        );
    }
    for (level, code) in [
        (PlatformLevel::SwHardeningNeeded, "tcb_sw_hardening_needed"),
        (
            PlatformLevel::ConfigurationNeeded,
            "tcb_configuration_needed",
        ),
        (
            PlatformLevel::ConfigurationAndSwHardeningNeeded,
            "tcb_configuration_and_sw_hardening_needed",
        ),
    ] {
        let strict = Fixture::with(|f| {
            f.platform.level = level;
            f.policy = policy_with(|s| s.tcb_statuses = TcbStatuses::new([]));
        });
        assert_eq!(strict.outcome(), code);
    }
}

#[test]
fn tcb_of_module_and_quoting_enclave_is_enforced() {
    for (level, code) in [
        (ModuleLevel::OutOfDate, "tcb_out_of_date"),
        (ModuleLevel::Revoked, "tcb_revoked"),
        (ModuleLevel::Unknown, "tcb_out_of_date"),
    ] {
        assert_eq!(
            Fixture::with(|f| f.platform.module = level).outcome(),
            code,
            "{level:?}"
        );
    }
    for (level, code) in [
        (QeLevel::OutOfDate, "tcb_out_of_date"),
        (QeLevel::Revoked, "tcb_revoked"),
        (QeLevel::Unknown, "tcb_out_of_date"),
    ] {
        assert_eq!(
            Fixture::with(|f| f.platform.qe = level).outcome(),
            code,
            "{level:?}"
        );
    }
}

#[test]
fn tcb_recovery_makes_the_best_level_out_of_date() {
    assert_eq!(
        Fixture::with(|f| f.collateral.recovery = true).outcome(),
        "tcb_out_of_date"
    );
    let accepted = Fixture::with(|f| {
        f.collateral.recovery = true;
        f.policy = policy_with(|s| s.tcb_statuses = TcbStatuses::new([TcbStatus::OutOfDate]));
    });
    assert_eq!(accepted.outcome(), "admitted");
}

#[test]
fn refused_advisories_are_enforced() {
    let hardening = |refused: &str| {
        Fixture::with(|f| {
            f.platform.level = PlatformLevel::SwHardeningNeeded;
            f.policy = policy_with(|s| s.refused_advisories = vec![refused.parse().unwrap()]);
        })
        .outcome()
    };
    assert_eq!(hardening("INTEL-SA-00615"), "advisory_refused");
    assert_eq!(hardening("INTEL-SA-00616"), "admitted");
}

#[test]
fn measurements_are_enforced() {
    let pinned = |mrtd: u8, rtmr: [u8; 3]| {
        let policy = policy_with(|s| {
            s.mrtd = vec![Mrtd([0xff; 48]), Mrtd([mrtd; 48])];
            for (list, value) in s.rtmr.iter_mut().zip(rtmr) {
                *list = vec![Rtmr([value; 48])];
            }
        });
        Fixture::with(|f| f.policy = policy).verify().map(|_| ())
    };
    assert_eq!(pinned(0x11, [0x20, 0x21, 0x22]), Ok(()));
    assert_eq!(
        pinned(0x12, [0x20, 0x21, 0x22]),
        Err(Denial::MrtdNotAllowed(Mrtd([0x11; 48])))
    );
    for (index, value) in [(0u8, 0x20u8), (1, 0x21), (2, 0x22)] {
        let mut allowed = [0x20, 0x21, 0x22];
        allowed[usize::from(index)] = 0;
        let denial = Denial::RtmrNotAllowed {
            index,
            value: Rtmr([value; 48]),
        };
        assert_eq!(pinned(0x11, allowed), Err(denial));
    }
    let rtmr3 = Fixture::with(|f| f.policy = policy_with(|s| s.rtmr[3] = vec![Rtmr([0; 48])]));
    assert!(matches!(
        rtmr3.verify(),
        Err(Denial::RtmrNotAllowed { index: 3, .. })
    ));
}

#[test]
fn app_id_compose_hash_and_os_image_hash_are_enforced() {
    let app = |id: u8| {
        Fixture::with(|f| f.policy = policy_with(|s| s.app_id = vec![AppId([id; 20])])).outcome()
    };
    assert_eq!(app(0xa1), "admitted");
    assert_eq!(app(0xa2), "app_not_allowed");
    let compose = |hash: u8| {
        Fixture::with(|f| {
            f.policy = policy_with(|s| s.compose_hash = vec![ComposeHash([hash; 32])])
        })
        .outcome()
    };
    assert_eq!(compose(0xc0), "admitted");
    assert_eq!(compose(0xc1), "compose_hash_not_allowed");
    let os = |hash: u8| {
        Fixture::with(|f| {
            f.policy = policy_with(|s| s.os_image_hash = vec![OsImageHash([hash; 32])])
        })
        .outcome()
    };
    assert_eq!(os(0x05), "admitted");
    assert_eq!(os(0x06), "os_image_hash_not_allowed");
}

#[test]
fn second_app_id_event_is_never_used() {
    let pinned = |change: fn(&mut Fixture)| {
        Fixture::with(|f| {
            change(f);
            f.policy = policy_with(|s| s.app_id = vec![AppId([2; 20])]);
        })
        .outcome()
    };
    let late = pinned(|f| f.evidence.after_ready = vec![Event::new("app-id", &[2; 20])]);
    assert_eq!(
        late, "app_not_allowed",
        "events of the application are not trusted"
    );
    let early = pinned(|f| f.evidence.before_ready = vec![Event::new("app-id", &[2; 20])]);
    assert_eq!(early, "malformed_evidence");
    let never_ready = pinned(|f| {
        f.evidence.app_id = vec![2; 20];
        f.evidence.ready = false;
    });
    assert_eq!(never_ready, "app_not_allowed");
}

#[test]
fn event_log_must_replay_to_rtmr3() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy] {
        let fixture = Fixture::with(|f| {
            f.evidence.envelope = envelope;
            f.evidence.rtmr3 = Rtmr3::Bytes([3; 48]);
        });
        assert_eq!(fixture.outcome(), "event_log_mismatch", "{envelope:?}");
    }
}

#[test]
fn revocations_are_enforced() {
    let revoked = |revoked| Fixture::with(|f| f.collateral.revoked = revoked).outcome();
    let platform = Fixture::default().platform.name;
    assert_eq!(
        revoked(Revoked {
            platform: Some(platform),
            ..Revoked::default()
        }),
        "pck_revoked"
    );
    assert_eq!(
        revoked(Revoked {
            pck_ca: true,
            ..Revoked::default()
        }),
        "pck_revoked"
    );
    assert_ne!(
        revoked(Revoked {
            tcb_signer: true,
            ..Revoked::default()
        }),
        "admitted"
    );
    assert_ne!(
        revoked(Revoked {
            root: true,
            ..Revoked::default()
        }),
        "admitted"
    );
}

#[test]
fn pck_certificate_must_be_within_its_validity() {
    for validity in [
        Validity {
            from: NOW + DAY,
            until: NOW + 2 * DAY,
        },
        Validity {
            from: NOW - 2 * DAY,
            until: NOW - DAY,
        },
    ] {
        assert_eq!(
            Fixture::with(|f| f.platform.validity = validity).outcome(),
            "pck_not_valid"
        );
    }
}

#[test]
fn collateral_of_another_platform_is_not_used() {
    let fixture = Fixture::default();
    let evidence = examine(&fixture.certificate().chain_der(), NOW, &fixture.policy).unwrap();
    let other_family = Fixture::with(|f| f.collateral.fmspc.0 = [9; 6]);
    let other_ca = Fixture::with(|f| f.collateral.ca = CaType::Processor);
    for other in [other_family, other_ca] {
        let denial =
            fixture
                .verifier()
                .verify(&evidence, &other.issue_collateral(), &fixture.policy, NOW);
        assert_eq!(denial.unwrap_err(), Denial::CollateralUnavailable);
    }
}

#[test]
fn another_root_is_refused() {
    let fixture = Fixture::default();
    let evidence = examine(&fixture.certificate().chain_der(), NOW, &fixture.policy).unwrap();
    let intel = Verifier::new(TrustedRoot::intel());
    let denial = intel
        .verify(&evidence, &fixture.issue_collateral(), &fixture.policy, NOW)
        .unwrap_err();
    assert_eq!(denial, Denial::BadSignature);
}

#[test]
fn reverification_applies_new_policy_and_collateral() {
    let fixture = Fixture::default();
    let (verifier, collateral) = (fixture.verifier(), fixture.issue_collateral());
    let peer = fixture.verify().unwrap();
    let again = |collateral, policy, now| {
        examine(peer.chain().certificates(), now, policy)
            .and_then(|evidence| verifier.verify(&evidence, collateral, policy, now))
            .map(|_| ())
            .map_err(|d| d.code())
    };
    assert_eq!(again(&collateral, &fixture.policy, NOW), Ok(()));
    let other_app = policy_with(|s| s.app_id = vec![AppId([2; 20])]);
    assert_eq!(again(&collateral, &other_app, NOW), Err("app_not_allowed"));
    let recovery = Fixture::with(|f| f.collateral.recovery = true).issue_collateral();
    assert_eq!(
        again(&recovery, &fixture.policy, NOW),
        Err("tcb_out_of_date")
    );
    let end = peer.valid_until();
    assert_eq!(again(&collateral, &fixture.policy, end), Ok(()));
    assert!(again(&collateral, &fixture.policy, end + 1).is_err());
}

#[test]
fn tdx_module_missing_from_the_collateral_is_refused() {
    let fixture = Fixture::with(|f| {
        f.evidence.report.tee_tcb_svn = Some([6, 0x7f, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0])
    });
    assert_eq!(fixture.outcome(), "tcb_not_supported");
}

#[test]
fn unsupported_certification_data_is_refused() {
    let certified = Fixture::with(|f| f.evidence.report.certification = 3);
    assert_eq!(certified.outcome(), "unsupported_quote");
}
