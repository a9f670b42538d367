//! The client certificate from dstack's guest agent.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::Error;
use crate::Identity;

/// The variable that names a simulator.
pub const DSTACK_SIMULATOR_ENV: &str = "DSTACK_SIMULATOR_ENDPOINT";

/// The sockets of the guest agent.
pub const DSTACK_SOCKET_PATHS: &[&str] = &[
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
];

/// How long the guest agent may take. It makes a quote.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// A client certificate with its key, in PEM.
#[derive(Clone)]
pub struct DstackClientCert {
    /// The private key. A secret.
    pub key_pem: String,
    /// The chain, leaf first.
    pub chain_pem: String,
}

impl fmt::Debug for DstackClientCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DstackClientCert([redacted])")
    }
}

impl DstackClientCert {
    /// Parses both.
    ///
    /// # Errors
    /// [`Error::Other`].
    pub fn to_rustls(
        &self,
    ) -> Result<(PrivateKeyDer<'static>, Vec<CertificateDer<'static>>), Error> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| Error::Other(format!("parse dstack key: {error}")))?;
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).collect();
        let chain =
            chain.map_err(|error| Error::Other(format!("parse dstack cert chain: {error}")))?;
        if chain.is_empty() {
            return Err(Error::Other("dstack returned empty cert chain".to_owned()));
        }
        Ok((key, chain))
    }

    pub(super) fn identity(&self) -> Identity {
        Identity::pem(self.chain_pem.as_bytes(), self.key_pem.as_bytes())
    }
}

/// The address of the simulator, if there is one.
pub(super) fn simulator() -> Option<String> {
    std::env::var(DSTACK_SIMULATOR_ENV)
        .ok()
        .filter(|text| !text.is_empty())
}

/// Requests a client certificate.
///
/// # Errors
/// [`Error::MissingDstackSocket`]; [`Error::Dstack`].
pub async fn get_dstack_client_cert() -> Result<DstackClientCert, Error> {
    require_dstack_endpoint()?;
    let address = simulator();
    let issued = crate::request_client_certificate(address.as_deref(), TIMEOUT).await?;
    Ok(DstackClientCert {
        key_pem: issued.key_pem.to_string(),
        chain_pem: issued.chain_pem,
    })
}

/// Checks that there is a guest agent, without connecting to it.
///
/// # Errors
/// [`Error::MissingDstackSocket`].
pub fn require_dstack_endpoint() -> Result<(), Error> {
    let exists = |path: &&str| std::path::Path::new(path).exists();
    match simulator().is_some() || DSTACK_SOCKET_PATHS.iter().any(exists) {
        true => Ok(()),
        false => Err(Error::MissingDstackSocket),
    }
}
