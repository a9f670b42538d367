//! The error of `dev`.

use std::ffi::OsString;
use std::io;

use attest::mock::MockError;

use crate::app::error::StartError;
use crate::cli::output::{EX_OSERR, EX_USAGE};
use crate::config::Errors;

/// Why `dev` failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DevError {
    /// A file, process or socket operation failed.
    #[error("{doing}: {source}")]
    System {
        /// The failed operation.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// The command cannot be run.
    #[error("{}: {source}", program.display())]
    Command {
        /// Its name.
        program: OsString,
        /// The system's error.
        source: io::Error,
    },
    /// Postgres does not start; its error message.
    #[error("Postgres: {0}")]
    Postgres(String),
    /// A cluster of several members does not start, or a request to it fails.
    #[error("{0}")]
    Members(String),
    /// The mock TDX cannot be created.
    #[error(transparent)]
    Mock(#[from] MockError),
    /// A request to the mock guest agent failed.
    #[error(transparent)]
    Agent(#[from] attest::agent::AgentError),
    /// A setting in the environment is invalid.
    #[error(transparent)]
    Settings(#[from] Errors),
    /// A sidecar failed.
    #[error(transparent)]
    Serve(#[from] StartError),
    /// The system's random number generator failed.
    #[error("cannot generate random bytes")]
    Random,
}

impl DevError {
    /// The exit code. For a command that cannot be run it is that of env(1).
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
            Self::Settings(_) => EX_USAGE,
            _ => EX_OSERR,
        }
    }
}

pub(super) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DevError {
    let doing = doing.into();
    move |source| DevError::System { doing, source }
}
