//! What is known about one connection, collected while it is served: for the access log, and for the
//! decision whether the client is on this machine.
//!
//! It must never contain a startup parameter other than a known role, or a secret.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use crate::auth::role::Role;
use crate::io::peer::Peer;
use crate::telemetry::audit::connection::ConnectionAudit;
use crate::telemetry::link_info::LinkInfo;
use crate::telemetry::link_metrics::{LinkBytes, LinkMetrics};
use crate::telemetry::shard_metrics::ShardMetrics;

/// The information collected so far.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    /// The same in the audit log and for operators; never used twice by a process.
    pub(crate) number: u64,
    pub(crate) accepted: Instant,
    pub(crate) peer: Peer,
    /// The client's address according to a PROXY header.
    pub(crate) proxied_client: Option<SocketAddr>,
    /// Whether there was a PROXY header, with or without an address.
    pub(crate) via_proxy: bool,
    /// Whether the client's evidence was accepted.
    pub(crate) attested: bool,
    pub(crate) role: Option<Role>,
    pub(crate) tls: Option<rustls::ProtocolVersion>,
    /// Whether the connection became a session: the login succeeded, or in a forwarder, the
    /// server was verified.
    pub(crate) is_session: bool,
    /// Whether the connection's line has been written already.
    pub(crate) logged: bool,
    /// What the audit log needs, if there is one.
    pub(crate) audit: Option<Box<ConnectionAudit>>,
    /// What is known about the link, if it is one.
    pub(crate) link: Option<Box<LinkInfo>>,
}

impl ConnectionInfo {
    pub(crate) fn new(number: u64, peer: Peer) -> Self {
        Self {
            number,
            accepted: Instant::now(),
            peer,
            proxied_client: None,
            via_proxy: false,
            attested: false,
            role: None,
            tls: None,
            is_session: false,
            logged: false,
            audit: None,
            link: None,
        }
    }

    /// Records that the connection is a link that another member opens, and no client's.
    pub(crate) fn is_accepted_link(&mut self, shard_metrics: &ShardMetrics) {
        self.link = Some(Box::new(LinkInfo::accepted()));
        shard_metrics.is_no_client();
    }

    /// Records that the link is open. Returns the counters of its bytes.
    pub(crate) fn link_opened(&mut self, metrics: &LinkMetrics) -> Option<Rc<LinkBytes>> {
        self.is_session = true;
        metrics.opened(self.link.as_ref()?)
    }

    /// Records that the TLS handshake has completed.
    pub(crate) fn handshake_done(
        &mut self,
        version: Option<rustls::ProtocolVersion>,
        shard_metrics: &ShardMetrics,
    ) {
        self.tls = version;
        shard_metrics.handshake_done(self.accepted.elapsed());
    }

    /// Records that the connection became a session.
    pub(crate) fn session_started(&mut self, shard_metrics: &ShardMetrics) {
        self.is_session = true;
        shard_metrics.session_started(self.role, self.accepted.elapsed());
    }

    /// Whether the client is on this machine. A client that comes through a proxy never is.
    pub(crate) fn is_local(&self) -> bool {
        !self.via_proxy && self.peer.is_local()
    }
}
