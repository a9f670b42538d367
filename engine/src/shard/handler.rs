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
use crate::shard::message::LinkRoute;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::audit::queue::ShardAudit;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::link_metrics::LinkMetrics;
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

    /// Serves a local connection for which a link is opened. Only a handler of a member gets one.
    fn open_link(
        &self,
        _local: Stream,
        _route: LinkRoute,
        _permit: &ConnectionPermit,
        _control: &ConnectionControl,
        _info: &RefCell<ConnectionInfo>,
    ) -> impl Future<Output = CloseReason> {
        std::future::ready(CloseReason::LinkNotSupported)
    }

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
    /// For links between members, if there is a cluster.
    pub(crate) links: Option<LinkContext>,
}

/// What the shard itself uses for links.
pub(crate) struct LinkContext {
    /// Verifies members.
    pub(crate) gate: Option<Gate>,
    pub(crate) metrics: LinkMetrics,
}

impl HandlerContext {
    /// What verifies the peer of a connection.
    pub(crate) fn gate_of(&self, control: &ConnectionControl) -> &Gate {
        match self.member_gate() {
            Some(members) if control.is_link() => members,
            Some(_) | None => &self.gate,
        }
    }

    /// What verifies members.
    pub(crate) fn member_gate(&self) -> Option<&Gate> {
        self.links.as_ref()?.gate.as_ref()
    }

    /// Whether a new session may begin, as far as the audit log is concerned.
    pub(crate) fn accepts_sessions(&self) -> bool {
        self.audit.as_ref().is_none_or(ShardAudit::accepts_sessions)
    }
}
