//! Who says whether a server may see a byte.

use std::sync::Arc;

use crate::gate::{Gate, Guard};
use crate::house::Desk;
use crate::offload::Worker;
use crate::trust::Trust;

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
