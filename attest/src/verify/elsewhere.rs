//! Admission of a peer whose quote was verified by somebody else: an application's own verifier.
//!
//! It replaces Intel's signatures and nothing else, as a token of Trust Authority does. The quote is bound to the key of the
//! certificate already ([`BoundEvidence`]), and the policy is applied here.

use std::sync::Arc;

use super::admit::{check_identity, check_measurements, check_tcb, read_platform};
use super::{Appraisal, AttestedPeer, admit};
use crate::binding::BoundEvidence;
use crate::denial::Denial;
use crate::event_log::Identity;
use crate::ita::attributes;
use crate::policy::{Claims, Policy};
use crate::quote::TdQuote;
use crate::tcb::TcbStatus;
use crate::trace::Trace;

/// Makes every check of [`Verifier::verify`](crate::Verifier::verify) except Intel's signatures, for which the caller
/// answers: unless these have been verified, any program can have made the quote. The verdict holds until `valid_until`, in Unix
/// seconds.
///
/// # Errors
/// A [`Denial`] of the TD's attributes, of `tcb_status`, or one that follows in [`Denial::CODES`].
pub fn dangerous_admit(
    evidence: &BoundEvidence,
    tcb_status: TcbStatus,
    valid_until: u64,
    policy: &Policy,
) -> Result<AttestedPeer, Denial> {
    policy.check_debug(evidence.quote().report())?;
    attributes::check(evidence.quote())?;
    let appraisal = Appraisal {
        tcb_status,
        advisories: Arc::new([]),
        valid_until,
    };
    admit(evidence, appraisal, policy)
}

/// Makes the checks of a bare quote that follow its appraisal. It has no event log, so it proves no identity.
pub(crate) fn check_bare(
    quote: &TdQuote,
    appraisal: &Appraisal,
    policy: &Policy,
    now: u64,
) -> Result<(), Denial> {
    let mut trace = Trace::off();
    let report = quote.report();
    policy.check_debug(report)?;
    attributes::check(quote)?;
    check_tcb(appraisal, policy, &mut trace)?;
    let (identity, platform) = (Identity::default(), read_platform(quote, policy));
    let selected = policy.select(&Claims {
        report,
        identity: None,
        platform: &platform,
        chain: None,
        now,
    });
    check_measurements(report, &platform, &selected, &mut trace)?;
    check_identity(&Ok(identity), &selected, &mut trace)
}

#[cfg(all(test, feature = "mock"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::examine;
    use crate::mock::{
        Certificate, Evidence, Fixture, Key, LeafOptions, Pki, Platform, PlatformOptions,
    };
    use crate::policy::Settings;
    use crate::values::Mrtd;

    const NOW: u64 = Fixture::NOW;

    fn evidence(root: &Pki) -> BoundEvidence {
        let platform = Platform::new(root, &PlatformOptions::default()).unwrap();
        let key = Key::derive(&[7; 32], "server").unwrap();
        let leaf = LeafOptions::default();
        let certificate =
            Certificate::issue(root, &platform, &key, &Evidence::default(), &leaf).unwrap();
        examine(&certificate.chain_der(), NOW, &Policy::default()).unwrap()
    }

    #[test]
    fn the_policy_is_applied_whoever_verified_the_quote() {
        let evidence = evidence(&Pki::new(&[7; 32]).unwrap());
        let until = NOW + 600;
        let admit =
            |status, policy: &Policy| dangerous_admit(&evidence, status, until, policy).map(drop);
        assert_eq!(admit(TcbStatus::UpToDate, &Policy::default()), Ok(()));
        let denial = admit(TcbStatus::OutOfDate, &Policy::default()).unwrap_err();
        assert_eq!(denial.code(), "tcb_out_of_date");
        let revoked = admit(TcbStatus::Revoked, &Policy::default()).unwrap_err();
        assert_eq!(revoked.code(), "tcb_revoked");
        let policy = Policy::new(Settings {
            mrtd: vec![Mrtd([0x12; 48])],
            ..Settings::default()
        });
        let denial = admit(TcbStatus::UpToDate, &policy).unwrap_err();
        assert_eq!(denial.code(), "mrtd_not_allowed");
    }

    #[test]
    fn the_verdict_ends_with_the_verifiers() {
        let evidence = evidence(&Pki::new(&[7; 32]).unwrap());
        let peer = dangerous_admit(&evidence, TcbStatus::UpToDate, NOW + 9, &Policy::default());
        assert_eq!(peer.unwrap().valid_until(), NOW + 9);
    }
}
