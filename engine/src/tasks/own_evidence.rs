//! Judges the evidence in this process's own certificate as a peer would, at start and whenever the certificate, the
//! policy or the collateral changes.
//!
//! Without it a sidecar whose guest agent quotes under another root than the one it was configured with looks healthy
//! while every peer refuses it. Only evidence that no peer can accept makes the check fail: a patch level that Intel
//! declares outdated must not take a whole cluster out of service.

use std::time::Duration;

use admin::Latch;
use attest::cache::Epoch;
use attest::denial::Fault;
use attest::values::Fingerprint;
use attest::{AttestedPeer, Denial};
use tokio::sync::watch;

use crate::attestation::verifier::QuoteVerifier;
use crate::cluster::state::ClusterState;
use crate::tasks::coalesced_sleep;
use crate::tls::certificate::Identity;

/// How often the policy and the collateral are compared with those of the last verdict.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The same while the collateral is not there.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// What `/ready` and the log say of [`Finding::NoInstanceId`].
const NO_INSTANCE_ID: &str = "own evidence proves no instance id: the other members of the cluster refuse the links \
                              of this one; remove no_instance_id from the application's compose file";

/// What is wrong with the own evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// It is refused.
    Denied(Denial),
    /// It proves no instance id, and the members of the cluster are told apart by that.
    NoInstanceId,
}

/// Runs until the sender of new certificates is dropped. `cluster` is the one that this sidecar belongs to.
pub(crate) async fn watch(
    quote_verifier: &QuoteVerifier,
    mut own: watch::Receiver<Identity>,
    cluster: Option<&ClusterState>,
    latch: &Latch,
) {
    let mut judged: Option<(Fingerprint, Epoch)> = None;
    let mut logged = None;
    loop {
        let identity = own.borrow_and_update().clone();
        let current = (
            identity.fingerprint(),
            quote_verifier.epoch(&quote_verifier.policy()),
        );
        let mut wait = CHECK_INTERVAL;
        if judged != Some(current) {
            let verdict = quote_verifier.judge_own(&identity.certified().cert);
            let found = finding(verdict, cluster);
            report(found.as_ref(), latch);
            match &found {
                // What is missing on this side, such as collateral, is logged by what fetches it.
                Some(Finding::Denied(denial)) if denial.fault() == Fault::Ours => {
                    wait = RETRY_INTERVAL;
                }
                found => {
                    judged = Some(current);
                    if logged.as_ref() != Some(found) {
                        log(found.as_ref());
                        logged = Some(found.clone());
                    }
                }
            }
        }
        tokio::select! {
            changed = own.changed() => match changed {
                Ok(()) => {}
                Err(_) => return,
            },
            () = coalesced_sleep::sleep(wait) => {}
        }
    }
}

/// Judges the verdict on the own evidence, and tells the cluster which instance this member is.
fn finding(
    verdict: Result<AttestedPeer, Denial>,
    cluster: Option<&ClusterState>,
) -> Option<Finding> {
    let own = match verdict {
        Ok(own) => own,
        Err(denial) => return Some(Finding::Denied(denial)),
    };
    let instance = own.instance_id();
    let cluster = cluster?;
    cluster.member_names.set_own_instance(instance);
    let has_others = cluster.config.members.len() > 1;
    (has_others && instance.is_none()).then_some(Finding::NoInstanceId)
}

fn report(found: Option<&Finding>, latch: &Latch) {
    match found {
        None => latch.set_ready(),
        Some(Finding::Denied(denial)) if is_worthless(denial) => latch.set_not_ready(text(denial)),
        Some(Finding::Denied(denial)) => latch.set_ready_despite(text(denial)),
        // It is good enough for clients.
        Some(Finding::NoInstanceId) => latch.set_ready_despite(NO_INSTANCE_ID),
    }
}

fn log(found: Option<&Finding>) {
    match found {
        None => tracing::info!("this sidecar's own evidence is genuine"),
        Some(Finding::Denied(denial)) if is_worthless(denial) => tracing::error!(
            code = denial.code(),
            detail = %denial,
            "peers will refuse this sidecar's own evidence"
        ),
        Some(Finding::Denied(denial)) => tracing::warn!(
            code = denial.code(),
            detail = %denial,
            "peers may refuse this sidecar's own evidence"
        ),
        Some(Finding::NoInstanceId) => tracing::error!("{NO_INSTANCE_ID}"),
    }
}

fn text(denial: &Denial) -> String {
    format!("own evidence: {}: {denial}", denial.code())
}

/// Whether no peer that verifies under the same root can accept it.
fn is_worthless(denial: &Denial) -> bool {
    match denial {
        Denial::MalformedCertificate(_)
        | Denial::MalformedEvidence(_)
        | Denial::ChainTooLong
        | Denial::NotTdx
        | Denial::UnsupportedQuote(_)
        | Denial::UnboundKey
        | Denial::BadSignature
        | Denial::PckRevoked
        | Denial::TdAttributes
        | Denial::EventLogMismatch => true,
        // Clients that connect with TLS alone need none, and the identity check reports an expired certificate.
        Denial::NoCertificate
        | Denial::NoEvidence
        | Denial::Expired
        | Denial::NotYetValid
        | Denial::TooOld
        // Each peer's policy decides.
        | Denial::PckNotValid
        | Denial::DebugTd
        | Denial::Tcb { .. }
        | Denial::TcbBelowAll { .. }
        | Denial::TcbNotSupported
        | Denial::AdvisoryRefused(_)
        | Denial::MrtdNotAllowed(_)
        | Denial::RtmrNotAllowed { .. }
        | Denial::AppNotAllowed(_)
        | Denial::ComposeHashNotAllowed(_)
        | Denial::InstanceNotAllowed(_)
        | Denial::OsImageHashNotAllowed(_)
        | Denial::KmsRootMismatch
        | Denial::PinNotAllowed(..)
        | Denial::Entry { .. }
        // Nothing is known.
        | Denial::TcbEvaluationTooOld { .. }
        | Denial::CollateralUnavailable
        | Denial::CollateralExpired
        | Denial::CollateralNotYetValid
        | Denial::Overloaded
        | Denial::Authority { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_evidence_that_no_peer_accepts_fails_the_check() {
        let readiness = admin::Readiness::new();
        let latch = readiness.latch("evidence", "not judged yet");
        let denied = |denial| Some(Finding::Denied(denial));
        for (found, ready) in [
            (None, true),
            (denied(Denial::BadSignature), false),
            (denied(Denial::UnboundKey), false),
            (denied(Denial::EventLogMismatch), false),
            (denied(Denial::NoEvidence), true),
            (denied(Denial::DebugTd), true),
            (denied(Denial::CollateralUnavailable), true),
            (Some(Finding::NoInstanceId), true),
        ] {
            report(found.as_ref(), &latch);
            assert_eq!(readiness.is_ready(), ready, "{found:?}");
        }
    }
}
