//! The limit on open descriptors (RLIMIT_NOFILE): raised at start, and limits on connections that fit into
//! it, so that an accept never fails for want of a descriptor.
//!
//! Clients must never be able to take the descriptors that the HTTP server, the guest agent, Postgres' probe
//! and the reload need.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::app::error::{StartError, system};
use crate::config::{ClusterConfig, ProcessConfig, SetLimits, UnattestedLimits};
use crate::io::listener::MAX_SOCKETS_OF_A_SHARD;

/// Descriptors for everything but clients: 64 connections of the HTTP server, 5 of the control socket, standard streams,
/// runtimes and log (about 30), connections to Postgres, the guest agent, PCCS and name server, files that are read, and
/// second descriptors of connections that move to another shard or whose dial is in progress.
const RESERVED: u64 = 192;
/// Descriptors of a shard: its listeners; mailbox, driver and timer, of which 8 were counted.
const PER_SHARD: u64 = MAX_SOCKETS_OF_A_SHARD as u64 + 16;
/// Descriptors of a session: the client's socket and Postgres'.
const PER_SESSION: u64 = 2;
/// Descriptors of a client that is not attested yet or logs in: its socket, and two to Postgres for a CancelRequest to one
/// that offers TLS.
const PER_CLIENT: u64 = 3;
/// Descriptors of a link: the other member's socket and the service's.
const PER_LINK: u64 = 2;
/// With fewer sessions there is no point in starting.
const MIN_SESSIONS: u64 = 8;

/// The soft limit that this process was started with.
static ORIGINAL: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit to the hard one, as every server does: the soft limit is low by default for programs that
/// use `select(2)`.
pub(crate) fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = ORIGINAL.set((soft, hard));
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Gives a child process the limits that this process was started with.
pub(crate) fn restore_limit_of(child: u32) {
    let pid = i32::try_from(child)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let (Some((soft, hard)), Some(pid)) = (ORIGINAL.get(), pid) {
        let limit = rustix::process::Rlimit {
            current: Some(*soft),
            maximum: Some(*hard),
        };
        let _ = rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit);
    }
}

/// Logs which limits are in force. A macro, since tracing takes the level of an event as a constant.
macro_rules! log_lowered {
    ($level:ident, $limit:expr, $needed:expr, $places:expr) => {
        tracing::$level!(
            limit = $limit,
            needed = $needed,
            max_connections = $places.sessions,
            max_unattested_connections = $places.unattested,
            "RLIMIT_NOFILE is too low for max_connections, the limits on connections are lowered"
        )
    };
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    sessions: u64,
    /// Clients that are not attested yet, and as many that log in.
    unattested: u64,
}

impl Places {
    fn descriptors(self, shards: u64) -> u64 {
        let of_clients = PER_SESSION * self.sessions + self.of_unattested();
        RESERVED + PER_SHARD * shards + of_clients
    }

    /// Of the clients without a session: those that are not attested, and those that log in.
    fn of_unattested(self) -> u64 {
        2 * PER_CLIENT * self.unattested
    }

    /// Whether a limit that is set is lower than it was `wanted`.
    fn breaks(self, wanted: Self, set: SetLimits) -> bool {
        (set.sessions && self.sessions < wanted.sessions)
            || (set.unattested && self.unattested < wanted.unattested)
    }

    /// What fits into `available` descriptors; `None` if nothing useful does.
    fn fit(self, available: u64, shards: u64) -> Option<Self> {
        if self.descriptors(shards) <= available {
            return Some(self);
        }
        let room = available.checked_sub(RESERVED + PER_SHARD * shards)?;
        // Clients without a session get a quarter of the room, or what the sessions leave if that is more.
        let left = room.saturating_sub(PER_SESSION * self.sessions);
        let mut fit = Self {
            unattested: self.unattested.min(left.max(room / 4) / (2 * PER_CLIENT)),
            ..self
        };
        let sessions = (room - fit.of_unattested()) / PER_SESSION;
        fit.sessions = sessions.min(self.sessions);
        let suffices = fit.sessions >= MIN_SESSIONS.min(self.sessions);
        (suffices && fit.unattested > 0).then_some(fit)
    }
}

