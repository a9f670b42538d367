//! What a shard gives to the connection handler that it runs.

use std::rc::Rc;
use std::sync::Arc;

use crate::io::offload::PendingJobs;
use crate::sched::handshake_queue::Lane;
use crate::shard::Service;
use crate::telemetry::log::Journal;
use crate::telemetry::metrics::Meters;

/// Makes a shard's service, on the shard's own thread, where it stays.
pub(crate) trait Plan: Send + Sync + 'static {
    /// What it makes.
    type Service: Service;

    fn service(self: &Arc<Self>, desk: Desk) -> Self::Service;
}

/// A shard's own things, for its service.
pub(crate) struct Desk {
    pub(crate) jobs: PendingJobs,
    pub(crate) lane: Lane,
    pub(crate) meters: Rc<Meters>,
    pub(crate) journal: Rc<Journal>,
}
