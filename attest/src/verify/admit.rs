//! The checks that follow once the quote's signatures are verified, and the one place where an
//! [`AttestedPeer`] is made.

use std::sync::Arc;

use super::{Appraisal, AttestedPeer};
use crate::binding::{BoundEvidence, Examined};
use crate::chain::Chain;
use crate::denial::Denial;
use crate::event_log::{EventLog, Identity};
use crate::policy::{Claims, PlatformClaims, Policy, Selected};
use crate::quote::{TdQuote, TdReport};
use crate::trace::{Check, CheckObserver, SkipReason, Trace, Values};
use crate::values::Rtmr;

/// Makes the checks that follow after the quote is verified by Intel's signatures or by Trust Authority: TCB,
/// measurements, event log, identity, KMS roots. The certificates must be valid when they were examined.
pub(crate) fn admit(
    evidence: &BoundEvidence,
    appraisal: Appraisal,
    policy: &Policy,
) -> Result<AttestedPeer, Denial> {
    let evidence = evidence.examined();
    admit_traced(
        evidence,
        appraisal,
        policy,
        evidence.examined_at,
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
    let identity = trace.stop_or_continue(identity)?;
    let issuers_until = check_kms_root(&evidence.chain, &selected, now, trace)?;
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
        family: None,
        valid_until: until.into_iter().flatten().min().unwrap_or(now),
        debug: report.is_under_debug(),
        mrtd: report.mrtd(),
        rtmrs: report.rtmrs(),
        chain: evidence.chain.clone(),
        policy: policy.epoch(),
        entry: Arc::clone(selected.entry()),
        os: selected.os().and_then(|os| os.name.clone()),
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

/// What the PCK certificate says of the platform, if the policy asks for it.
pub(super) fn read_platform(quote: &TdQuote, policy: &Policy) -> PlatformClaims {
    if !policy.pins_platform() {
        return PlatformClaims::default();
    }
    // What cannot be read shows nothing, and is refused where it is pinned.
    PlatformClaims::read(quote).unwrap_or_default()
}

/// Compares what the TDX module measured: registers, configuration and platform.
pub(super) fn check_measurements<O: CheckObserver>(
    report: &TdReport,
    platform: &PlatformClaims,
    selected: &Selected<'_>,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    trace.check_claim(Check::Mrtd, selected.check_mrtd(report), || Values::Mrtd {
        value: report.mrtd(),
        allowed: selected.mrtds(),
    })?;
    let checks = [Check::Rtmr0, Check::Rtmr1, Check::Rtmr2, Check::Rtmr3];
    let registers = report.rtmrs().into_iter().zip(selected.rtmrs());
    let results = checks.into_iter().zip(selected.check_rtmrs(report));
    for ((check, result), (value, allowed)) in results.zip(registers) {
        trace.check_claim(check, result, || Values::Rtmr { value, allowed })?;
    }
    let result = selected.check_configuration(report);
    trace.check_claim(Check::Configuration, result, || Values::Configuration {
        report,
        os: selected.os(),
        entry: selected.entry(),
    })?;
    let result = selected.check_platform(report, platform);
    trace.check_claim(Check::Platform, result, || Values::Platform {
        mr_seam: report.mr_seam(),
        claims: platform,
        pins: &selected.entry().platform,
    })
}

/// Reports the replay of the event log, whose result is `identity`.
pub(super) fn check_event_log<O: CheckObserver>(
    events: &EventLog<'_>,
    quoted: Rtmr,
    identity: &Result<Identity, Denial>,
    trace: &mut Trace<O>,
) {
    trace.require(Check::EventLog, identity, |identity| Values::EventLog {
        events,
        replayed: events.replay().ok(),
        quoted,
        identity,
    });
}

/// Compares what the event log proves with the allow-lists. `identity` is the result of its replay.
pub(super) fn check_identity<O: CheckObserver>(
    identity: &Result<Identity, Denial>,
    selected: &Selected<'_>,
    trace: &mut Trace<O>,
) -> Result<(), Denial> {
    let identity = match identity {
        Ok(identity) => identity,
        Err(denial) if !O::ENABLED => return Err(denial.clone()),
        Err(_) => {
            for check in IDENTITY {
                trace.skip(check, SkipReason::NoIdentity, || {
                    allow_list(check, &Identity::default(), selected)
                });
            }
            return Ok(());
        }
    };
    for (check, result) in identity_checks(identity, selected) {
        trace.check_claim(check, result, || allow_list(check, identity, selected))?;
    }
    Ok(())
}

/// The checks of what the event log proves.
pub(super) const IDENTITY: [Check; 4] = [
    Check::AppId,
    Check::ComposeHash,
    Check::InstanceId,
    Check::OsImageHash,
];

/// The results of [`IDENTITY`].
pub(super) fn identity_checks(
    identity: &Identity,
    selected: &Selected<'_>,
) -> impl Iterator<Item = (Check, Result<(), Denial>)> {
    let results = [
        selected.check_app_id(identity),
        selected.check_compose_hash(identity),
        selected.check_instance_id(identity),
        selected.check_os_image_hash(identity),
    ];
    IDENTITY.into_iter().zip(results)
}

pub(super) fn check_kms_root<O: CheckObserver>(
    chain: &Chain,
    selected: &Selected<'_>,
    now: u64,
    trace: &mut Trace<O>,
) -> Result<u64, Denial> {
    let until = selected.verify_chain(chain, now);
    trace.require(Check::KmsRoot, &until, |_| Values::KmsRoot {
        allowed: selected.kms_roots().unwrap_or_default(),
    });
    until
}

/// The proved value and the allow-list of one of the identity checks.
pub(super) fn allow_list<'a>(
    check: Check,
    identity: &Identity,
    selected: &Selected<'a>,
) -> Option<Values<'a>> {
    let entry = &**selected.entry();
    Some(match check {
        Check::AppId => Values::AppId {
            value: identity.app_id(),
            allowed: &entry.app_id,
        },
        Check::ComposeHash => Values::ComposeHash {
            value: identity.compose_hash(),
            allowed: &entry.compose_hash,
        },
        Check::InstanceId => Values::InstanceId {
            value: identity.instance_id(),
            allowed: &entry.instance_id,
        },
        Check::OsImageHash => Values::OsImageHash {
            value: identity.os_image_hash(),
            allowed: selected.os_image_hashes(),
        },
        _ => return None,
    })
}
