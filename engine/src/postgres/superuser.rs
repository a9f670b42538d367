//! A client session of the superuser `postgres`.
//!
//! The sidecar needs it to set up the two roles ([`provision`](crate::postgres::provision)) and to
//! report the state of the database ([`state`]). The client is tokio-postgres
//! (docs/adr/0007-tokio-postgres-for-the-superuser.md). It must never run on a shard, serve a
//! client's connection, or put a password into a statement.

pub mod controldata;
mod login_guard;
pub mod query;
pub mod standing;
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
use wire::backend::{AuthMethods, BackendError};
use wire::scram::Password;

use crate::auth::role::Role;
use crate::io::peer_uid::peer_uid;
use crate::io::stream::PgAddress;
use crate::postgres::server::PostgresServer;
use login_guard::LoginGuard;

/// The limit from the dial to ReadyForQuery. Postgres is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The limit for sending the Terminate message.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Session settings. Postgres cancels a statement after 2 s, unless the caller sets another limit.
/// Names resolve in `pg_catalog`, where only superusers can create objects.
const OPTIONS: &str =
    "-c statement_timeout=2s -c search_path=pg_catalog -c client_min_messages=error";

/// The same as statements.
const SET_OPTIONS: &str =
    "SET statement_timeout = '2s'; SET search_path = pg_catalog; SET client_min_messages = error";

/// Why a session or a statement failed. Contains neither passwords nor SQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be opened.
    #[error("cannot connect to Postgres at {address}: {source}")]
    Unreachable {
        /// The address of Postgres.
        address: PgAddress,
        /// The operating system's error.
        source: io::Error,
    },
    /// Postgres did not answer in time.
    #[error("Postgres does not answer within {0:?}")]
    TimedOut(Duration),
    /// Postgres requests a password that is not configured, or an authentication method that is
    /// unknown or not allowed.
    #[error("cannot log in to Postgres as postgres: {0}")]
    Login(String),
    /// Postgres responded with an error.
    #[error("Postgres: {message} (SQLSTATE {})", .code.code())]
    Server {
        /// The SQLSTATE.
        code: SqlState,
        /// The message.
        message: String,
    },
    /// The connection ended, or Postgres violated the protocol.
    #[error("the connection to Postgres broke: {0}")]
    Broken(String),
}

impl From<tokio_postgres::Error> for Error {
    /// Converts an error after the login.
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => Self::Server {
                code: error.code().clone(),
                message: error.message().to_owned(),
            },
            None => Self::Broken(with_cause(&error)),
        }
    }
}

impl Error {
    /// Whether Postgres does not accept the superuser's password, or requests one that is not configured.
    pub(crate) fn is_login(&self) -> bool {
        match self {
            Self::Login(_) => true,
            Self::Server { code, .. } => {
                *code == SqlState::INVALID_PASSWORD
                    || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
            }
            _ => false,
        }
    }

    /// Converts an error during the login.
    fn from_login(error: tokio_postgres::Error) -> Self {
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        let is_io = cause.is_some();
        let refused = cause.and_then(|cause: &io::Error| cause.get_ref());
        if let Some(refused) = refused.and_then(|refused| refused.downcast_ref()) {
            return Self::from_guard(refused);
        }
        match Self::from(error) {
            Self::Broken(why) if !is_io => Self::Login(why),
            error => error,
        }
    }

    /// Converts a refusal by the sidecar itself.
    fn from_guard(error: &BackendError) -> Self {
        match error {
            BackendError::NotScram { .. }
            | BackendError::ScramIterationsTooFew { .. }
            | BackendError::WrongListener { .. } => Self::Login(error.to_string()),
            error => Self::Broken(error.to_string()),
        }
    }
}

/// The error with its cause. Without the cause it may be as little as `db error`.
fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A session of the superuser `postgres`.
pub struct Superuser {
    client: Client,
    /// The task that does the I/O, until the client is dropped.
    connection: JoinHandle<()>,
}

impl Superuser {
    /// Logs in to `database`. Without a password, Postgres has to trust the connection.
    ///
    /// # Errors
    /// Postgres cannot be reached, does not prove that it is Postgres, refuses the login, or takes
    /// more than 2 s for all of it.
    pub async fn connect(
        server: &PostgresServer,
        password: Option<&Password>,
        database: &str,
    ) -> Result<Self, Error> {
        let mut config = connection_config(password, database);
        config.options(OPTIONS);
        Self::open(server, &config).await
    }

    /// Logs in as another role, to see whether Postgres lets it in at this address.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(crate) async fn connect_as(
        server: &PostgresServer,
        role: Role,
        password: &Password,
        database: &str,
    ) -> Result<Self, Error> {
        let mut config = connection_config(Some(password), database);
        config.user(role.name()).options(OPTIONS);
        Self::open(server, &config).await
    }

    /// As [`Self::connect`], but the session has the settings of the server, so that they can be read
    /// by `pg_settings`. [`Self::apply_settings`] has to follow before any other query: until then, names
    /// may resolve in schemas in which others create objects.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(crate) async fn connect_plain(
        server: &PostgresServer,
        password: Option<&Password>,
        database: &str,
    ) -> Result<Self, Error> {
        Self::open(server, &connection_config(password, database)).await
    }

    /// Gives a session of [`Self::connect_plain`] the usual settings.
    ///
    /// # Errors
    /// The statement fails.
    pub(crate) async fn apply_settings(&self) -> Result<(), Error> {
        Ok(self.client.batch_execute(SET_OPTIONS).await?)
    }

    async fn open(server: &PostgresServer, config: &Config) -> Result<Self, Error> {
        let connecting = async {
            let methods = server.methods();
            match &server.address {
                PgAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    Ok(log_in(config, stream, methods).await)
                }
                PgAddress::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    match server.check_listener(peer_uid(&stream)) {
                        Ok(()) => Ok(log_in(config, stream, methods).await),
                        Err(error) => Ok(Err(Error::from_guard(&error))),
                    }
                }
            }
        };
        let connecting: Result<io::Result<_>, _> = timeout(CONNECT_TIMEOUT, connecting).await;
        match connecting {
            Ok(Ok(logged_in)) => logged_in,
            Ok(Err(source)) => Err(Error::Unreachable {
                address: server.address.clone(),
                source,
            }),
            Err(_) => Err(Error::TimedOut(CONNECT_TIMEOUT)),
        }
    }

    /// The client of this session.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client of this session, for transactions.
    #[must_use]
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Sends Terminate, so that Postgres does not log a lost connection.
    pub async fn close(self) {
        let Self { client, connection } = self;
        drop(client);
        let _ = timeout(CLOSE_TIMEOUT, connection).await;
    }
}

fn connection_config(password: Option<&Password>, database: &str) -> Config {
    let mut config = Config::new();
    config
        .user(Role::Superuser.name())
        .dbname(database)
        .application_name("teesql-sidecar")
        // The connection does not leave this machine.
        .ssl_mode(SslMode::Disable)
        .channel_binding(ChannelBinding::Disable);
    if let Some(password) = password {
        config.password(password.as_bytes());
    }
    config
}

/// Logs in over a new stream.
async fn log_in<S>(config: &Config, stream: S, methods: AuthMethods) -> Result<Superuser, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = LoginGuard::new(stream, methods);
    let connected = config.connect_raw(stream, NoTls).await;
    let (client, connection) = connected.map_err(Error::from_login)?;
    let connection = tokio::spawn(async move {
        // The next query reports the error.
        let _ = connection.await;
    });
    Ok(Superuser { client, connection })
}
