//! The checks that follow once the quote's signatures are verified, and the one place where an
//! [`AttestedPeer`] is made.

use super::{Appraisal, AttestedPeer};
use crate::binding::{BoundEvidence, Examined};
use crate::chain::Chain;
use crate::denial::Denial;
use crate::event_log::{EventLog, Identity};
use crate::policy::{Policy, Settings};
use crate::quote::TdReport;
use crate::trace::{Check, CheckObserver, SkipReason, Trace, Values};
use crate::values::Rtmr;

/// Makes the checks that follow after the quote is verified by Intel's signatures or by Trust Authority: TCB,
/// measurements, event log, identity, KMS roots.
pub(crate) fn admit(
    evidence: &BoundEvidence,
    appraisal: Appraisal,
    policy: &Policy,
    now: u64,
) -> Result<AttestedPeer, Denial> {
    admit_traced(
        evidence.examined(),
        appraisal,
        policy,
        now,
        &mut Trace::off(),
    )
}

/// The checks of [`admit`], reported to `trace`. The one place where an [`AttestedPeer`] is made.
pub(super) fn admit_traced<O: CheckObserver>(
    evidence: &Examined,
    appraisal: Appraisal,
    policy: &Policy,
    now: u64,
    trace: &mut Trace<O>,
) -> Result<AttestedPeer, Denial> {
    let report = evidence.quote.report();
    check_tcb(&appraisal, policy, trace)?;
    check_measurements(report, policy, trace)?;
    let identity = check_event_log(&evidence.events, report.rtmr3(), trace);
    check_identity(&identity, policy, trace)?;
    let identity = trace.stop_or_continue(identity)?;
    let issuers_until = check_kms_root(&evidence.chain, policy, now, trace)?;
    // Under an observer the checks continue after a refusal, up to here.
    trace.verdict()?;
    let until = [
        Some(appraisal.valid_until),
        Some(evidence.not_after),
        Some(issuers_until),
        policy
            .max_age_reached_at(evidence.not_before)
            .map(|until| until.saturating_sub(1)),
    ];
    Ok(AttestedPeer {
        valid_until: until.into_iter().flatten().min().unwrap_or(now),
        debug: report.is_under_debug(),
        mrtd: report.mrtd(),
        rtmrs: report.rtmrs(),
        chain: evidence.chain.clone(),
        policy: policy.epoch(),
        identity: identity.ok_or(Denial::EventLogMismatch)?,
        appraisal,
    })
}

pub(super) fn check_tcb<O: CheckObserver>(
    appraisal: &Appraisal,
    policy: &Policy,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    let (settings, found) = (policy.settings(), appraisal.advisories());
    let accepted = policy.check_tcb(appraisal.tcb_status);
    trace.check(Check::Tcb, accepted, || Values::Tcb {
        status: Some(appraisal.tcb_status),
        accepted: settings.tcb_statuses,
    })?;
    let accepted = policy.check_advisories(found.iter().map(String::as_str));
    trace.check(Check::Advisories, accepted, || Values::Advisories {
        found: Some(found),
        refused: &settings.refused_advisories,
    })
}

pub(super) fn check_measurements<O: CheckObserver>(
    report: &TdReport,
    policy: &Policy,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    let settings = policy.settings();
    trace.check_claim(Check::Mrtd, policy.check_mrtd(report), || Values::Mrtd {
        value: report.mrtd(),
        allowed: &settings.mrtd,
    })?;
    let checks = [Check::Rtmr0, Check::Rtmr1, Check::Rtmr2, Check::Rtmr3];
    let registers = report.rtmrs().into_iter().zip(&settings.rtmr);
    let results = checks.into_iter().zip(policy.check_rtmrs(report));
    for ((check, result), (value, allowed)) in results.zip(registers) {
        trace.check_claim(check, result, || Values::Rtmr { value, allowed })?;
    }
    Ok(())
}

pub(super) fn check_event_log<O: CheckObserver>(
    events: &EventLog<'_>,
    quoted: Rtmr,
    trace: &mut Trace<O>,
) -> Result<Identity, Denial> {
    let identity = events.prove(quoted);
    trace.require(Check::EventLog, &identity, |identity| Values::EventLog {
        events,
        replayed: events.replay().ok(),
        quoted,
        identity,
    });
    identity
}

/// Compares the identity that the event log proves with the allow-lists. `identity` is the result of
/// [`check_event_log`].
pub(super) fn check_identity<O: CheckObserver>(
    identity: &Result<Identity, Denial>,
    policy: &Policy,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    let settings = policy.settings();
    let identity = match identity {
        Ok(identity) => identity,
        Err(denial) if !O::ENABLED => return Err(denial.clone()),
        Err(_) => {
            for check in [Check::AppId, Check::ComposeHash, Check::OsImageHash] {
                trace.skip(check, SkipReason::NoIdentity, || {
                    allow_list(check, &Identity::default(), settings)
                });
            }
            return Ok(());
        }
    };
    let checks = [
        (Check::AppId, policy.check_app_id(identity)),
        (Check::ComposeHash, policy.check_compose_hash(identity)),
        (Check::OsImageHash, policy.check_os_image_hash(identity)),
    ];
    for (check, result) in checks {
        trace.check_claim(check, result, || allow_list(check, identity, settings))?;
    }
    Ok(())
}

pub(super) fn check_kms_root<O: CheckObserver>(
    chain: &Chain,
    policy: &Policy,
    now: u64,
    trace: &mut Trace<O>,
) -> Result<u64, Denial> {
    let allowed = &policy.settings().kms_roots;
    let until = chain.verify_up_to(allowed, now);
    trace.require(Check::KmsRoot, &until, |_| Values::KmsRoot { allowed });
    until
}

/// The proved value and the allow-list of one of the three identity checks.
pub(super) fn allow_list<'a>(
    check: Check,
    identity: &Identity,
    settings: &'a Settings,
) -> Option<Values<'a>> {
    Some(match check {
        Check::AppId => Values::AppId {
            value: identity.app_id(),
            allowed: &settings.app_id,
        },
        Check::ComposeHash => Values::ComposeHash {
            value: identity.compose_hash(),
            allowed: &settings.compose_hash,
        },
        Check::OsImageHash => Values::OsImageHash {
            value: identity.os_image_hash(),
            allowed: &settings.os_image_hash,
        },
        _ => return None,
    })
}
