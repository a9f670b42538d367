//! Who says whether a server may see a byte.

use std::rc::Rc;
use std::sync::Arc;

use crate::attestation::gate::{Gate, Guard};
use crate::attestation::verifier::Trust;
use crate::io::offload::{OffloadThread, PendingJobs};
use crate::telemetry::metrics::Meters;

/// The `verifier` setting, ready for use.
pub(crate) enum Verdicts {
    /// `none`: any server, which only goes with `allow_simulator`.
    Nobody,
    /// `dcap` and `ita`.
    Judge {
        trust: Arc<Trust>,
        verify: OffloadThread,
        /// `allow_simulator`.
        lenient: bool,
    },
}

impl Verdicts {
    /// A shard's gate.
    pub(crate) fn gate(&self, jobs: &PendingJobs, meters: &Rc<Meters>) -> Gate {
        match self {
            Self::Nobody => Gate::Open,
            Self::Judge {
                trust,
                verify,
                lenient,
            } => Gate::guarded(Guard::new(trust, verify, jobs, meters, *lenient)),
        }
    }
}
