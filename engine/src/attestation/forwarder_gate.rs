//! Who says whether a server may see a byte.

use std::sync::Arc;

use crate::attestation::gate::{Gate, Guard};
use crate::attestation::verifier::Trust;
use crate::io::offload::Worker;
use crate::shard::pool::Desk;

/// The `verifier` setting, ready for use.
pub(crate) enum Verdicts {
    /// `none`: any server, which only goes with `allow_simulator`.
    Nobody,
    /// `dcap` and `ita`.
    Judge {
        trust: Arc<Trust>,
        verify: Worker,
        /// `allow_simulator`.
        lenient: bool,
    },
}

impl Verdicts {
    /// A shard's gate.
    pub(crate) fn gate(&self, desk: &Desk) -> Gate {
        match self {
            Self::Nobody => Gate::Open,
            Self::Judge {
                trust,
                verify,
                lenient,
            } => Gate::guarded(Guard::new(trust, verify, desk, *lenient)),
        }
    }
}
