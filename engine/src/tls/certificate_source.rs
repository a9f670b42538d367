//! Where a process gets its own certificate: PEM files, or the guest agent.

use std::path::PathBuf;
use std::time::Duration;

use attest::agent::{Agent, AgentError, TlsKeyRequest};

use crate::io::clock::unix_now;
use crate::tls::certificate::{Identity, IdentityError};

/// Seconds by which `not_before` precedes the request, for peers whose clock is behind.
const BACKDATED: u64 = 300;

/// Where the certificate comes from.
#[derive(Clone)]
pub(crate) enum CertificateSource {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's key.
        key: PathBuf,
    },
    /// The guest agent.
    Agent {
        /// Who is asked.
        agent: Agent,
        /// For whom.
        subject: CertificateRequest,
    },
}

/// What the guest agent is asked to certify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The common name.
    pub name: String,
    /// DNS names and IP addresses that clients may verify.
    pub alt_names: Vec<String>,
    /// How long it is to be valid.
    pub validity: Duration,
    /// Which end of a connection it is for.
    pub usage: CertificateUsage,
}

/// Which end of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUsage {
    /// The sidecar.
    Server,
    /// The forwarder.
    Client,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateSourceError {
    /// The guest agent gives none.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl CertificateSource {
    /// A certificate that is good at this moment.
    ///
    /// # Errors
    /// [`CertificateSourceError`].
    pub(crate) async fn obtain(&self) -> Result<Identity, CertificateSourceError> {
        let identity = match self {
            Self::Files { cert, key } => Identity::from_files(cert, key)?,
            Self::Agent { agent, subject } => {
                let answer = agent.tls_key(&subject.request(unix_now())).await?;
                Identity::from_agent(&answer)?
            }
        };
        identity.check_dates(unix_now())?;
        Ok(identity)
    }
}

impl CertificateRequest {
    /// As it is asked for at `now`, in unix seconds.
    pub(crate) fn request(&self, now: u64) -> TlsKeyRequest {
        TlsKeyRequest {
            subject: self.name.clone(),
            alt_names: self.alt_names.clone(),
            usage_ra_tls: true,
            usage_server_auth: self.usage == CertificateUsage::Server,
            usage_client_auth: self.usage == CertificateUsage::Client,
            not_before: Some(now.saturating_sub(BACKDATED)),
            not_after: Some(now.saturating_add(self.validity.as_secs().max(1))),
            with_app_info: false,
        }
    }
}
