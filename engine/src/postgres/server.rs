//! The Postgres server of this sidecar: its address, and how it must prove that it is Postgres.
//!
//! Another process may listen on its address while Postgres restarts. It must learn neither a
//! password nor a client's queries. SCRAM proves that the server knows the role's password; on a
//! Unix socket the kernel says which user listens.

use std::fmt;
use std::str::FromStr;

use wire::backend::{AuthMethods, BackendError};

use crate::io::peer_uid::AllowedUids;
use crate::io::stream::PgAddress;

/// The user of a Postgres server on most systems.
const POSTGRES_USER: &str = "postgres";

/// How Postgres may authenticate us: the setting `postgres_auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostgresAuth {
    /// By SCRAM-SHA-256. On a Unix socket whose listener is an allowed user, also not at all
    /// (`peer`, `trust`).
    #[default]
    Scram,
    /// By any method, including a password in cleartext.
    Any,
}

impl PostgresAuth {
    /// The value of the setting.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scram => "scram",
            Self::Any => "any",
        }
    }
}

impl FromStr for PostgresAuth {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "scram" => Ok(Self::Scram),
            "any" => Ok(Self::Any),
            _ => Err("expected scram or any"),
        }
    }
}

/// Where Postgres listens, and how it must prove that it is Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresServer {
    /// The address.
    pub address: PgAddress,
    /// The allowed authentication methods.
    pub auth: PostgresAuth,
    /// The users that a listener on a Unix socket may belong to.
    pub uids: AllowedUids,
    /// Whether clients' sessions use its Unix socket if there is one that lets the roles in: `postgres = auto`. The
    /// address is then that of TCP.
    pub look_for_socket: bool,
}

impl PostgresServer {
    /// A server at `address` with the default settings.
    #[must_use]
    pub fn new(address: PgAddress) -> Self {
        Self {
            address,
            auth: PostgresAuth::default(),
            uids: default_uids(),
            look_for_socket: false,
        }
    }

    /// The methods by which it may authenticate us.
    pub(crate) fn methods(&self) -> AuthMethods {
        match (self.auth, &self.address) {
            (PostgresAuth::Any, _) => AuthMethods::Any,
            (PostgresAuth::Scram, PgAddress::Tcp(_)) => AuthMethods::Scram,
            // Its user has been checked.
            (PostgresAuth::Scram, PgAddress::Unix(_)) => AuthMethods::ScramOrNone,
        }
    }

    /// Checks the user of the listener on a Unix socket.
    ///
    /// # Errors
    /// [`BackendError::WrongListener`].
    pub(crate) fn check_listener(&self, uid: Option<u32>) -> Result<(), BackendError> {
        match uid {
            _ if self.uids.allows(uid) => Ok(()),
            uid => Err(BackendError::WrongListener { uid }),
        }
    }
}

/// The users that are allowed unless the setting `postgres_uid` names one.
#[must_use]
pub fn default_uids() -> AllowedUids {
    AllowedUids::own_or(POSTGRES_USER)
}

/// Shows the address, with `auto` before it if sessions may use a socket.
impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.look_for_socket {
            true => write!(f, "auto ({})", self.address),
            false => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_unix_socket_may_do_without_scram() {
        let mut server = PostgresServer::new(PgAddress::Tcp(([127, 0, 0, 1], 5432).into()));
        assert_eq!(server.methods(), AuthMethods::Scram);
        server.address = PgAddress::Unix("/run/postgresql/.s.PGSQL.5432".into());
        assert_eq!(server.methods(), AuthMethods::ScramOrNone);
        server.auth = PostgresAuth::Any;
        assert_eq!(server.methods(), AuthMethods::Any);
    }

    #[test]
    fn a_listener_of_another_user_is_refused() {
        let mut server = PostgresServer::new(PgAddress::Unix("/tmp/s".into()));
        assert_eq!(server.check_listener(Some(0)), Ok(()));
        server.uids = AllowedUids::only(26);
        assert_eq!(server.check_listener(Some(26)), Ok(()));
        for uid in [Some(0), Some(27), None] {
            let refused = Err(BackendError::WrongListener { uid });
            assert_eq!(server.check_listener(uid), refused);
        }
    }
}
