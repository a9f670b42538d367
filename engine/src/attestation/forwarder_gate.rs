//! Who says whether a server may see a byte.

use std::rc::Rc;
use std::sync::Arc;

use crate::attestation::gate::{AttestingGate, Gate};
use crate::attestation::verifier::QuoteVerifier;
use crate::io::offload::{OffloadThread, PendingJobs};
use crate::telemetry::shard_metrics::ShardMetrics;

/// The `verifier` setting, ready for use.
pub(crate) enum ServerGate {
    /// `none`: any server, which only goes with `allow_simulator`.
    AllowAny,
    /// `dcap` and `ita`.
    Verify {
        quote_verifier: Arc<QuoteVerifier>,
        verify: OffloadThread,
        /// `allow_simulator`.
        allow_simulator: bool,
    },
}

impl ServerGate {
    /// A shard's gate.
    pub(crate) fn gate(&self, jobs: &PendingJobs, shard_metrics: &Rc<ShardMetrics>) -> Gate {
        match self {
            Self::AllowAny => Gate::Open,
            Self::Verify {
                quote_verifier,
                verify,
                allow_simulator,
            } => Gate::attesting(AttestingGate::new(
                quote_verifier,
                verify,
                jobs,
                shard_metrics,
                *allow_simulator,
            )),
        }
    }
}
