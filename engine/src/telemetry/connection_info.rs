//! What the log line at a connection's end wants to know.

use std::net::SocketAddr;
use std::time::Instant;

use crate::auth::role::Role;
use crate::io::peer::Peer;

/// Gathered on the way.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) accepted: Instant,
    pub(crate) peer: Peer,
    /// The client behind a PROXY header.
    pub(crate) proxied: Option<SocketAddr>,
    /// There was such a header, even if it named nobody.
    pub(crate) relayed: bool,
    pub(crate) role: Option<Role>,
    pub(crate) tls: Option<rustls::ProtocolVersion>,
    /// The login succeeded; in a forwarder, the server has been let in.
    pub(crate) entered: bool,
    /// The connection's line is in the log already.
    pub(crate) written: bool,
}

impl ConnectionInfo {
    pub(crate) fn new(peer: Peer) -> Self {
        Self {
            accepted: Instant::now(),
            peer,
            proxied: None,
            relayed: false,
            role: None,
            tls: None,
            entered: false,
            written: false,
        }
    }

    /// Whether the client is on this machine, and not behind a proxy that is.
    pub(crate) fn is_local(&self) -> bool {
        !self.relayed && self.peer.is_local()
    }
}
