//! The verifier of members: a second [`QuoteVerifier`] with the policy for members, which follows the policy for
//! clients and this process's own evidence.
//!
//! It has its own policy, verdicts and thread, so that a burst of new clients neither delays the links between
//! members nor takes their verdicts' places. It must never admit a peer before it is known who the members are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use attest::policy::OwnMeasurements;
use attest::{AttestedPeer, Policy};

use crate::attestation::verifier::QuoteVerifier;

/// Verifies the peers of links.
pub(crate) struct MemberVerifier {
    verifier: Arc<QuoteVerifier>,
    own: ArcSwapOption<OwnMeasurements>,
    /// Whether the policy can admit a peer.
    ready: AtomicBool,
}

impl MemberVerifier {
    /// `verifier` uses the collateral and the root of the one for clients. Its policy is replaced at once.
    pub(super) fn new(verifier: Arc<QuoteVerifier>, clients: &Policy) -> Arc<Self> {
        let members = Self {
            verifier,
            own: ArcSwapOption::empty(),
            ready: AtomicBool::new(false),
        };
        members.follow(clients);
        Arc::new(members)
    }

    /// What verifies their quotes.
    pub(crate) fn verifier(&self) -> &Arc<QuoteVerifier> {
        &self.verifier
    }

    /// Whether it is known who the members are.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Derives the policy again from that for clients. Must be called by one thread only.
    pub(super) fn follow(&self, clients: &Policy) {
        let own = self.own.load();
        let (policy, admits) = clients.of_members(own.as_deref());
        self.verifier.replace_policy(policy);
        self.ready.store(admits, Ordering::Release);
    }

    /// Admits peers that are like this process: `own` is the verdict on its own certificate. What the VM has measured
    /// does not change while it runs.
    pub(super) fn set_own(&self, own: &AttestedPeer, clients: &Policy) {
        let Some(measurements) = own.measurements() else {
            tracing::warn!(
                "this sidecar's own evidence proves no app id and compose hash: only peers of [[peer]] entries with \
                 member = true can be members"
            );
            return;
        };
        if self.own.load().as_deref() == Some(&measurements) {
            return;
        }
        self.own.store(Some(Arc::new(measurements)));
        self.follow(clients);
        // Links are accepted when this line is written.
        tracing::info!(
            app_id = %measurements.app_id,
            compose_hash = %measurements.compose_hash,
            mrtd = %measurements.mrtd,
            "members of the cluster prove the same as this sidecar"
        );
    }
}
