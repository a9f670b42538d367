//! Postgres, asked by its superuser: for the control thread, never for a
//! connection of a client's.
//!
//! It exists so that the sidecar can set up the two roles
//! ([`provision`](crate::postgres::provision)) and report the state of the database
//! (`state`). The client is tokio-postgres (docs/adr/0007-tokio-postgres-for-the-superuser.md).
//! It must never run on a shard, and never put a password into a statement.

pub mod controldata;
pub mod state;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};
use wire::scram::Password;

use crate::auth::role::Role;
use crate::io::stream::PgAddress;

/// For everything from the dial to ReadyForQuery: Postgres is on this machine.
const CONNECT: Duration = Duration::from_secs(2);
/// For a goodbye that Postgres would rather hear than miss.
const GOODBYE: Duration = Duration::from_secs(1);

/// Postgres itself gives up a statement after 2 s, unless the caller sets
/// another limit. Names are looked up where only superusers may create any.
const OPTIONS: &str =
    "-c statement_timeout=2s -c search_path=pg_catalog -c client_min_messages=error";

/// Why Postgres did not do what it was asked to. Holds no password and no SQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there, or not for us.
    #[error("cannot connect to Postgres at {endpoint}: {source}")]
    Unreachable {
        /// Where it should listen.
        endpoint: PgAddress,
        /// What the system says.
        source: io::Error,
    },
    /// No answer in time.
    #[error("Postgres does not answer within {0:?}")]
    TimedOut(Duration),
    /// It asks for a password that we do not have, or in a way that we do not know.
    #[error("cannot log in to Postgres as postgres: {0}")]
    Login(String),
    /// It answered with an error.
    #[error("Postgres: {message} (SQLSTATE {})", .code.code())]
    Server {
        /// Its code.
        code: SqlState,
        /// Its words.
        message: String,
    },
    /// The connection ended, or what came over it makes no sense.
    #[error("the connection to Postgres broke: {0}")]
    Broken(String),
}

impl From<tokio_postgres::Error> for Error {
    /// An error behind the login.
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => Self::Server {
                code: error.code().clone(),
                message: error.message().to_owned(),
            },
            None => Self::Broken(told(&error)),
        }
    }
}

impl Error {
    fn of_login(error: tokio_postgres::Error) -> Self {
        let system = std::error::Error::source(&error).is_some_and(|cause| cause.is::<io::Error>());
        match Self::from(error) {
            Self::Broken(why) if !system => Self::Login(why),
            error => error,
        }
    }
}

/// The error and what is behind it: by itself it is as little as `db error`.
fn told(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A session of the superuser `postgres`.
pub struct Superuser {
    client: Client,
    /// Moves its bytes, until the client is gone.
    connection: JoinHandle<()>,
}

impl Superuser {
    /// Logs in to `database`; without a password where Postgres trusts us.
    ///
    /// # Errors
    /// Postgres cannot be reached or refuses us, or it all takes more than 2 s.
    pub async fn connect(
        endpoint: &PgAddress,
        password: Option<&Password>,
        database: &str,
    ) -> Result<Self, Error> {
        let config = config(password, database);
        let connecting = async {
            match endpoint {
                PgAddress::Tcp(address) => log_in(&config, TcpStream::connect(address).await).await,
                PgAddress::Unix(path) => log_in(&config, UnixStream::connect(path).await).await,
            }
        };
        match timeout(CONNECT, connecting).await {
            Ok(Ok(logged_in)) => logged_in,
            Ok(Err(source)) => Err(Error::Unreachable {
                endpoint: endpoint.clone(),
                source,
            }),
            Err(_) => Err(Error::TimedOut(CONNECT)),
        }
    }

    /// The session.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The session, for transactions.
    #[must_use]
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Says goodbye, so that Postgres does not log a lost connection.
    pub async fn close(self) {
        let Self { client, connection } = self;
        drop(client);
        let _ = timeout(GOODBYE, connection).await;
    }
}

fn config(password: Option<&Password>, database: &str) -> Config {
    let mut config = Config::new();
    config
        .user(Role::Superuser.name())
        .dbname(database)
        .application_name("teesql-sidecar")
        .options(OPTIONS)
        // On loopback there is nobody in between.
        .ssl_mode(SslMode::Disable)
        .channel_binding(ChannelBinding::Disable);
    if let Some(password) = password {
        config.password(password.as_bytes());
    }
    config
}

/// The outer error is the system's, from the dial.
async fn log_in<S>(config: &Config, dialled: io::Result<S>) -> io::Result<Result<Superuser, Error>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = dialled?;
    let (client, connection) = match config.connect_raw(stream, NoTls).await {
        Ok(connected) => connected,
        Err(error) => return Ok(Err(Error::of_login(error))),
    };
    let connection = tokio::spawn(async move {
        // Whoever asks next is told why.
        let _ = connection.await;
    });
    Ok(Ok(Superuser { client, connection }))
}
