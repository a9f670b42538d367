//! Chooses, with `postgres = auto`, whether clients' sessions use Postgres' Unix socket: a health check before first use.
//!
//! A socket is used if every role that Postgres lets in over TCP gets in there too, and meets the same Postgres. The
//! choice is made once for each socket file, and so again after each restart of Postgres, which creates the file anew:
//! it cannot flap. `pg_hba.conf` often refuses roles on the socket, and a socket may belong to a Postgres of another
//! network namespace with the same port. This task must never delay the start, and never ends a session.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use wire::scram::Password;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::auth::role::Role;
use crate::io::backoff::Backoff;
use crate::io::stream::PgAddress;
use crate::postgres::server::PostgresServer;
use crate::postgres::session_address::{SessionAddress, standard_sockets};
use crate::postgres::superuser::{Error, Superuser};
use crate::tasks::coalesced_sleep;

/// How often the directories are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Delays between attempts while the roles cannot log in over TCP either. Postgres logs each refused login.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Differs between two runs of Postgres. Any role may call it.
const START_TIME: &str = "SELECT pg_catalog.pg_postmaster_start_time()::text";

/// Looks for sockets, tries them, and tells the shards.
pub(crate) struct SocketChoice {
    pub(crate) address: Arc<SessionAddress>,
    /// The database that the roles may enter.
    pub(crate) database: String,
    /// The passwords in use, which a reload may replace.
    pub(crate) passwords: Box<dyn Fn() -> ResolvedPasswords + Send + Sync>,
}

/// A socket in the file system. Another one at the same path differs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    created: Option<SystemTime>,
}

/// A role with its password.
type Login<'a> = (Role, &'a Password);

impl SocketChoice {
    /// Never returns.
    pub(crate) async fn run(self) {
        let mut decided_on = None;
        let mut retry = RETRY;
        loop {
            let found = self.found();
            if decided_on.as_ref() != Some(&found) {
                match self.choose(&found).await {
                    Ok(()) => decided_on = Some(found),
                    Err(error) => {
                        tracing::debug!(%error, "cannot try Postgres' Unix socket yet");
                        sleep(retry.next_delay()).await;
                        continue;
                    }
                }
                retry.reset();
            }
            coalesced_sleep::sleep(INTERVAL).await;
        }
    }

    /// The sockets that exist.
    fn found(&self) -> Vec<SocketFile> {
        let PgAddress::Tcp(address) = &self.address.configured().address else {
            return Vec::new();
        };
        let paths = standard_sockets(address.port());
        paths.into_iter().filter_map(SocketFile::at).collect()
    }

    /// Uses the first socket that passes.
    ///
    /// # Errors
    /// The roles cannot log in over TCP, so that a socket cannot be judged.
    async fn choose(&self, found: &[SocketFile]) -> Result<(), Error> {
        let mut reason = "no socket was found".to_owned();
        if !found.is_empty() {
            let passwords = (self.passwords)();
            let expected = self.log_in_by_tcp(&passwords).await?;
            for socket in found {
                match self.try_socket(&socket.path, &expected).await {
                    Ok(()) => {
                        self.address.use_socket(&socket.path);
                        let socket = socket.path.display();
                        tracing::info!(%socket, "new sessions use Postgres' Unix socket");
                        return Ok(());
                    }
                    Err(error) => reason = format!("{}: {error}", socket.path.display()),
                }
            }
        }
        self.address.use_configured();
        let postgres = &self.address.configured().address;
        tracing::info!(%postgres, reason, "new sessions use TCP to Postgres");
        Ok(())
    }

    /// Logs in as each role, and returns those that were let in with the start time of Postgres. Only the superuser may
    /// be missing.
    async fn log_in_by_tcp<'a>(
        &self,
        passwords: &'a ResolvedPasswords,
    ) -> Result<Vec<(Login<'a>, String)>, Error> {
        let server = self.address.configured();
        let mut expected = Vec::new();
        for (role, password) in [
            (Role::Read, &passwords.read),
            (Role::ReadWrite, &passwords.readwrite),
        ] {
            let login = (role, password);
            expected.push((login, self.start_time(server, login).await?));
        }
        if let Some(password) = &passwords.superuser {
            let login = (Role::Superuser, password);
            match self.start_time(server, login).await {
                Ok(time) => expected.push((login, time)),
                Err(error) if error.is_login() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(expected)
    }

    /// Logs in at this socket as the roles that TCP lets in.
    async fn try_socket(
        &self,
        path: &Path,
        expected: &[(Login<'_>, String)],
    ) -> Result<(), String> {
        let server = self.address.at_socket(path);
        for (login, time) in expected {
            let name = login.0.name();
            match self.start_time(&server, *login).await {
                Ok(other) if other == *time => {}
                Ok(_) => return Err("another Postgres than on TCP".to_owned()),
                Err(Error::Login(error)) => return Err(format!("{name}: {error}")),
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
        Ok(())
    }

    /// Logs in, and asks when Postgres was started.
    async fn start_time(
        &self,
        server: &PostgresServer,
        (role, password): Login<'_>,
    ) -> Result<String, Error> {
        let session = Superuser::connect_as(server, role, password, &self.database).await?;
        let time = session.client().query_one(START_TIME, &[]).await;
        session.close().await;
        Ok(time?.try_get(0)?)
    }
}

impl SocketFile {
    fn at(path: PathBuf) -> Option<Self> {
        let metadata = fs::metadata(&path).ok()?;
        metadata.file_type().is_socket().then(|| Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            created: metadata.created().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_was_created_anew_is_another_one() {
        let path =
            std::env::temp_dir().join(format!("teesql-socket-choice-{}", std::process::id()));
        assert_eq!(SocketFile::at(path.clone()), None);
        fs::write(&path, "no socket").unwrap();
        assert_eq!(SocketFile::at(path.clone()), None);
        fs::remove_file(&path).unwrap();
        let first = UnixListener::bind(&path).unwrap();
        let before = SocketFile::at(path.clone());
        assert!(before.is_some());
        assert_eq!(SocketFile::at(path.clone()), before);
        fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        assert_ne!(SocketFile::at(path.clone()), before);
        fs::remove_file(&path).unwrap();
        drop((first, second));
    }
}
