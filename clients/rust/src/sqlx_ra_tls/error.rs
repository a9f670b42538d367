//! The error of this module's functions.

use super::types::VerifyError;
use crate::ErrorKind;

/// The error of this module's functions.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no guest agent.
    #[error(
        "dstack guest-agent unavailable: no socket at known paths and DSTACK_SIMULATOR_ENDPOINT is not set. This must run \
         inside a dstack CVM or with the simulator running"
    )]
    MissingDstackSocket,
    /// The server's certificate has no quote.
    #[error(
        "could not extract TDX quote from server certificate; pass allow_simulator=true for non-TEE servers"
    )]
    QuoteExtractionFailed,
    /// The quote is refused.
    #[error("attestation verification failed: {0}")]
    VerificationFailed(#[from] VerifyError),
    /// The connection string is not a URI, or names no host.
    #[error("bad DSN: {0}")]
    BadDsn(String),
    /// The role or the secret in the connection string is not one of a sidecar.
    #[error("bad credentials: {0}")]
    BadCredentials(String),
    /// TLS failed.
    #[error("TLS error: {0}")]
    Tls(#[from] rustls::Error),
    /// sqlx failed.
    #[error("sqlx error: {0}")]
    Sqlx(#[from] sqlx::Error),
    /// A system call failed.
    #[error("I/O error: {0}")]
    Io(#[from] std::io::Error),
    /// The guest agent failed.
    #[error("dstack SDK error: {0}")]
    Dstack(String),
    /// A request to another service failed.
    #[error("HTTP error: {0}")]
    Http(String),
    /// A token was not accepted.
    #[error("token validation failed: {0}")]
    Token(String),
    /// Another error.
    #[error("{0}")]
    Other(String),
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        match (error.kind(), error.code()) {
            (_, "agent_not_found") => Self::MissingDstackSocket,
            (_, "no_evidence") => Self::QuoteExtractionFailed,
            (ErrorKind::Refused | ErrorKind::Unavailable, _) => {
                Self::VerificationFailed(error.into())
            }
            (ErrorKind::Identity, _) => Self::Dstack(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}
