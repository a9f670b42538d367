//! The arms of a comparison, and what describes one that runs.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::process::Process;
use crate::endpoint::{Endpoint, Login, Opening};
use crate::process_usage::Pid;

/// The arms of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// No proxy, no TLS: the floor.
    Direct,
    /// A relay on monoio like ours, without TLS and login: what TLS costs us.
    PlainRelay,
    /// tokio and tokio-rustls, as everybody would write it.
    TokioBaseline,
    /// Debian's PgBouncer, session pooling.
    PgBouncer,
    /// Debian's stunnel.
    Stunnel,
    /// Debian's HAProxy, direct TLS.
    HaProxy,
    /// Ours on io_uring.
    Sidecar,
    /// Ours on epoll.
    SidecarEpoll,
    /// Ours on io_uring, with Postgres on its Unix socket.
    SidecarUnix,
    /// Ours on io_uring, asleep whenever it waits.
    SidecarNoPoll,
}

impl PeerKind {
    /// All of them, in the order of tables and pictures.
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::PlainRelay,
        Self::TokioBaseline,
        Self::PgBouncer,
        Self::Stunnel,
        Self::HaProxy,
        Self::Sidecar,
        Self::SidecarEpoll,
        Self::SidecarUnix,
        Self::SidecarNoPoll,
    ];

    /// For tables, pictures and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PlainRelay => "plain-relay",
            Self::TokioBaseline => "tokio-baseline",
            Self::PgBouncer => "pgbouncer",
            Self::Stunnel => "stunnel",
            Self::HaProxy => "haproxy",
            Self::Sidecar => "sidecar",
            Self::SidecarEpoll => "sidecar-epoll",
            Self::SidecarUnix => "sidecar-unix",
            Self::SidecarNoPoll => "sidecar-no-poll",
        }
    }

    /// How clients open connections to it.
    #[must_use]
    pub fn opening(self) -> Opening {
        match self {
            Self::Direct | Self::PlainRelay => Opening::Plain,
            // It knows nothing of SSLRequest.
            Self::HaProxy => Opening::Direct,
            _ => Opening::SslRequest,
        }
    }
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PeerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = current_name(text);
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("no such arm: {text}"))
    }
}

/// The present name of an arm. Reports recorded earlier call the tokio baseline "twin".
#[must_use]
pub fn current_name(name: &str) -> &str {
    match name {
        "twin" => PeerKind::TokioBaseline.name(),
        name => name,
    }
}

/// What a proxy stands before.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// On loopback.
    pub address: SocketAddr,
    /// Its Unix socket, for those who can.
    pub socket: Option<PathBuf>,
}

/// A running arm. Its Drop ends its process.
pub struct Peer {
    /// Which.
    pub kind: PeerKind,
    /// Where it listens, and how.
    pub endpoint: Endpoint,
    /// How to go no further than the handshake, TLS at once: with a proxy that would
    /// dial before the client has asked for anything, another place.
    pub handshake: Option<Endpoint>,
    /// Who logs in, to read.
    pub login: Login,
    /// Its version, for the report.
    pub version: String,
    pub(super) process: Option<Process>,
}

impl Peer {
    /// Its process, unless it is direct.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Process::pid)
    }
}
