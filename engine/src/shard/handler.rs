//! The trait of what a shard runs for each connection, and what every implementation has.

use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::attestation::gate::Gate;
use crate::io::stream::Stream;
use crate::io::target::Target;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::session::control::ConnectionControl;
use crate::shard::connection_limit::ConnectionPermit;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::audit::queue::ShardAudit;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::shard_metrics::ShardMetrics;

/// Serves the connections of one shard.
pub(crate) trait ConnectionHandler: 'static {
    /// What the shard itself uses.
    fn context(&self) -> &HandlerContext;

    /// Whether connections from this address are those of a proxy that names its clients.
    fn is_proxy(&self, _peer: IpAddr) -> bool {
        false
    }

    /// Serves one accepted connection to its end.
    fn serve(
        &self,
        stream: Stream,
        permit: &ConnectionPermit,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> impl Future<Output = CloseReason>;

    /// Connects to `target` and verifies it, without a session. Only a forwarder has targets.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn verify_target(
        &self,
        _target: &Arc<Target>,
        _control: &ConnectionControl,
        _info: &RefCell<ConnectionInfo>,
    ) -> impl Future<Output = Result<(), CloseReason>> {
        std::future::ready(Ok(()))
    }
}

/// What every handler has.
pub(crate) struct HandlerContext {
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) gate: Gate,
    pub(crate) shard_metrics: Rc<ShardMetrics>,
    pub(crate) access_log: Rc<AccessLog>,
    /// The audit log, if there is one.
    pub(crate) audit: Option<ShardAudit>,
}

impl HandlerContext {
    /// Whether a new session may begin, as far as the audit log is concerned.
    pub(crate) fn accepts_sessions(&self) -> bool {
        self.audit.as_ref().is_none_or(ShardAudit::accepts_sessions)
    }
}