/// Descriptors of links, which clients never get: the ports that lead to services, and the links in both directions.
fn of_links(cluster: &ClusterConfig) -> u64 {
    let ports = cluster.members.len() * cluster.services.len();
    ports as u64 + 2 * PER_LINK * cluster.max_links as u64
}

/// Lowers the limits on connections to what RLIMIT_NOFILE allows. Warns of a limit that the operator has set.
///
/// # Errors
/// It does not allow even a few sessions.
pub(crate) fn fit_limits(
    process: &mut ProcessConfig,
    unattested: &mut UnattestedLimits,
    cluster: Option<&ClusterConfig>,
) -> Result<(), StartError> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(io::Error::from)
        .map_err(system("cannot read RLIMIT_NOFILE"))?;
    let of_links = cluster.map_or(0, of_links);
    let available = limit.saturating_sub(of_links);
    let wanted = Places {
        sessions: process.max_connections as u64,
        unattested: unattested.total as u64,
    };
    let shards = process.shards as u64;
    let needed = wanted.descriptors(shards) + of_links;
    let Some(places) = wanted.fit(available, shards) else {
        let least = RESERVED + PER_SHARD * shards + 8 * MIN_SESSIONS + of_links;
        let text = format!("RLIMIT_NOFILE is {limit}, and at least {least} descriptors are needed");
        return Err(system(text)(io::Error::from_raw_os_error(
            nix::libc::EMFILE,
        )));
    };
    if places != wanted {
        if places.breaks(wanted, process.set_limits) {
            log_lowered!(warn, limit, needed, places);
        } else {
            log_lowered!(info, limit, needed, places);
        }
        process.max_connections = usize::try_from(places.sessions).unwrap_or(usize::MAX);
        unattested.lower_total(usize::try_from(places.unattested).unwrap_or(usize::MAX));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Places = Places {
        sessions: 10_000,
        unattested: 2_000,
    };

    #[test]
    fn limits_that_fit_are_kept() {
        assert_eq!(DEFAULT.descriptors(2), 32_240);
        assert_eq!(DEFAULT.fit(32_240, 2), Some(DEFAULT));
        assert_eq!(DEFAULT.fit(u64::MAX, 64), Some(DEFAULT));
    }

    #[test]
    fn limits_that_do_not_fit_are_lowered() {
        for available in [32_239, 4_096, 1_024, 300] {
            let fit = DEFAULT.fit(available, 2).unwrap();
            assert!(fit.descriptors(2) <= available, "{available}: {fit:?}");
            assert!(
                fit.descriptors(2) + 2 * PER_CLIENT > available,
                "{available}: {fit:?}"
            );
            // Most descriptors are for sessions.
            assert!(fit.of_unattested() * 2 < available, "{available}: {fit:?}");
        }
        let fit = DEFAULT.fit(1_024, 2).unwrap();
        assert_eq!((fit.sessions, fit.unattested), (296, 32));
        // What few sessions leave is for the clients without one.
        let few = Places {
            sessions: 100,
            unattested: 2_000,
        };
        assert_eq!(few.fit(1_024, 2).unwrap().unattested, 97);
        // A small limit stays as it is.
        let small = Places {
            sessions: 3,
            unattested: 2_000,
        };
        assert_eq!(small.fit(1_024, 2).unwrap().sessions, 3);
    }

    #[test]
    fn too_few_descriptors_are_an_error() {
        assert_eq!(DEFAULT.fit(RESERVED, 1), None);
        assert_eq!(DEFAULT.fit(RESERVED + PER_SHARD + 8, 1), None);
    }

    #[test]
    fn only_a_limit_that_is_set_is_missed() {
        let wanted = Places {
            unattested: 500,
            ..DEFAULT
        };
        let fit = wanted.fit(20_000, 2).unwrap();
        assert!(fit.sessions < wanted.sessions && fit.unattested == wanted.unattested);
        let set = |sessions, unattested| SetLimits {
            sessions,
            unattested,
        };
        assert!(!fit.breaks(wanted, set(false, false)));
        assert!(!fit.breaks(wanted, set(false, true)));
        assert!(fit.breaks(wanted, set(true, false)));
        assert!(
            DEFAULT
                .fit(400, 2)
                .unwrap()
                .breaks(DEFAULT, set(false, true))
        );
    }
}
