//! What the surface asks the rest of the product.

use std::pin::Pin;
use std::sync::Arc;

use crate::nonce::Nonce;
use crate::stats::Stats;

/// A report in the making: the JSON document that `/attestation` answers with.
pub type ReportFuture = Pin<Box<dyn Future<Output = Result<String, Unavailable>> + Send>>;

/// Where the answers come from.
///
/// All of it is called on the `admin` thread, and whatever blocks there keeps `/health` from being
/// answered: what is slow belongs into the future, and what blocks onto a thread of its own.
pub trait Source: Send + Sync + 'static {
    /// How the sidecar runs, for example `production` or `simulator`; shown by `/ready`.
    fn mode(&self) -> &'static str;

    /// All metrics in Prometheus' text format. `own` is what this surface has counted itself.
    fn metrics(&self, own: &Stats) -> String;

    /// Has one quote made, for `nonce` if there is one.
    ///
    /// One at a time, and no sooner than [`attestation_interval`](crate::Settings) after the last has
    /// ended. The future is dropped when [`attestation_timeout`](crate::Settings) passes, and only
    /// then: not when those who asked have left.
    fn attestation(self: Arc<Self>, nonce: Option<Nonce>) -> ReportFuture;
}

/// There is no report now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why, for whoever asked: anybody may read it.
    pub reason: String,
}

impl Unavailable {
    /// For this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}
