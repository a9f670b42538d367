//! The kinds of arms, and the description of a running one.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::process::Process;
use crate::endpoint::{Endpoint, Login, Opening};
use crate::process_usage::Pid;

/// The kind of an arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// No proxy and no TLS: the lower bound.
    Direct,
    /// A relay on monoio like the sidecar's, without TLS and login. Shows what TLS costs the
    /// sidecar.
    PlainRelay,
    /// The monoio baseline: TLS termination with monoio and monoio-rustls.
    MonoioBaseline,
    /// The tokio baseline: TLS termination with tokio and tokio-rustls.
    TokioBaseline,
    /// Debian's PgBouncer, session pooling.
    PgBouncer,
    /// Debian's stunnel.
    Stunnel,
    /// Debian's HAProxy, direct TLS.
    HaProxy,
    /// Debian's nginx with its stream module, direct TLS.
    Nginx,
    /// The sidecar on io_uring.
    Sidecar,
    /// The sidecar on epoll.
    SidecarEpoll,
    /// The sidecar on io_uring, with Postgres on its Unix socket.
    SidecarUnix,
    /// The sidecar on io_uring, without busy polling.
    SidecarNoPoll,
    /// The sidecar on io_uring, which always polls before it sleeps: for a dedicated core.
    SidecarPoll,
}

impl PeerKind {
    /// All kinds, in the order of tables and charts.
    pub const ALL: [Self; 13] = [
        Self::Direct,
        Self::PlainRelay,
        Self::MonoioBaseline,
        Self::TokioBaseline,
        Self::PgBouncer,
        Self::Stunnel,
        Self::HaProxy,
        Self::Nginx,
        Self::Sidecar,
        Self::SidecarEpoll,
        Self::SidecarUnix,
        Self::SidecarNoPoll,
        Self::SidecarPoll,
    ];

    /// Name in tables, charts and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PlainRelay => "plain-relay",
            Self::MonoioBaseline => "monoio-baseline",
            Self::TokioBaseline => "tokio-baseline",
            Self::PgBouncer => "pgbouncer",
            Self::Stunnel => "stunnel",
            Self::HaProxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Sidecar => "sidecar",
            Self::SidecarEpoll => "sidecar-epoll",
            Self::SidecarUnix => "sidecar-unix",
            Self::SidecarNoPoll => "sidecar-no-poll",
            Self::SidecarPoll => "sidecar-poll",
        }
    }

    /// How clients open connections to this arm.
    #[must_use]
    pub fn opening(self) -> Opening {
        match self {
            Self::Direct | Self::PlainRelay => Opening::Plain,
            // Neither supports SSLRequest.
            Self::HaProxy | Self::Nginx => Opening::Direct,
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

/// The current name of an arm, given its name in any version of the report.
#[must_use]
pub fn current_name(name: &str) -> &str {
    match name {
        "twin" => PeerKind::TokioBaseline.name(),
        name => name,
    }
}

/// The Postgres that an arm forwards to.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// TCP address, on loopback.
    pub address: SocketAddr,
    /// Unix socket, for arms that can use it.
    pub socket: Option<PathBuf>,
}

/// A running arm. Dropping it stops its process.
pub struct Peer {
    /// The kind of arm.
    pub kind: PeerKind,
    /// Where and how clients connect.
    pub endpoint: Endpoint,
    /// Endpoint for handshakes without a login, with direct TLS. Differs from `endpoint` for a
    /// proxy that dials Postgres before the client has sent anything.
    pub handshake: Option<Endpoint>,
    /// Login for reading.
    pub login: Login,
    /// Version of the program, for the report.
    pub version: String,
    pub(super) process: Option<Process>,
}

impl Peer {
    /// Process ID; `None` for [`PeerKind::Direct`].
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Process::pid)
    }
}
