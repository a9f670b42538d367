//! The closed list of denials: codes and texts.

use attest::Denial;
use attest::denial::Pin;
use attest::policy::{TcbStatus, TcbStatuses};
use attest::values::{AppId, ComposeHash, Mrtd, OsImageHash, Rtmr};

const PINS: [Pin; 10] = [
    Pin::Xfam,
    Pin::TdAttributes,
    Pin::MrConfigId,
    Pin::MrOwner,
    Pin::MrOwnerConfig,
    Pin::MrSeam,
    Pin::Piid,
    Pin::Smt,
    Pin::DynamicPlatform,
    Pin::CachedKeys,
];

/// One denial of each code, in the order of [`Denial::CODES`].
fn all() -> Vec<Denial> {
    let tcb = |status| Denial::Tcb {
        status,
        accepted: TcbStatuses::default(),
    };
    let mut denials = vec![
        Denial::NoCertificate,
        Denial::ChainTooLong,
        Denial::MalformedCertificate("it is no X.509 certificate"),
        Denial::Expired,
        Denial::NotYetValid,
        Denial::TooOld,
        Denial::NoEvidence,
        Denial::MalformedEvidence("there are bytes after the quote"),
        Denial::NotTdx,
        Denial::UnsupportedQuote("its version is neither 4 nor 5"),
        Denial::UnboundKey,
        Denial::Overloaded,
        Denial::CollateralUnavailable,
        Denial::CollateralExpired,
        Denial::CollateralNotYetValid,
        Denial::TcbEvaluationTooOld {
            found: 16,
            minimum: 17,
        },
        Denial::DebugTd,
        Denial::BadSignature,
        Denial::PckRevoked,
        Denial::PckNotValid,
        Denial::TdAttributes,
        Denial::TcbNotSupported,
    ];
    denials.extend(TcbStatus::ALL.map(tcb));
    denials.extend([
        Denial::AdvisoryRefused("INTEL-SA-00837".parse().unwrap()),
        Denial::MrtdNotAllowed(Mrtd([0x91; 48])),
        Denial::RtmrNotAllowed {
            index: 3,
            value: Rtmr([0x33; 48]),
        },
    ]);
    denials.extend(PINS.map(|pin| Denial::PinNotAllowed(pin, Some("true".into()))));
    denials.extend([
        Denial::EventLogMismatch,
        Denial::AppNotAllowed(Some(AppId([0x5b; 20]))),
        Denial::ComposeHashNotAllowed(None),
        Denial::InstanceNotAllowed(None),
        Denial::OsImageHashNotAllowed(Some(OsImageHash([0xe6; 32]))),
        Denial::KmsRootMismatch,
    ]);
    denials
}

#[test]
fn every_denial_has_its_own_code() {
    let codes: Vec<_> = all().iter().map(Denial::code).collect();
    assert_eq!(codes, Denial::CODES);
    let mut unique = codes.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), codes.len());
}

#[test]
fn denial_texts() {
    let below = Denial::TcbBelowAll {
        accepted: TcbStatuses::default(),
    };
    let unknown = Denial::PinNotAllowed(Pin::Piid, None);
    let entry = |os: Option<&str>| Denial::Entry {
        entry: "orders api".into(),
        os: os.map(Into::into),
        denial: Box::new(Denial::RtmrNotAllowed {
            index: 1,
            value: Rtmr([0x21; 48]),
        }),
    };
    let others = [below, unknown, entry(Some("dstack-0.6.0")), entry(None)];
    let line = |denial: &Denial| format!("{} ({:?}): {denial}\n", denial.code(), denial.fault());
    insta::assert_snapshot!(all().iter().chain(&others).map(line).collect::<String>());
}

/// Users and their tools match these texts, so they must not change.
#[test]
fn texts_that_users_match_are_stable() {
    let text = Denial::MrtdNotAllowed(format!("91a0563f0c{}c3d2", "0".repeat(82)).parse().unwrap());
    assert!(
        text.to_string()
            .starts_with("MRTD \"91a0563f0c…c3d2\" is not in the allowlist. ")
    );
    let text = Denial::Tcb {
        status: TcbStatus::OutOfDate,
        accepted: TcbStatuses::default(),
    };
    assert!(text.to_string().starts_with(
        "Unacceptable TCB status: \"OutOfDate\". Acceptable statuses: OK, SWHardeningNeeded, \
         ConfigurationNeeded, ConfigurationAndSWHardeningNeeded. "
    ));
    assert!(Denial::DebugTd.to_string().starts_with(
        "TDX TD is in debug mode — connection refused. Debug TDs have no confidentiality guarantees. "
    ));
    assert_eq!(
        Denial::KmsRootMismatch.to_string(),
        "cert chain verification failed"
    );
    let none = Denial::ComposeHashNotAllowed(None::<ComposeHash>).to_string();
    assert!(none.contains("proves none"), "{none}");
}

/// A peer does not learn which list refuses it, but what it can mend.
#[test]
fn peer_code_says_what_the_peer_can_mend() {
    let told: Vec<_> = all().iter().map(Denial::peer_code).collect();
    let hidden: Vec<_> = Denial::CODES
        .iter()
        .zip(&told)
        .filter(|(code, told)| code != told)
        .map(|(code, told)| {
            assert_eq!(*told, Denial::NOT_ALLOWED);
            *code
        })
        .collect();
    assert!(
        hidden
            .iter()
            .all(|code| code.ends_with("_not_allowed") || *code == "kms_root_mismatch")
    );
    assert_eq!(hidden.len(), 17);
    assert!(!told.iter().any(|code| code.ends_with("_not_allowed")));
}
