//! The verdict is the gate's, and every check is reported once, in order.

// `.clippy.toml` lets test functions panic, but not the helpers next to them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mock::{
    Binding, Envelope, Fixture, Key, PlatformLevel, QuoteFormat, Rtmr3, TdReport, Validity,
};
use crate::policy::{KmsRootPin, Settings};
use crate::tcb::TcbStatus;
use crate::trace::Outcome;
use crate::values::Mrtd;

const NOW: u64 = Fixture::NOW;
const DAY: u64 = 86_400;
const PAST: Validity = Validity {
    from: NOW - 2 * DAY,
    until: NOW - DAY,
};

type Change<'a> = dyn Fn(&mut Fixture) + 'a;

fn set_policy(fixture: &mut Fixture, change: impl FnOnce(&mut Settings)) {
    let mut settings = fixture.policy.settings().clone();
    change(&mut settings);
    fixture.policy = Policy::new(settings);
}

fn inspect(fixture: &Fixture, observer: &mut impl CheckObserver) -> Result<AttestedPeer, Denial> {
    let collateral = |_: &TdQuote| Ok(fixture.issue_collateral());
    let (certificate, policy) = (fixture.certificate(), &fixture.policy);
    let chain = certificate.chain_der();
    (fixture.verifier()).inspect(&chain, policy, NOW, collateral, observer)
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
    let fixture = Fixture::default();
    let mut recorder = Recorder::default();
    let peer = inspect(&fixture, &mut recorder).unwrap();
    assert_eq!(peer.chain(), fixture.verify().unwrap().chain());
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
            set_policy(f, |s| {
                s.max_certificate_age = Some(std::time::Duration::ZERO)
            })
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
        ("mrtd_not_allowed", &|f| {
            set_policy(f, |s| s.mrtd.clone_from(&mrtd))
        }),
        ("rtmr_not_allowed", &|f| {
            set_policy(f, |s| s.rtmr[2] = vec![crate::values::Rtmr([1; 48])])
        }),
        ("event_log_mismatch", &|f| {
            f.evidence.rtmr3 = Rtmr3::Bytes([3; 48])
        }),
        ("app_not_allowed", &|f| {
            set_policy(f, |s| s.app_id = vec![crate::values::AppId([1; 20])])
        }),
        ("kms_root_mismatch", &|f| {
            let root = crate::chain::KmsRoot::from_der(f.pki.root_der());
            set_policy(f, |s| s.kms_root = KmsRootPin::Roots(vec![root.unwrap()]));
        }),
    ];
    for (code, change) in changes {
        for (more, others) in [("", 0), (" and everything else", 1)] {
            // With other things wrong too, the order of the checks decides.
            let fixture = Fixture::with(|f| {
                change(f);
                if others == 1 {
                    f.evidence.report.debug = true;
                    set_policy(f, |s| s.mrtd.clone_from(&mrtd));
                    f.evidence.rtmr3 = Rtmr3::Bytes([3; 48]);
                }
            });
            let mut recorder = Recorder::default();
            let inspected = inspect(&fixture, &mut recorder).map(drop);
            assert_eq!(inspected, fixture.verify().map(drop), "{code}{more}");
            assert_eq!(
                inspected,
                inspect(&fixture, &mut ()).map(drop),
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
    let fixture = Fixture::with(|f| {
        f.leaf.validity = PAST;
        f.evidence.report.debug = true;
        f.platform.level = PlatformLevel::OutOfDate;
        set_policy(f, |s| s.mrtd = vec![Mrtd([1; 48])]);
    });
    let mut recorder = Recorder::default();
    assert_eq!(
        inspect(&fixture, &mut recorder).unwrap_err(),
        Denial::Expired
    );
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
    let fixture = Fixture::with(|f| {
        f.platform.level = PlatformLevel::Revoked;
        set_policy(f, |s| s.mrtd = vec![Mrtd([1; 48])]);
    });
    let mut recorder = Recorder::default();
    assert!(inspect(&fixture, &mut recorder).is_err());
    let unverified = "skipped: QuoteNotVerified";
    let mut expected = vec![
        ("signatures", "skipped: VerificationEndedEarly"),
        ("td_attributes", unverified),
        ("tcb", "tcb_revoked"),
    ];
    let claims = ["advisories", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    expected.extend(claims.map(|check| (check, unverified)));
    let claims = ["configuration", "platform"];
    expected.extend(claims.map(|check| (check, unverified)));
    let claims = ["app_id", "compose_hash", "instance_id", "os_image_hash"];
    expected.extend(claims.map(|check| (check, unverified)));
    assert_eq!(recorder.failures(), expected);
}

#[test]
fn skips_every_check_after_an_unreadable_certificate() {
    let fixture = Fixture::default();
    let collateral = |_: &TdQuote| Ok(fixture.issue_collateral());
    let (chain, policy) = ([[1, 2, 3]], fixture.policy.clone());
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
    let fixture = Fixture::with(|f| f.evidence.rtmr3 = Rtmr3::Bytes([3; 48]));
    let certificate = fixture.certificate();
    let leaf = crate::certificate::Leaf::parse(certificate.der()).unwrap();
    let envelope = leaf.extensions().attestation.unwrap();
    let collateral = |_: &TdQuote| Ok(fixture.issue_collateral());
    let (verifier, policy) = (fixture.verifier(), fixture.policy.clone());
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
        "instance_id",
        "os_image_hash",
        "kms_root",
    ];
    assert_eq!(checks, [&of_a_certificate[..], &of_the_log[..]].concat());
}

#[test]
fn a_missing_collateral_refuses() {
    let fixture = Fixture::default();
    let none = |_: &TdQuote| Err::<Collateral, _>(Denial::CollateralUnavailable);
    let (certificate, policy) = (fixture.certificate(), &fixture.policy);
    let chain = certificate.chain_der();
    let mut recorder = Recorder::default();
    let refused = (fixture.verifier()).inspect(&chain, policy, NOW, none, &mut recorder);
    assert_eq!(refused.unwrap_err(), Denial::CollateralUnavailable);
    assert_eq!(recorder.first_refusal(), Some("collateral_unavailable"));
    assert!(
        recorder
            .failures()
            .contains(&("signatures", "skipped: NoCollateral"))
    );
}

#[test]
fn a_bare_quote_is_not_a_peer_and_proves_no_identity() {
    let quote = Fixture::default()
        .issue_platform()
        .quote(&TdReport::default())
        .unwrap();
    let inspect = |quote: &[u8], fixture: &Fixture| {
        let mut recorder = Recorder::default();
        let collateral = |_: &TdQuote| Ok(fixture.issue_collateral());
        let policy = fixture.policy.clone();
        let verifier = fixture.verifier();
        let result = verifier.inspect_quote(quote, &policy, NOW, collateral, &mut recorder);
        let verdict = result.as_ref().err().map(Denial::code);
        assert_eq!(recorder.first_refusal(), verdict);
        (result.map(|appraisal| appraisal.tcb_status()), recorder)
    };
    let (result, recorder) = inspect(&quote, &Fixture::default());
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
        "instance_id",
        "os_image_hash",
        "kms_root",
    ];
    assert_eq!(skipped, [&of_a_certificate[..], &of_a_log[..]].concat());

    let app = |f: &mut Fixture| set_policy(f, |s| s.app_id = vec![crate::values::AppId([1; 20])]);
    let (result, _) = inspect(&quote, &Fixture::with(app));
    assert_eq!(result, Err(Denial::AppNotAllowed(None)));
    let (result, recorder) = inspect(&quote[..quote.len() - 1], &Fixture::default());
    assert_eq!(result.unwrap_err().code(), "malformed_evidence");
    assert_eq!(recorder.failures().len(), Check::ALL.len() - 1);
}
