//! The crate's error type: why a measurement failed.

use std::io;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a measurement failed. Must never contain a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file, a process or a socket failed.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A TLS error, local or reported by the other side in an alert.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The server rejected the login.
    #[error("login: {0}")]
    Login(#[from] wire::error::BackendError),
    /// The server answered a query with an ErrorResponse, or closed the connection.
    #[error("{0}")]
    Server(String),
    /// The mock TDX platform could not be created.
    #[error(transparent)]
    Mock(#[from] attest::mock::MockError),
    /// A flag or option is invalid.
    #[error("{0}")]
    Usage(String),
    /// A measured proxy or its Postgres is missing, failed to start, or exited.
    #[error("{0}")]
    Peer(String),
    /// A time limit was exceeded.
    #[error("{0}: timed out")]
    Timeout(&'static str),
    /// SIGINT or SIGTERM was received.
    #[error("stopped by a signal")]
    Stopped,
}

/// Returns a closure for `map_err` that adds the failed operation to an I/O error.
pub fn io_context(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let context = what.into();
    move |source| Error::Io { context, source }
}
