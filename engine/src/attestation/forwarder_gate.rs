//! Builds the gate of a forwarder, which verifies servers.

use std::rc::Rc;
use std::sync::Arc;

use crate::attestation::gate::{AttestingGate, Gate};
use crate::attestation::verifier::QuoteVerifier;
use crate::io::offload::{OffloadPool, PendingJobs};
use crate::telemetry::shard_metrics::ShardMetrics;

/// How servers are verified: the setting `verifier`.
pub(crate) enum ServerGate {
    /// `none`: every server is accepted. The configuration requires `allow_simulator` for it.
    AllowAny,
    /// `dcap` or `ita`.
    Verify {
        quote_verifier: Arc<QuoteVerifier>,
        verify_pool: OffloadPool,
        /// The setting `allow_simulator`: a server without evidence is accepted.
        allow_simulator: bool,
    },
}

impl ServerGate {
    /// What verifies servers, if anything does.
    pub(crate) fn quote_verifier(&self) -> Option<&Arc<QuoteVerifier>> {
        match self {
            Self::AllowAny => None,
            Self::Verify { quote_verifier, .. } => Some(quote_verifier),
        }
    }

    /// Builds the gate of one shard.
    pub(crate) fn gate(&self, jobs: &PendingJobs, shard_metrics: &Rc<ShardMetrics>) -> Gate {
        match self {
            Self::AllowAny => Gate::Open,
            Self::Verify {
                quote_verifier,
                verify_pool,
                allow_simulator,
            } => Gate::attesting(AttestingGate::new(
                quote_verifier,
                verify_pool,
                jobs,
                shard_metrics,
                *allow_simulator,
            )),
        }
    }
}
