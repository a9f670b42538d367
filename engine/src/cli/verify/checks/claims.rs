//! The checks after Intel's signatures: measurements, event log, identity, KMS root.

use std::fmt::Display;

use attest::event_log::{EventLog, Identity};
use attest::quote::TdReport;
use attest::values::Rtmr;

use super::*;

/// Maximum number of event names in the report.
const MAX_NAMES: usize = 32;

const CLAIMED: &str = "the quote is not verified, so that the value is only claimed";
const NO_LOG: &str = "a bare quote has no event log";

/// The outcome of a check of a value in the quote.
fn of_quoted(verified: bool, checked: &Result<(), Denial>) -> Outcome {
    match verified {
        true => Outcome::of(checked),
        false => Outcome::not_checked(CLAIMED),
    }
}

pub(super) fn measurements(
    checks: &mut Vec<Check>,
    policy: &Policy,
    report: &TdReport,
    verified: bool,
) {
    let settings = policy.settings();
    let mrtd = of_quoted(verified, &policy.check_mrtd(report));
    checks.push(
        Check::new("mrtd", mrtd)
            .with("value", CheckValue::hex(report.mrtd().as_bytes()))
            .with("allowed", CheckValue::any_of(&settings.mrtd)),
    );
    let names = ["rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    let results = names.into_iter().zip(policy.check_rtmrs(report));
    let values = report.rtmrs().into_iter().zip(&settings.rtmr);
    for ((name, checked), (value, list)) in results.zip(values) {
        checks.push(
            Check::new(name, of_quoted(verified, &checked))
                .with("value", CheckValue::hex(value.as_bytes()))
                .with("allowed", CheckValue::any_of(list)),
        );
    }
}

/// A bare quote has no `events` and proves no identity.
pub(super) fn identity(
    checks: &mut Vec<Check>,
    policy: &Policy,
    events: Option<&EventLog<'_>>,
    rtmr3: Rtmr,
    verified: bool,
) {
    let Some(events) = events else {
        checks.push(Check::new("event_log", Outcome::not_checked(NO_LOG)));
        return lists(checks, policy, Some(&Identity::default()), |checked| {
            match (verified, checked) {
                // If a list is set, a peer without an identity is refused.
                (true, Err(_)) => Outcome::of(checked),
                _ => Outcome::not_checked(NO_LOG),
            }
        });
    };
    let identity = events.prove(rtmr3);
    checks.push(event_log(events, rtmr3, &identity));
    let identity = identity.as_ref().ok();
    lists(checks, policy, identity, |checked| match identity {
        Some(_) => of_quoted(verified, checked),
        None => Outcome::not_checked("the event log is not verified"),
    });
}

fn event_log(events: &EventLog<'_>, rtmr3: Rtmr, identity: &Result<Identity, Denial>) -> Check {
    let all = events.events();
    let more = all.len().saturating_sub(MAX_NAMES);
    let names = all
        .iter()
        .take(MAX_NAMES)
        .map(|event| event.name().to_owned());
    let names = names.chain((more > 0).then(|| format!("… and {more} more")));
    let replayed = events.replay().ok();
    let check = Check::new("event_log", Outcome::of(identity))
        .with("events", CheckValue::count(all.len()))
        .with("names", CheckValue::texts(names))
        .with_some(
            "replayed",
            replayed.map(|value| CheckValue::hex(value.as_bytes())),
        )
        .with("quoted", CheckValue::hex(rtmr3.as_bytes()));
    let Ok(identity) = identity else {
        return check;
    };
    let instance = identity.instance_id();
    check
        .with_some(
            "instance_id",
            instance.map(|id| CheckValue::hex(id.as_bytes())),
        )
        .with_some(
            "key_provider",
            identity.key_provider().map(CheckValue::text),
        )
}

fn lists(
    checks: &mut Vec<Check>,
    policy: &Policy,
    identity: Option<&Identity>,
    state: impl Fn(&Result<(), Denial>) -> Outcome,
) {
    let settings = policy.settings();
    let unknown = Identity::default();
    let identity = identity.unwrap_or(&unknown);
    checks.push(list(
        "app_id",
        state(&policy.check_app_id(identity)),
        identity.app_id().map(|id| id.0.to_vec()),
        &settings.app_id,
    ));
    checks.push(list(
        "compose_hash",
        state(&policy.check_compose_hash(identity)),
        identity.compose_hash().map(|hash| hash.0.to_vec()),
        &settings.compose_hash,
    ));
    checks.push(list(
        "os_image_hash",
        state(&policy.check_os_image_hash(identity)),
        identity.os_image_hash().map(|hash| hash.0.to_vec()),
        &settings.os_image_hash,
    ));
}

fn list<T: Display>(
    name: &'static str,
    state: Outcome,
    value: Option<Vec<u8>>,
    allowed: &[T],
) -> Check {
    Check::new(name, state)
        .with_some("value", value.map(CheckValue::hex))
        .with("allowed", CheckValue::any_of(allowed))
}

pub(super) fn kms_root(chain: &[Vec<u8>], policy: &Policy, now: u64) -> Check {
    let roots = &policy.settings().kms_roots;
    let checked = Chain::copy(chain).and_then(|chain| chain.verify_up_to(roots, now));
    Check::new("kms_root", Outcome::of(&checked)).with(
        "allowed",
        CheckValue::any_of(roots.iter().map(KmsRoot::fingerprint)),
    )
}
