//! The verdict is the gate's, and every check is reported once, in order.

// `.clippy.toml` lets test functions panic, but not the helpers next to them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::examine;
use crate::mock::{
    Binding, Certificate, CollateralOptions, Envelope, Evidence, Key, LeafOptions, Pki, Platform,
    PlatformLevel, PlatformOptions, QuoteFormat, Rtmr3, TdReport, Validity,
};
use crate::policy::Settings;
use crate::tcb::TcbStatus;
use crate::trace::Outcome;
use crate::values::Mrtd;
use crate::verify::TrustedRoot;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const PAST: Validity = Validity {
    from: NOW - 2 * DAY,
    until: NOW - DAY,
};

struct Fixture {
    pki: Pki,
    platform: PlatformOptions,
    evidence: Evidence,
    leaf: LeafOptions,
    collateral: CollateralOptions,
    settings: Settings,
}

type Change<'a> = dyn Fn(&mut Fixture) + 'a;

fn fixture(change: impl FnOnce(&mut Fixture)) -> Fixture {
    let mut fixture = Fixture {
        pki: Pki::new(&[7; 32]).unwrap(),
        platform: PlatformOptions::default(),
        evidence: Evidence::default(),
        leaf: LeafOptions::default(),
        collateral: CollateralOptions::at(NOW),
        settings: Settings::default(),
    };
    change(&mut fixture);
    fixture
}

impl Fixture {
    fn platform(&self) -> Platform {
        Platform::new(&self.pki, &self.platform).unwrap()
    }

    fn chain(&self) -> [Vec<u8>; 2] {
        let key = Key::derive(&[7; 32], "client").unwrap();
        let (evidence, leaf) = (&self.evidence, &self.leaf);
        let leaf = Certificate::issue(&self.pki, &self.platform(), &key, evidence, leaf);
        leaf.unwrap().chain_der().map(<[u8]>::to_vec)
    }

    fn collateral(&self) -> Collateral {
        self.pki.parsed_collateral(&self.collateral).unwrap()
    }

    fn policy(&self) -> Policy {
        Policy::new(self.settings.clone())
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(TrustedRoot::dangerous(self.pki.root_der()).unwrap())
    }

    fn gate(&self) -> Result<AttestedPeer, Denial> {
        let evidence = examine(&self.chain(), NOW, &self.policy())?;
        let (collateral, policy) = (self.collateral(), self.policy());
        (self.verifier()).verify(&evidence, &collateral, &policy, NOW)
    }

    fn inspect(&self, observer: &mut impl CheckObserver) -> Result<AttestedPeer, Denial> {
        let collateral = |_: &TdQuote| Ok(self.collateral());
        let (chain, policy) = (self.chain(), self.policy());
        (self.verifier()).inspect(&chain, &policy, NOW, collateral, observer)
    }
}

#[derive(Default)]
struct Recorder(Vec<(Check, String)>);

impl CheckObserver for Recorder {
    fn observe(&mut self, check: Check, outcome: Outcome<'_>, values: Option<Values<'_>>) {
        let outcome = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Refused(denial) => denial.code().to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason:?}"),
        };
        assert!(values.is_some() || outcome != "passed", "{check}");
        self.0.push((check, outcome));
    }
}

impl Recorder {
    /// The outcome of each check that did not pass.
    fn failures(&self) -> Vec<(&'static str, &str)> {
        let failed = self.0.iter().filter(|(_, outcome)| outcome != "passed");
        failed
            .map(|(check, o)| (check.as_str(), o.as_str()))
            .collect()
    }

    /// The code of the first refusal. Every check was reported once, in order.
    fn first_refusal(&self) -> Option<&str> {
        let checks: Vec<Check> = self.0.iter().map(|(check, _)| *check).collect();
        assert_eq!(checks, Check::ALL);
        let refused = self.0.iter().map(|(_, outcome)| outcome.as_str());
        refused
            .into_iter()
            .find(|o| *o != "passed" && !o.starts_with("skipped"))
    }
}

#[test]
fn reports_every_check_of_an_accepted_chain_once() {
    let fixture = fixture(|_| {});
    let mut recorder = Recorder::default();
    let peer = fixture.inspect(&mut recorder).unwrap();
    assert_eq!(peer.chain(), fixture.gate().unwrap().chain());
    assert_eq!(recorder.first_refusal(), None);
    assert_eq!(recorder.failures(), []);
}

