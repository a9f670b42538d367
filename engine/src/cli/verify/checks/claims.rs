//! The steps behind Intel's: measurements, event log, identity, KMS root.

use std::fmt::Display;

use attest::event_log::{EventLog, Identity};
use attest::quote::TdReport;
use attest::values::Rtmr;

use super::evidence::number;
use super::*;

/// Most names of events that are told.
const MAX_NAMES: usize = 32;

const CLAIMED: &str = "the quote is not verified: this is what it claims";
const NO_LOG: &str = "a bare quote carries no event log";

/// `checked`, where the quote is verified.
fn proved(vouched: bool, checked: &Result<(), Denial>) -> State {
    match vouched {
        true => State::of(checked),
        false => State::not_checked(CLAIMED),
    }
}

pub(super) fn measurements(
    steps: &mut Vec<Step>,
    policy: &Policy,
    report: &TdReport,
    vouched: bool,
) {
    let settings = policy.settings();
    let mrtd = proved(vouched, &policy.check_mrtd(report));
    steps.push(
        Step::new("mrtd", mrtd)
            .with("value", Fact::hex(report.mrtd().as_bytes()))
            .with("allowed", Fact::any_of(&settings.mrtd)),
    );
    let names = ["rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    let told = names.into_iter().zip(policy.check_rtmrs(report));
    let values = report.rtmrs().into_iter().zip(&settings.rtmr);
    for ((name, checked), (value, list)) in told.zip(values) {
        steps.push(
            Step::new(name, proved(vouched, &checked))
                .with("value", Fact::hex(value.as_bytes()))
                .with("allowed", Fact::any_of(list)),
        );
    }
}

/// `events` are none of a bare quote, which then proves no identity.
pub(super) fn identity(
    steps: &mut Vec<Step>,
    policy: &Policy,
    events: Option<&EventLog<'_>>,
    rtmr3: Rtmr,
    vouched: bool,
) {
    let Some(events) = events else {
        steps.push(Step::new("event_log", State::not_checked(NO_LOG)));
        return lists(steps, policy, Some(&Identity::default()), |checked| {
            match (vouched, checked) {
                // Where a list is set, to prove nothing is refused.
                (true, Err(_)) => State::of(checked),
                _ => State::not_checked(NO_LOG),
            }
        });
    };
    let identity = events.prove(rtmr3);
    steps.push(event_log(events, rtmr3, &identity));
    let identity = identity.as_ref().ok();
    lists(steps, policy, identity, |checked| match identity {
        Some(_) => proved(vouched, checked),
        None => State::not_checked("the event log proves nothing"),
    });
}

fn event_log(events: &EventLog<'_>, rtmr3: Rtmr, identity: &Result<Identity, Denial>) -> Step {
    let all = events.events();
    let more = all.len().saturating_sub(MAX_NAMES);
    let names = all
        .iter()
        .take(MAX_NAMES)
        .map(|event| event.name().to_owned());
    let names = names.chain((more > 0).then(|| format!("… and {more} more")));
    let replayed = events.replay().ok();
    let step = Step::new("event_log", State::of(identity))
        .with("events", number(all.len()))
        .with("names", Fact::texts(names))
        .with_some(
            "replayed",
            replayed.map(|value| Fact::hex(value.as_bytes())),
        )
        .with("quoted", Fact::hex(rtmr3.as_bytes()));
    let Ok(identity) = identity else {
        return step;
    };
    let instance = identity.instance_id();
    step.with_some("instance_id", instance.map(|id| Fact::hex(id.as_bytes())))
        .with_some("key_provider", identity.key_provider().map(Fact::text))
}

fn lists(
    steps: &mut Vec<Step>,
    policy: &Policy,
    identity: Option<&Identity>,
    state: impl Fn(&Result<(), Denial>) -> State,
) {
    let settings = policy.settings();
    let nobody = Identity::default();
    let identity = identity.unwrap_or(&nobody);
    steps.push(list(
        "app_id",
        state(&policy.check_app_id(identity)),
        identity.app_id().map(|id| id.0.to_vec()),
        &settings.app_id,
    ));
    steps.push(list(
        "compose_hash",
        state(&policy.check_compose_hash(identity)),
        identity.compose_hash().map(|hash| hash.0.to_vec()),
        &settings.compose_hash,
    ));
    steps.push(list(
        "os_image_hash",
        state(&policy.check_os_image_hash(identity)),
        identity.os_image_hash().map(|hash| hash.0.to_vec()),
        &settings.os_image_hash,
    ));
}

fn list<T: Display>(
    name: &'static str,
    state: State,
    value: Option<Vec<u8>>,
    allowed: &[T],
) -> Step {
    Step::new(name, state)
        .with_some("value", value.map(Fact::hex))
        .with("allowed", Fact::any_of(allowed))
}

pub(super) fn kms_root(chain: &[Vec<u8>], policy: &Policy, now: u64) -> Step {
    let roots = &policy.settings().kms_roots;
    let checked = Chain::copy(chain).and_then(|chain| chain.verify_up_to(roots, now));
    Step::new("kms_root", State::of(&checked)).with(
        "allowed",
        Fact::any_of(roots.iter().map(KmsRoot::fingerprint)),
    )
}
