//! The interface through which the server obtains metrics and reports from the rest of the process.

use std::pin::Pin;
use std::sync::Arc;

use crate::nonce::Nonce;
use crate::role::ClusterStatus;
use crate::stats::Stats;
use crate::status::Status;

/// The pending report: resolves to the JSON document that `/attestation` responds with.
pub type ReportFuture = Pin<Box<dyn Future<Output = Result<String, Unavailable>> + Send>>;

/// The data behind the endpoints.
///
/// All methods are called on the `admin` thread. A method that blocks delays `/health`: do slow
/// work in the future, and blocking work on a separate thread.
pub trait Source: Send + Sync + 'static {
    /// The mode of the process, for example `production` or `simulator`; shown by `/ready`.
    fn mode(&self) -> &'static str;

    /// Renders all metrics in the Prometheus text format. `own` are the counters of this server.
    fn metrics(&self, own: &Stats) -> String;

    /// The state of the cluster that the process is a member of; `None` if it is of none.
    fn cluster(&self) -> Option<ClusterStatus> {
        None
    }

    /// What the status page shows besides readiness and the cluster; `None` if there is no such page. `own` are the
    /// counters of this server.
    ///
    /// It must tell nothing that the other methods do not tell.
    fn status(&self, _own: &Stats) -> Option<Status> {
        None
    }

    /// Makes one quote that covers each of `nonces`, or none if it is empty.
    ///
    /// Called for one quote at a time, and no sooner than [`attestation_interval`](crate::Settings)
    /// after the last one ended. The future is dropped only when
    /// [`attestation_timeout`](crate::Settings) passes, not when the clients disconnect.
    fn attestation(self: Arc<Self>, nonces: Vec<Nonce>) -> ReportFuture;
}

/// No report can be made at the moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// The reason, which the response publishes.
    pub reason: String,
}

impl Unavailable {
    /// Creates the error with this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}
