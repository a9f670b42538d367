//! The data that a forwarder's HTTP server shows: readiness and metrics.
//!
//! There is no attestation report, because a forwarder proves its identity to servers only, with
//! its client certificate.

use std::sync::Arc;

use admin::status::Status;
use admin::{Latch, Nonce, Readiness, ReportFuture, Stats, Unavailable};

use crate::app::status::StatusHistory;
use crate::telemetry::metrics::Metrics;

/// The readiness checks that `/ready` of a forwarder reports.
pub(super) struct ReadinessChecks {
    pub(super) readiness: Readiness,
    /// The client certificate does not expire soon, or none is needed.
    pub(super) identity: Latch,
    /// The process has started and is not draining.
    pub(super) accepting: Latch,
}

impl ReadinessChecks {
    pub(super) fn new() -> Self {
        let readiness = Readiness::new();
        Self {
            identity: readiness.latch("identity", "no client certificate yet"),
            accepting: readiness.latch("accepting", "starting"),
            readiness,
        }
    }
}

/// Implements [`admin::Source`] for a forwarder.
pub(super) struct AdminSource {
    pub(super) metrics: Arc<Metrics>,
    /// For the status page.
    pub(super) status: Arc<StatusHistory>,
}

impl admin::Source for AdminSource {
    fn mode(&self) -> &'static str {
        "forward"
    }

    fn metrics(&self, _: &Stats) -> String {
        self.metrics.render()
    }

    fn status(&self, own: &Stats) -> Option<Status> {
        Some(self.status.status(&self.metrics(own)))
    }

    fn attestation(self: Arc<Self>, _: Vec<Nonce>) -> ReportFuture {
        Box::pin(async {
            Err(Unavailable::new(
                "a forwarder has no attestation report: request it from the sidecar",
            ))
        })
    }
}
