//! The source of the certificate that this process presents: PEM files, PEM in memory, or the guest agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attest::agent::{Agent, AgentError, TlsKeyRequest};

use crate::io::clock::unix_now;
use crate::tls::certificate::{Identity, IdentityError, PemIdentity};

/// How far `not_before` precedes the request, in seconds, for peers whose clock is slow.
const BACKDATE: u64 = 300;

/// Where the certificate comes from.
#[derive(Clone)]
pub(crate) enum CertificateSource {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The private key of the leaf.
        key: PathBuf,
    },
    /// PEM in memory, of a program that a forwarder is part of.
    Memory(Arc<PemIdentity>),
    /// The guest agent.
    Agent {
        /// The client of the guest agent.
        agent: Agent,
        /// The certificate to request.
        request: CertificateRequest,
    },
}

/// A certificate to request from the guest agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The common name.
    pub name: String,
    /// DNS names and IP addresses, for clients that verify the host name.
    pub alt_names: Vec<String>,
    /// Validity, from the time of the request.
    pub validity: Duration,
    /// The side of a connection that presents it.
    pub usage: CertificateUsage,
}

/// The side of a connection that presents a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUsage {
    /// The sidecar.
    Server,
    /// The forwarder.
    Client,
    /// The sidecar of a member of a cluster, which accepts and opens links.
    Both,
}

/// Why no new certificate could be obtained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateSourceError {
    /// The guest agent did not issue one.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl CertificateSource {
    /// Obtains a certificate that is valid now.
    ///
    /// # Errors
    /// The source has none, or it cannot be used.
    pub(crate) async fn obtain(&self) -> Result<Identity, CertificateSourceError> {
        let identity = match self {
            Self::Files { cert, key } => Identity::from_files(cert, key)?,
            Self::Memory(pem) => Identity::from_memory(pem)?,
            Self::Agent { agent, request } => {
                let response = agent.tls_key(&request.tls_key_request(unix_now())).await?;
                Identity::from_agent(&response)?
            }
        };
        identity.check_dates(unix_now())?;
        Ok(identity)
    }
}

impl CertificateRequest {
    /// Builds the request to the guest agent at `now`, in Unix seconds.
    pub(crate) fn tls_key_request(&self, now: u64) -> TlsKeyRequest {
        TlsKeyRequest {
            subject: self.name.clone(),
            alt_names: self.alt_names.clone(),
            usage_ra_tls: true,
            usage_server_auth: self.usage != CertificateUsage::Client,
            usage_client_auth: self.usage != CertificateUsage::Server,
            not_before: Some(now.saturating_sub(BACKDATE)),
            not_after: Some(now.saturating_add(self.validity.as_secs().max(1))),
            with_app_info: false,
        }
    }
}
