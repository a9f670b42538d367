//! The gate's checks under an observer (visitor), for a command that reports each of them.
//!
//! Checks and order are those of the gate. Only the behaviour after a refusal differs: the checks continue as far
//! as their input can be parsed, so that one run reports everything that is wrong. The verdict is the first
//! refusal, as at the gate.
//!
//! It must never implement a check: it calls the functions that the gate calls.

use std::borrow::Borrow;

use super::admit::{
    admit_traced, allow_list, check_event_log, check_identity, check_kms_root, check_measurements,
    check_tcb, identity_checks, read_platform,
};
use super::{Appraisal, AttestedPeer, Verifier};
use crate::binding::{Examined, examine_traced};
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::event_log::{EventLog, Identity};
use crate::evidence::UnboundEvidence;
use crate::policy::{Claims, Policy, Selected};
use crate::quote::{QuoteHeader, TdQuote};
use crate::trace::{Check, CheckObserver, SkipReason, Trace, Values};

/// The checks of a certificate, which a bare quote does not have.
const OF_A_CERTIFICATE: [Check; 2] = [Check::Certificate, Check::Dates];

impl Verifier {
    /// Makes the checks of [`examine`](crate::examine) and [`Verifier::verify`] on a presented chain
    /// (leaf first, DER) and reports each to `observer`. `now` is in Unix seconds.
    ///
    /// `collateral` is called at most once, after the evidence was parsed. It returns the collateral for the
    /// quote, or the denial if there is none.
    ///
    /// # Errors
    /// The first refusal that `observer` saw. It is the one that `examine`, `collateral` or `verify`
    /// would have given.
    pub fn inspect<C: Borrow<Collateral>>(
        &self,
        chain: &[impl AsRef<[u8]>],
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        observer: &mut impl CheckObserver,
    ) -> Result<AttestedPeer, Denial> {
        let mut trace = Trace::new(observer);
        let result = self.inspect_chain(chain, policy, now, collateral, &mut trace);
        trace.finish(result)
    }

    fn inspect_chain<C: Borrow<Collateral>, O: CheckObserver>(
        &self,
        chain: &[impl AsRef<[u8]>],
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        trace: &mut Trace<O>,
    ) -> Result<AttestedPeer, Denial> {
        let evidence = examine_traced(chain, now, policy, trace)?;
        match self.appraise_traced(&evidence.quote, policy, now, collateral, trace) {
            Ok(appraisal) => admit_traced(&evidence, appraisal, policy, now, trace),
            Err(denial) => {
                trace.set_unverified(&denial)?;
                report_claims(&evidence, policy, now, trace)?;
                Err(denial)
            }
        }
    }

    /// As [`Verifier::inspect`], on an attestation envelope without a certificate. The quote is not bound to a key,
    /// so the result is not a peer.
    ///
    /// # Errors
    /// The first refusal that `observer` saw.
    pub fn inspect_envelope<C: Borrow<Collateral>>(
        &self,
        envelope: &[u8],
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        observer: &mut impl CheckObserver,
    ) -> Result<Appraisal, Denial> {
        let mut trace = Trace::new(observer);
        skip_all(&OF_A_CERTIFICATE, SkipReason::NoCertificate, &mut trace);
        let evidence = UnboundEvidence::from_envelope(envelope);
        trace.require(Check::Evidence, &evidence, |evidence| Values::Evidence {
            extensions: None,
            format: evidence.map(UnboundEvidence::format),
        });
        let evidence = evidence.inspect_err(|_| trace.skip_rest(SkipReason::UnreadableEvidence))?;
        trace.check(Check::Quote, Ok(()), || Values::Quote(evidence.quote()))?;
        let (quote, events) = (evidence.quote(), Some(evidence.events()));
        self.inspect_unbound(quote, events, policy, now, collateral, trace)
    }

    /// As [`Verifier::inspect`], on a bare quote: without a certificate and without an event log.
    ///
    /// # Errors
    /// The first refusal that `observer` saw.
    pub fn inspect_quote<C: Borrow<Collateral>>(
        &self,
        quote: &[u8],
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        observer: &mut impl CheckObserver,
    ) -> Result<Appraisal, Denial> {
        let mut trace = Trace::new(observer);
        skip_all(&OF_A_CERTIFICATE, SkipReason::NoCertificate, &mut trace);
        trace.check(Check::Evidence, Ok(()), || Values::Evidence {
            extensions: None,
            format: None,
        })?;
        let parsed = TdQuote::parse(quote);
        trace.require(Check::Quote, &parsed, |parsed| match parsed {
            Some(parsed) => Some(Values::Quote(parsed)),
            None => QuoteHeader::read(quote).ok().map(Values::UnparsedQuote),
        });
        let quote = parsed.inspect_err(|_| trace.skip_rest(SkipReason::UnreadableEvidence))?;
        self.inspect_unbound(&quote, None, policy, now, collateral, trace)
    }

