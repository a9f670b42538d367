//! The remote end of an accepted connection.

use std::fmt;
use std::net::SocketAddr;

/// The kind of connection, and the address if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// A Unix socket.
    Local,
}

impl Peer {
    /// Whether the peer is on this machine.
    pub(crate) fn is_local(self) -> bool {
        match self {
            Peer::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Peer::Local => true,
        }
    }

    /// The TCP address; `None` for a Unix socket.
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(address),
            Peer::Local => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Local => f.write_str("local"),
        }
    }
}
