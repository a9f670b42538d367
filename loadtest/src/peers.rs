//! The proxies that are measured, and the servers behind them, each a process
//! of its own that ends with this one.

pub mod fake_postgres;
mod kind;
pub mod postgres;
pub mod process;
mod proxies;
pub mod relay;
mod sidecar;
pub mod workspace;

pub use kind::{Kind, Peer, Upstream};
pub use sidecar::Mode;

use crate::endpoint::{Opening, Target};
use crate::error::Result;
use workspace::House;

/// Starts an arm before `upstream`, pinned to the proxies' core.
///
/// # Errors
/// Its program is missing or does not start: its own words.
pub fn start(kind: Kind, house: &House, upstream: &Upstream) -> Result<Peer> {
    match kind {
        Kind::Direct => direct(house, upstream),
        Kind::Relay => proxies::relay(house, upstream),
        Kind::Twin => proxies::twin(house, upstream),
        Kind::PgBouncer => proxies::pgbouncer(house, upstream),
        Kind::Stunnel => proxies::stunnel(house, upstream),
        Kind::HaProxy => proxies::haproxy(house, upstream),
        Kind::Sidecar => sidecar::start(house, upstream, Mode::default()),
        Kind::SidecarEpoll => sidecar::start(house, upstream, Mode::epoll()),
        Kind::SidecarUnix => sidecar::start(house, upstream, Mode::unix()),
        Kind::SidecarNoPoll => sidecar::start(house, upstream, Mode::no_poll()),
    }
}

/// Starts ours in another mode.
///
/// # Errors
/// As [`start`].
pub fn start_sidecar(house: &House, upstream: &Upstream, mode: Mode) -> Result<Peer> {
    sidecar::start(house, upstream, mode)
}

fn direct(house: &House, upstream: &Upstream) -> Result<Peer> {
    Ok(Peer {
        kind: Kind::Direct,
        target: Target::loopback(upstream.address, Opening::Plain, None)?,
        handshake: None,
        login: house.plain_login(),
        version: String::new(),
        process: None,
    })
}