    /// The checks that need no certificate.
    fn inspect_unbound<C: Borrow<Collateral>, O: CheckObserver>(
        &self,
        quote: &TdQuote,
        events: Option<&EventLog<'_>>,
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        mut trace: Trace<O>,
    ) -> Result<Appraisal, Denial> {
        trace.skip(Check::Binding, SkipReason::NoCertificate, || None);
        let appraisal = self.appraise_traced(quote, policy, now, collateral, &mut trace);
        match &appraisal {
            Ok(appraisal) => check_tcb(appraisal, policy, &mut trace)?,
            Err(denial) => trace.set_unverified(denial)?,
        }
        let report = quote.report();
        let identity = events.map(|events| events.prove(report.rtmr3()));
        let platform = read_platform(quote, policy);
        let selected = policy.select(&Claims {
            report,
            identity: identity
                .as_ref()
                .and_then(|identity| identity.as_ref().ok()),
            platform: &platform,
            chain: None,
            now,
        });
        check_measurements(report, &platform, &selected, &mut trace)?;
        match events.zip(identity) {
            Some((events, identity)) => {
                check_event_log(events, report.rtmr3(), &identity, &mut trace);
                check_identity(&identity, &selected, &mut trace)?;
            }
            None => check_without_event_log(appraisal.is_ok(), &selected, &mut trace)?,
        }
        trace.skip_rest(SkipReason::NoCertificate);
        trace.finish(appraisal)
    }

    /// The checks of [`Verifier::appraise`], and the request for collateral. The gate refuses a TD in debug mode
    /// before it verifies the signatures; here they are verified nevertheless.
    fn appraise_traced<C: Borrow<Collateral>, O: CheckObserver>(
        &self,
        quote: &TdQuote,
        policy: &Policy,
        now: u64,
        collateral: impl FnOnce(&TdQuote) -> Result<C, Denial>,
        trace: &mut Trace<O>,
    ) -> Result<Appraisal, Denial> {
        let debug = policy.check_debug(quote.report());
        let collateral = match collateral(quote) {
            Ok(collateral) => collateral,
            Err(denial) => {
                trace.check(Check::Collateral, Err(denial.clone()), || None)?;
                self.report_debug(quote, policy, debug, trace)?;
                self.report_refused(SkipReason::NoCollateral, None, quote, policy, trace)?;
                return Err(denial);
            }
        };
        let collateral = collateral.borrow();
        let dates = collateral
            .check_dates(now)
            .and_then(|()| policy.check_tcb_evaluation(collateral));
        let in_date = dates.is_ok();
        let allow_debug = policy.settings().allow_debug_td || debug.is_err();
        let result = dates
            .and_then(|()| self.verify_signatures(quote, collateral, policy, allow_debug, now));
        let refused = result.as_ref().err();
        let unsuitable = refused.filter(|denial| check_of(denial) == Check::Collateral);

        let values = || Values::Collateral(collateral);
        match unsuitable {
            // The gate refuses debug mode before dcap-qvl sees that the collateral does not fit.
            Some(_) if in_date && debug.is_err() => {
                trace.skip(Check::Collateral, SkipReason::UnsuitableCollateral, values);
            }
            Some(denial) => trace.check(Check::Collateral, Err(denial.clone()), values)?,
            None => trace.check(Check::Collateral, Ok(()), values)?,
        }
        self.report_debug(quote, policy, debug, trace)?;
        match refused {
            None => {
                trace.check(Check::Signatures, Ok(()), || self.root_values())?;
                trace.check(Check::TdAttributes, Ok(()), || attributes(quote))?;
            }
            Some(_) if unsuitable.is_some() => {
                let reason = SkipReason::UnsuitableCollateral;
                self.report_refused(reason, None, quote, policy, trace)?;
            }
            Some(denial) => {
                let reason = SkipReason::VerificationEndedEarly;
                self.report_refused(reason, Some(denial), quote, policy, trace)?;
            }
        }
        result
    }

