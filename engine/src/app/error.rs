//! Why a sidecar or a forwarder could not start, or stopped.

use std::io;
use std::time::Duration;

use attest::agent::AgentError;
use hickory_resolver::net::NetError;

use crate::auth::postgres_passwords::MissingPassword;
use crate::postgres::provision::ProvisionError;
use crate::telemetry::audit::AuditError;
use crate::telemetry::metrics::MetricsError;
use crate::tls::certificate::IdentityError;

/// Why a process could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate or its key cannot be used: an error in the configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A role has no password: an error in the configuration.
    #[error(transparent)]
    Password(#[from] MissingPassword),
    /// The guest agent cannot be reached at all, or refuses.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A forwarder got no client certificate from the guest agent.
    #[error("no client certificate: {0}")]
    ClientCertificate(#[source] AgentError),
    /// The guest agent did not answer the request of a forwarder in time.
    #[error("no client certificate: the guest agent did not answer within {0:?}")]
    AgentTimeout(Duration),
    /// The roles cannot be set up in Postgres.
    #[error("cannot provision: {0}")]
    Provision(#[from] ProvisionError),
    /// The HTTP client for collateral cannot be set up.
    #[error(transparent)]
    Collateral(#[from] attest::collateral::FetchError),
    /// The client of Intel Trust Authority cannot be set up.
    #[error(transparent)]
    Authority(#[from] attest::ita::ItaError),
    /// Names cannot be resolved on this machine.
    #[error("cannot resolve names: {0}")]
    Resolver(#[from] NetError),
    /// The audit log cannot be opened: an error in the configuration.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// rustls rejected its own defaults: a bug.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A shard or its control thread failed, or did not stop in time.
    #[error("a shard failed: {0}")]
    Shard(String),
    /// A system call failed.
    #[error("{doing}: {source}")]
    System {
        /// The operation that failed.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
}

/// Which kind of error it is, for exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The configuration cannot be used.
    Configuration,
    /// Another service is unavailable or refuses.
    Unavailable,
    /// The operating system or this program failed.
    System,
}

impl StartError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Identity(_) | Self::Password(_) | Self::Audit(_) => ErrorKind::Configuration,
            Self::Agent(_)
            | Self::ClientCertificate(_)
            | Self::AgentTimeout(_)
            | Self::Provision(_)
            | Self::Authority(_) => ErrorKind::Unavailable,
            Self::Collateral(_)
            | Self::Resolver(_)
            | Self::Metrics(_)
            | Self::Tls(_)
            | Self::Shard(_)
            | Self::System { .. } => ErrorKind::System,
        }
    }
}

/// Converts an I/O error and says which operation failed:
/// `.map_err(system("cannot listen on …"))`.
pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.into();
    move |source| StartError::System { doing, source }
}
