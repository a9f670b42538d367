//! The arms of a comparison: proxies and the Postgres servers they forward to. Each runs in its own
//! process, which ends with this one.

pub mod baseline;
pub mod fake_postgres;
mod kind;
pub mod postgres;
pub mod process;
mod proxies;
pub mod relay;
mod sidecar;
pub mod workspace;

pub use kind::{Peer, PeerKind, Upstream, current_name};
pub use sidecar::SidecarMode;

use crate::endpoint::{Endpoint, Opening};
use crate::error::Result;
use workspace::Workspace;

/// The arms that a [`fake_postgres`] says nothing about: it has no Unix socket, and the loads that use it have no
/// session for which a shard polls.
pub const NOT_WITH_FAKE_POSTGRES: [PeerKind; 2] = [PeerKind::SidecarUnix, PeerKind::SidecarNoPoll];

/// Starts an arm in front of `upstream`, pinned to the core for proxies.
///
/// # Errors
/// The program is missing, or does not start. The error has the end of its log.
pub fn start(kind: PeerKind, workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    match kind {
        PeerKind::Direct => direct(workspace, upstream),
        PeerKind::PlainRelay => proxies::relay(workspace, upstream),
        PeerKind::MonoioBaseline | PeerKind::TokioBaseline => {
            proxies::baseline(kind, workspace, upstream)
        }
        PeerKind::PgBouncer => proxies::pgbouncer(workspace, upstream),
        PeerKind::Stunnel => proxies::stunnel(workspace, upstream),
        PeerKind::HaProxy => proxies::haproxy(workspace, upstream),
        PeerKind::Nginx => proxies::nginx(workspace, upstream),
        PeerKind::Sidecar => sidecar::start(workspace, upstream, SidecarMode::default()),
        PeerKind::SidecarEpoll => sidecar::start(workspace, upstream, SidecarMode::epoll()),
        PeerKind::SidecarUnix => sidecar::start(workspace, upstream, SidecarMode::unix()),
        PeerKind::SidecarNoPoll => sidecar::start(workspace, upstream, SidecarMode::no_poll()),
        PeerKind::SidecarPoll => sidecar::start(workspace, upstream, SidecarMode::poll()),
    }
}

/// Starts the sidecar in a given mode.
///
/// # Errors
/// As [`start`].
pub fn start_sidecar(
    workspace: &Workspace,
    upstream: &Upstream,
    mode: SidecarMode,
) -> Result<Peer> {
    sidecar::start(workspace, upstream, mode)
}

fn direct(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    Ok(Peer {
        kind: PeerKind::Direct,
        endpoint: Endpoint::loopback(upstream.address, Opening::Plain, None)?,
        handshake: None,
        login: workspace.plain_login(),
        version: String::new(),
        process: None,
    })
}
