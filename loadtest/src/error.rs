//! Why a measurement did not come about.

use std::io;

/// What every function here may fail with.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a measurement did not come about. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a process or a socket.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS went wrong on this side or the other.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The server refused the login.
    #[error("login: {0}")]
    Login(#[from] wire::error::BackendError),
    /// The server answered a query with an error, or closed.
    #[error("{0}")]
    Server(String),
    /// The mock TDX cannot be made.
    #[error(transparent)]
    Mock(#[from] attest::mock::MockError),
    /// A setting that makes no sense, or is not allowed.
    #[error("{0}")]
    Usage(String),
    /// A peer, or the Postgres behind it, does not run.
    #[error("{0}")]
    Peer(String),
    /// It took longer than it may.
    #[error("{0}: not done in time")]
    Timeout(&'static str),
    /// A signal asked for the end.
    #[error("stopped by a signal")]
    Stopped,
}

/// For `map_err`: what was being done when the system refused.
pub fn io_context(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let context = what.into();
    move |source| Error::Io { context, source }
}
