//! What a forwarder's HTTP admin_source is told: its health and its metrics. It has
//! no report of its own: what it proves, it proves to servers.

use std::sync::Arc;

use admin::{Latch, Nonce, Readiness, ReportFuture, Stats, Unavailable};

use crate::telemetry::metrics::Metrics;

/// The conditions of `/ready`.
pub(super) struct Health {
    pub(super) readiness: Readiness,
    /// A client certificate that does not end soon, or none that is needed.
    pub(super) identity: Latch,
    /// Started, and not draining.
    pub(super) accepting: Latch,
}

impl Health {
    pub(super) fn new() -> Self {
        let readiness = Readiness::new();
        Self {
            identity: readiness.latch("identity", "no client certificate yet"),
            accepting: readiness.latch("accepting", "starting"),
            readiness,
        }
    }
}

/// The source of the admin_source.
pub(super) struct AdminSource {
    pub(super) metrics: Arc<Metrics>,
}

impl admin::Source for AdminSource {
    fn mode(&self) -> &'static str {
        "forward"
    }

    fn metrics(&self, _: &Stats) -> String {
        self.metrics.render()
    }

    fn attestation(self: Arc<Self>, _: Option<Nonce>) -> ReportFuture {
        Box::pin(async { Err(Unavailable::new("a forwarder has no report of its own")) })
    }
}
