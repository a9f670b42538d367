//! Judges the evidence in this process's own certificate as a peer would, at start and whenever the certificate, the
//! policy or the collateral changes.
//!
//! Without it a sidecar whose guest agent quotes under another root than the one it was configured with looks healthy
//! while every peer refuses it. Only evidence that no peer can accept makes the check fail: a patch level that Intel
//! declares outdated must not take a whole cluster out of service.

use std::time::Duration;

use admin::Latch;
use attest::Denial;
use attest::cache::Epoch;
use attest::denial::Fault;
use attest::values::Fingerprint;
use tokio::sync::watch;

use crate::attestation::verifier::QuoteVerifier;
use crate::tls::certificate::Identity;

/// How often the policy and the collateral are compared with those of the last verdict.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The same while the collateral is not there.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the sender of new certificates is dropped.
pub(crate) async fn watch(
    quote_verifier: &QuoteVerifier,
    mut own: watch::Receiver<Identity>,
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
            let found = quote_verifier.judge_own(&identity.certified().cert).err();
            report(found.as_ref(), latch);
            match &found {
                // What is missing on this side, such as collateral, is logged by what fetches it.
                Some(denial) if denial.fault() == Fault::Ours => wait = RETRY_INTERVAL,
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
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn report(found: Option<&Denial>, latch: &Latch) {
    match found {
        None => latch.set_ready(),
        Some(denial) if is_worthless(denial) => latch.set_not_ready(text(denial)),
        Some(denial) => latch.set_ready_despite(text(denial)),
    }
}

fn log(found: Option<&Denial>) {
    match found {
        None => tracing::info!("this sidecar's own evidence is genuine"),
        Some(denial) if is_worthless(denial) => tracing::error!(
            code = denial.code(),
            detail = %denial,
            "peers will refuse this sidecar's own evidence"
        ),
        Some(denial) => tracing::warn!(
            code = denial.code(),
            detail = %denial,
            "peers may refuse this sidecar's own evidence"
        ),
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
        for (found, ready) in [
            (None, true),
            (Some(Denial::BadSignature), false),
            (Some(Denial::UnboundKey), false),
            (Some(Denial::EventLogMismatch), false),
            (Some(Denial::NoEvidence), true),
            (Some(Denial::DebugTd), true),
            (Some(Denial::CollateralUnavailable), true),
        ] {
            report(found.as_ref(), &latch);
            assert_eq!(readiness.is_ready(), ready, "{found:?}");
        }
    }
}