    fn report_debug<O: CheckObserver>(
        &self,
        quote: &TdQuote,
        policy: &Policy,
        debug: Result<(), Denial>,
        trace: &mut Trace<O>,
    ) -> Result<(), Denial> {
        trace.check(Check::Debug, debug, || Values::Debug {
            under_debug: quote.report().is_under_debug(),
            allowed: policy.settings().allow_debug_td,
        })
    }

    /// Reports the checks from the signatures to the advisories, of which `denial` is the one that
    /// failed. `reason` is why the signatures were not verified, if they were not.
    fn report_refused<O: CheckObserver>(
        &self,
        reason: SkipReason,
        denial: Option<&Denial>,
        quote: &TdQuote,
        policy: &Policy,
        trace: &mut Trace<O>,
    ) -> Result<(), Denial> {
        let settings = policy.settings();
        let mut report = |check, reason, values: Values<'_>| match denial {
            Some(denial) if check_of(denial) == check => {
                trace.check(check, Err(denial.clone()), || values)
            }
            Some(_) | None => {
                trace.skip(check, reason, || values);
                Ok(())
            }
        };
        let unverified = SkipReason::QuoteNotVerified;
        report(Check::Signatures, reason, self.root_values())?;
        report(Check::TdAttributes, unverified, attributes(quote))?;
        let tcb = Values::Tcb {
            status: None,
            accepted: settings.tcb_statuses,
        };
        report(Check::Tcb, unverified, tcb)?;
        let advisories = Values::Advisories {
            found: None,
            refused: &settings.refused_advisories,
        };
        report(Check::Advisories, unverified, advisories)
    }

    fn root_values(&self) -> Values<'_> {
        Values::Signatures {
            root: self.root.fingerprint(),
            dangerous: self.root.is_dangerous(),
        }
    }
}

/// The check that a refusal of [`Verifier::appraise`] belongs to.
fn check_of(denial: &Denial) -> Check {
    match denial {
        Denial::CollateralUnavailable
        | Denial::CollateralExpired
        | Denial::CollateralNotYetValid
        | Denial::TcbEvaluationTooOld { .. } => Check::Collateral,
        // check_debug came first, so dcap-qvl refused another attribute.
        Denial::DebugTd | Denial::TdAttributes => Check::TdAttributes,
        Denial::Tcb { .. } | Denial::TcbBelowAll { .. } | Denial::TcbNotSupported => Check::Tcb,
        _ => Check::Signatures,
    }
}

fn attributes(quote: &TdQuote) -> Values<'static> {
    Values::TdAttributes(quote.report().attributes())
}

/// Reports the claims of a quote that is not verified, and makes the checks that do not depend on it.
fn report_claims<O: CheckObserver>(
    evidence: &Examined,
    policy: &Policy,
    now: u64,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    let report = evidence.quote.report();
    let identity = evidence.events.prove(report.rtmr3());
    let platform = read_platform(&evidence.quote, policy);
    let selected = policy.select(&Claims {
        report,
        identity: identity.as_ref().ok(),
        platform: &platform,
        chain: Some(&evidence.chain),
        now,
    });
    check_measurements(report, &platform, &selected, trace)?;
    check_event_log(&evidence.events, report.rtmr3(), &identity, trace);
    check_identity(&identity, &selected, trace)?;
    check_kms_root(&evidence.chain, &selected, now, trace).map(drop)
}

/// A bare quote proves no identity, which is refused if there is an allow-list.
fn check_without_event_log<O: CheckObserver>(
    is_verified: bool,
    selected: &Selected<'_>,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    trace.skip(Check::EventLog, SkipReason::NoEventLog, || None);
    let unknown = Identity::default();
    for (check, result) in identity_checks(&unknown, selected) {
        let values = || allow_list(check, &unknown, selected);
        match result {
            Err(_) if is_verified => trace.check(check, result, values)?,
            Ok(()) | Err(_) => trace.skip(check, SkipReason::NoEventLog, values),
        }
    }
    Ok(())
}

fn skip_all<O: CheckObserver>(checks: &[Check], reason: SkipReason, trace: &mut Trace<O>) {
    for check in checks {
        trace.skip(*check, reason, || None);
    }
}

#[cfg(all(test, feature = "mock"))]
mod tests;
