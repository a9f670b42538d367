//! What a shard gives to the connection handler that it runs.

use std::rc::Rc;
use std::sync::Arc;

use crate::io::offload::PendingJobs;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::shard::handler::ConnectionHandler;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::shard_metrics::ShardMetrics;

/// Makes a shard's service, on the shard's own thread, where it stays.
pub(crate) trait HandlerFactory: Send + Sync + 'static {
    /// What it makes.
    type Handler: ConnectionHandler;

    fn handler(self: &Arc<Self>, context: ShardContext) -> Self::Handler;
}

/// A shard's own things, for its service.
pub(crate) struct ShardContext {
    pub(crate) jobs: PendingJobs,
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) shard_metrics: Rc<ShardMetrics>,
    pub(crate) access_log: Rc<AccessLog>,
}
