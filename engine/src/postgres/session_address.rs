//! The address of the own Postgres that clients' sessions are opened on: one atomic pointer, which the control thread
//! writes and the shards read.
//!
//! With `postgres = auto` it is a Unix socket if Postgres has one that lets the roles in
//! (docs/adr/0041-unix-socket-for-sessions.md), and else the configured TCP address. The control thread's own sessions
//! and probes always use the configured address. A shard must never wait for the choice, and must never choose a socket
//! itself: it only leaves one that has refused a login.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use metrics::Gauge;
use wire::backend::BackendError;

use crate::io::stream::PgAddress;
use crate::postgres::server::PostgresServer;

/// The directories in which Postgres creates its socket: those of Debian and Red Hat, and that of the sources.
const SOCKET_DIRECTORIES: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// The name of the socket of a Postgres on this port.
pub(crate) fn socket_file(port: u16) -> String {
    format!(".s.PGSQL.{port}")
}

/// The address of new sessions, and the configured one.
#[derive(Debug)]
pub(crate) struct SessionAddress {
    configured: Arc<PostgresServer>,
    current: ArcSwap<PostgresServer>,
    on_socket: Gauge,
}

impl SessionAddress {
    /// `on_socket` is 1 while new sessions are opened on a Unix socket, and else 0.
    pub(crate) fn new(configured: PostgresServer, on_socket: Gauge) -> Arc<Self> {
        let configured = Arc::new(configured);
        let address = Self {
            current: ArcSwap::new(Arc::clone(&configured)),
            configured: Arc::clone(&configured),
            on_socket,
        };
        address.set_current(configured);
        Arc::new(address)
    }

    /// The configured server.
    pub(crate) fn configured(&self) -> &Arc<PostgresServer> {
        &self.configured
    }

    /// The server that a new session is opened on.
    pub(crate) fn current(&self) -> Arc<PostgresServer> {
        self.current.load_full()
    }

    /// Whether `server` is the own one, at either address. Those of other members of a cluster are at other addresses.
    pub(crate) fn is_own(&self, server: &PostgresServer) -> bool {
        server.address == self.configured.address || self.is_chosen_socket(server)
    }

    /// Whether `server` is the own one at a socket that was found.
    pub(crate) fn is_chosen_socket(&self, server: &PostgresServer) -> bool {
        self.configured.look_for_socket && matches!(server.address, PgAddress::Unix(_))
    }

    /// Opens new sessions on this socket.
    pub(crate) fn use_socket(&self, path: &Path) {
        self.set_current(Arc::new(self.at_socket(path)));
    }

    /// Opens new sessions on the configured address.
    pub(crate) fn use_configured(&self) {
        self.set_current(Arc::clone(&self.configured));
    }

    fn set_current(&self, server: Arc<PostgresServer>) {
        let is_socket = matches!(server.address, PgAddress::Unix(_));
        self.current.store(server);
        self.on_socket.set(f64::from(u8::from(is_socket)));
    }

    /// The own Postgres at this socket. Its listener has to prove itself as at a configured one.
    pub(crate) fn at_socket(&self, path: &Path) -> PostgresServer {
        PostgresServer {
            address: PgAddress::Unix(path.to_owned()),
            ..PostgresServer::clone(&self.configured)
        }
    }
}

/// The standard paths of the socket of a Postgres on this port, in the order in which they are tried. Of those that are
/// the same directory by a symbolic link, the first. Those whose directory does not exist are left out.
pub(crate) fn standard_sockets(port: u16) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in SOCKET_DIRECTORIES {
        let Ok(directory) = Path::new(directory).canonicalize() else {
            continue;
        };
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    let paths = directories
        .into_iter()
        .map(|path| path.join(socket_file(port)));
    paths.collect()
}

/// Whether a Unix socket refuses the role itself, and not this login: other logins would fail as well.
pub(crate) fn refuses_role(error: &BackendError) -> bool {
    match error {
        BackendError::Refused { sqlstate, .. } => sqlstate.as_str() == "28000",
        BackendError::NotScram { .. }
        | BackendError::UnsupportedAuthMethod { .. }
        | BackendError::PasswordMissing => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use wire::error::SqlState;

    use super::*;

    #[test]
    fn sessions_move_to_the_socket_and_back() {
        let mut server = PostgresServer::new(PgAddress::Tcp(([127, 0, 0, 1], 5432).into()));
        server.look_for_socket = true;
        let address = SessionAddress::new(server.clone(), Gauge::noop());
        assert_eq!(*address.current(), server);
        address.use_socket(Path::new("/tmp/s"));
        let socket = address.current();
        assert_eq!(socket.address, PgAddress::Unix("/tmp/s".into()));
        assert_eq!(socket.auth, server.auth);
        assert_eq!(socket.uids, server.uids);
        assert!(address.is_own(&socket) && address.is_chosen_socket(&socket));
        assert!(address.is_own(&server) && !address.is_chosen_socket(&server));
        let other = PostgresServer::new(PgAddress::Tcp(([127, 0, 0, 1], 5442).into()));
        assert!(!address.is_own(&other));
        address.use_configured();
        assert_eq!(*address.current(), server);
        // A session that was opened before is still one of the own Postgres.
        assert!(address.is_own(&socket));
    }

    #[test]
    fn a_configured_socket_is_not_a_chosen_one() {
        let server = PostgresServer::new(PgAddress::Unix("/tmp/s".into()));
        let address = SessionAddress::new(server.clone(), Gauge::noop());
        assert!(address.is_own(&server) && !address.is_chosen_socket(&server));
    }

    #[test]
    fn a_wrong_password_is_no_refusal_of_the_role() {
        let refused = |sqlstate: &str| BackendError::Refused {
            sqlstate: SqlState::new(sqlstate.as_bytes()).unwrap(),
            message: String::new(),
        };
        assert!(refuses_role(&refused("28000")));
        assert!(refuses_role(&BackendError::NotScram { method: "md5" }));
        for error in [refused("28P01"), refused("53300"), BackendError::EarlyEof] {
            assert!(!refuses_role(&error), "{error}");
        }
    }
}