#[test]
fn gives_the_verdict_of_the_gate() {
    let other = Key::derive(&[9; 32], "other").unwrap().report_data();
    let mrtd = vec![Mrtd([1; 48])];
    let changes: [(&str, &Change<'_>); 19] = [
        ("admitted", &|_| {}),
        ("expired", &|f| f.leaf.validity = PAST),
        ("too_old", &|f| {
            f.settings.max_certificate_age = Some(std::time::Duration::ZERO)
        }),
        ("no_evidence", &|f| f.evidence.envelope = Envelope::None),
        ("malformed_evidence", &|f| {
            f.leaf.attestation = Some(vec![0x42])
        }),
        ("not_tdx", &|f| {
            f.evidence.report.format = QuoteFormat::SgxV3
        }),
        ("unbound_key", &|f| {
            f.evidence.binding = Binding::Bytes(other)
        }),
        ("collateral_unavailable", &|f| {
            f.collateral.fmspc = crate::collateral::Fmspc([9; 6])
        }),
        ("collateral_expired", &|f| f.collateral.tcb_info = PAST),
        ("debug_td", &|f| f.evidence.report.debug = true),
        ("td_attributes_refused", &|f| {
            f.evidence.report.attributes = 1 << 29
        }),
        ("pck_not_valid", &|f| f.platform.validity.until = NOW - DAY),
        ("tcb_out_of_date", &|f| {
            f.platform.level = PlatformLevel::OutOfDate
        }),
        ("tcb_revoked", &|f| {
            f.platform.level = PlatformLevel::Revoked
        }),
        ("mrtd_not_allowed", &|f| f.settings.mrtd.clone_from(&mrtd)),
        ("rtmr_not_allowed", &|f| {
            f.settings.rtmr[2] = vec![crate::values::Rtmr([1; 48])]
        }),
        ("event_log_mismatch", &|f| {
            f.evidence.rtmr3 = Rtmr3::Bytes([3; 48])
        }),
        ("app_not_allowed", &|f| {
            f.settings.app_id = vec![crate::values::AppId([1; 20])]
        }),
        ("kms_root_mismatch", &|f| {
            let root = crate::chain::KmsRoot::from_der(f.pki.root_der());
            f.settings.kms_roots = vec![root.unwrap()];
        }),
    ];
    for (code, change) in changes {
        for (more, others) in [("", 0), (" and everything else", 1)] {
            // With other things wrong too, the order of the checks decides.
            let fixture = fixture(|f| {
                change(f);
                if others == 1 {
                    f.evidence.report.debug = true;
                    f.settings.mrtd.clone_from(&mrtd);
                    f.evidence.rtmr3 = Rtmr3::Bytes([3; 48]);
                }
            });
            let mut recorder = Recorder::default();
            let inspected = fixture.inspect(&mut recorder).map(drop);
            assert_eq!(inspected, fixture.gate().map(drop), "{code}{more}");
            assert_eq!(
                inspected,
                fixture.inspect(&mut ()).map(drop),
                "{code}{more}"
            );
            let verdict = inspected.as_ref().err().map(Denial::code);
            assert_eq!(recorder.first_refusal(), verdict, "{code}{more}");
            if others == 0 {
                assert_eq!(verdict.unwrap_or("admitted"), code);
            }
        }
    }
}

#[test]
fn continues_after_a_refusal() {
    let fixture = fixture(|f| {
        f.leaf.validity = PAST;
        f.evidence.report.debug = true;
        f.platform.level = PlatformLevel::OutOfDate;
        f.settings.mrtd = vec![Mrtd([1; 48])];
    });
    let mut recorder = Recorder::default();
    assert_eq!(fixture.inspect(&mut recorder).unwrap_err(), Denial::Expired);
    assert_eq!(
        recorder.failures(),
        [
            ("dates", "expired"),
            ("debug", "debug_td"),
            ("tcb", "tcb_out_of_date"),
            ("mrtd", "mrtd_not_allowed"),
        ]
    );
}

#[test]
fn claims_of_an_unverified_quote_are_not_checked() {
    let fixture = fixture(|f| {
        f.platform.level = PlatformLevel::Revoked;
        f.settings.mrtd = vec![Mrtd([1; 48])];
    });
    let mut recorder = Recorder::default();
    assert!(fixture.inspect(&mut recorder).is_err());
    let unverified = "skipped: QuoteNotVerified";
    let mut expected = vec![
        ("signatures", "skipped: VerificationEndedEarly"),
        ("td_attributes", unverified),
        ("tcb", "tcb_revoked"),
    ];
    let claims = ["advisories", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    expected.extend(claims.map(|check| (check, unverified)));
    let claims = ["app_id", "compose_hash", "os_image_hash"];
    expected.extend(claims.map(|check| (check, unverified)));
    assert_eq!(recorder.failures(), expected);
}

#[test]
fn an_unreadable_certificate_leaves_nothing_to_check() {
    let fixture = fixture(|_| {});
    let collateral = |_: &TdQuote| Ok(fixture.collateral());
    let (chain, policy) = ([[1, 2, 3]], fixture.policy());
    let mut recorder = Recorder::default();
    let refused = (fixture.verifier()).inspect(&chain, &policy, NOW, collateral, &mut recorder);
    assert_eq!(refused.unwrap_err().code(), "malformed_certificate");
    assert_eq!(recorder.first_refusal(), Some("malformed_certificate"));
    let skipped = recorder.0.iter().skip(1);
    let reason = "skipped: UnreadableCertificate";
    assert!(skipped.into_iter().all(|(_, outcome)| outcome == reason));
}

#[test]
fn an_envelope_is_checked_without_a_certificate() {
    let fixture = fixture(|f| f.evidence.rtmr3 = Rtmr3::Bytes([3; 48]));
    let chain = fixture.chain();
    let leaf = crate::certificate::Leaf::parse(&chain[0]).unwrap();
    let envelope = leaf.extensions().attestation.unwrap();
    let collateral = |_: &TdQuote| Ok(fixture.collateral());
    let (verifier, policy) = (fixture.verifier(), fixture.policy());
    let mut recorder = Recorder::default();
    let refused = verifier.inspect_envelope(envelope, &policy, NOW, collateral, &mut recorder);
    assert_eq!(refused.unwrap_err(), Denial::EventLogMismatch);
    assert_eq!(recorder.first_refusal(), Some("event_log_mismatch"));
    let checks: Vec<&str> = recorder
        .failures()
        .iter()
        .map(|(check, _)| *check)
        .collect();
    let of_a_certificate = ["certificate", "dates", "binding"];
    let of_the_log = [
        "event_log",
        "app_id",
        "compose_hash",
        "os_image_hash",
        "kms_root",
    ];
    assert_eq!(checks, [&of_a_certificate[..], &of_the_log[..]].concat());
}

#[test]
fn a_missing_collateral_refuses() {
    let fixture = fixture(|_| {});
    let none = |_: &TdQuote| Err::<Collateral, _>(Denial::CollateralUnavailable);
    let (chain, policy) = (fixture.chain(), fixture.policy());
    let mut recorder = Recorder::default();
    let refused = (fixture.verifier()).inspect(&chain, &policy, NOW, none, &mut recorder);
    assert_eq!(refused.unwrap_err(), Denial::CollateralUnavailable);
    assert_eq!(recorder.first_refusal(), Some("collateral_unavailable"));
    assert!(
        recorder
            .failures()
            .contains(&("signatures", "skipped: NoCollateral"))
    );
}

#[test]
fn a_bare_quote_is_no_peer_and_proves_no_identity() {
    let quote = fixture(|_| {})
        .platform()
        .quote(&TdReport::default())
        .unwrap();
    let inspect = |quote: &[u8], fixture: &Fixture| {
        let mut recorder = Recorder::default();
        let collateral = |_: &TdQuote| Ok(fixture.collateral());
        let policy = fixture.policy();
        let verifier = fixture.verifier();
        let result = verifier.inspect_quote(quote, &policy, NOW, collateral, &mut recorder);
        let verdict = result.as_ref().err().map(Denial::code);
        assert_eq!(recorder.first_refusal(), verdict);
        (result.map(|appraisal| appraisal.tcb_status()), recorder)
    };
    let (result, recorder) = inspect(&quote, &fixture(|_| {}));
    assert_eq!(result, Ok(TcbStatus::UpToDate));
    let skipped: Vec<&str> = recorder
        .failures()
        .iter()
        .map(|(check, _)| *check)
        .collect();
    let of_a_certificate = ["certificate", "dates", "binding"];
    let of_a_log = [
        "event_log",
        "app_id",
        "compose_hash",
        "os_image_hash",
        "kms_root",
    ];
    assert_eq!(skipped, [&of_a_certificate[..], &of_a_log[..]].concat());

    let app = |f: &mut Fixture| f.settings.app_id = vec![crate::values::AppId([1; 20])];
    let (result, _) = inspect(&quote, &fixture(app));
    assert_eq!(result, Err(Denial::AppNotAllowed(None)));
    let (result, recorder) = inspect(&quote[..quote.len() - 1], &fixture(|_| {}));
    assert_eq!(result.unwrap_err().code(), "malformed_evidence");
    assert_eq!(recorder.failures().len(), Check::ALL.len() - 1);
}
