//! Abstract factory for connection handlers, and what a shard gives to it.

use std::rc::Rc;
use std::sync::Arc;

use crate::io::offload::PendingJobs;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::shard::handler::ConnectionHandler;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::shard_metrics::ShardMetrics;

/// Creates a shard's connection handler, on the thread of the shard.
pub(crate) trait HandlerFactory: Send + Sync + 'static {
    /// The handler.
    type Handler: ConnectionHandler;

    fn handler(self: &Arc<Self>, context: ShardContext) -> Self::Handler;
}

/// The parts of a shard that its handler uses.
pub(crate) struct ShardContext {
    /// The shard's number.
    pub(crate) shard: usize,
    pub(crate) jobs: PendingJobs,
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) shard_metrics: Rc<ShardMetrics>,
    pub(crate) access_log: Rc<AccessLog>,
}
