//! Verification of quotes, certificates and servers, without a forwarder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::embed::{self, ApplicationVerifier, Error, ServerProbe, Verified, Verifier};

use crate::{Identity, Policy};

/// From the request for a client certificate to the end of the TLS handshake, unless another limit is set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Verifies a bare quote: Intel's signatures, the TCB, and of `policy` what a quote can show (MRTD and RTMRs). Who sent it
/// remains open.
///
/// # Errors
/// [`ErrorKind::Refused`](crate::ErrorKind::Refused); [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) without
/// collateral; [`ErrorKind::Configuration`](crate::ErrorKind::Configuration).
pub async fn verify(quote: &[u8], policy: &Policy) -> Result<Verified, Error> {
    embed::verify_quote(quote.to_vec(), &policy.options()).await
}

/// As [`verify`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`verify`].
pub fn verify_blocking(quote: &[u8], policy: &Policy) -> Result<Verified, Error> {
    embed::block_on(verify(quote, policy))
}

/// Verifies a certificate chain in DER, leaf first: the binding of its quote, and all that [`verify`] and `policy` require.
/// [`certificates_from_pem`](crate::certificates_from_pem) reads PEM.
///
/// # Errors
/// As [`verify`].
pub async fn verify_certificate(chain: &[Vec<u8>], policy: &Policy) -> Result<Verified, Error> {
    embed::verify_certificate(chain.to_vec(), &policy.options()).await
}

/// How [`verify_server`] connects.
#[derive(Clone)]
#[must_use]
pub struct ServerOptions {
    timeout: Duration,
    identity: Identity,
    verifier: Option<ApplicationVerifier>,
    verifier_timeout: Option<Duration>,
}

impl std::fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerOptions")
            .field("timeout", &self.timeout)
            .field("identity", &self.identity)
            .field("has_verifier", &self.verifier.is_some())
            .finish()
    }
}

impl Default for ServerOptions {
    /// 5 s, and no client certificate.
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            identity: Identity::none(),
            verifier: None,
            verifier_timeout: None,
        }
    }
}

impl ServerOptions {
    /// The limit from the request for a client certificate, or without one from name resolution, to the end of the TLS
    /// handshake; 5 s if it is not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The certificate to present if the server requests one; none if it is not set.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// As [`Builder::verifier`](crate::Builder::verifier).
    pub fn verifier(mut self, verifier: impl Verifier) -> Self {
        self.verifier = Some(ApplicationVerifier::new(Arc::new(verifier), false));
        self
    }

    /// As [`Builder::dangerous_verifier_instead_of_dcap`](crate::Builder::dangerous_verifier_instead_of_dcap).
    pub fn dangerous_verifier_instead_of_dcap(mut self, verifier: impl Verifier) -> Self {
        self.verifier = Some(ApplicationVerifier::new(Arc::new(verifier), true));
        self
    }

    /// As [`Builder::verifier_timeout`](crate::Builder::verifier_timeout).
    pub fn verifier_timeout(mut self, timeout: Duration) -> Self {
        self.verifier_timeout = Some(timeout);
        self
    }

    async fn probe(&self, host: &str, port: u16) -> Result<ServerProbe, Error> {
        let begun = Instant::now();
        let pem_identity = self.identity.load(self.timeout).await?;
        Ok(ServerProbe {
            host: host.to_owned(),
            port,
            timeout: self.timeout.saturating_sub(begun.elapsed()),
            pem_identity,
        })
    }
}

/// Connects to a server, verifies it as a forwarder does, and closes the connection without a login.
///
/// # Errors
/// As [`verify`]; [`ErrorKind::Network`](crate::ErrorKind::Network), [`ErrorKind::Timeout`](crate::ErrorKind::Timeout),
/// [`ErrorKind::Identity`](crate::ErrorKind::Identity).
pub async fn verify_server(
    host: &str,
    port: u16,
    policy: &Policy,
    options: &ServerOptions,
) -> Result<Verified, Error> {
    let mut settings = policy.options();
    settings.verifier = options.verifier.clone();
    if let (Some(own), Some(timeout)) = (&mut settings.verifier, options.verifier_timeout) {
        own.timeout = timeout;
    }
    embed::verify_server(options.probe(host, port).await?, &settings).await
}

/// As [`verify_server`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`verify_server`].
pub fn verify_server_blocking(
    host: &str,
    port: u16,
    policy: &Policy,
    options: &ServerOptions,
) -> Result<Verified, Error> {
    embed::block_on(verify_server(host, port, policy, options))
}

/// The certificates in DER, leaf first, that a server presents. It has proved that it holds the key of the first; nothing
/// else is verified.
///
/// # Errors
/// [`ErrorKind::Network`](crate::ErrorKind::Network), [`ErrorKind::Timeout`](crate::ErrorKind::Timeout),
/// [`ErrorKind::Identity`](crate::ErrorKind::Identity).
pub async fn server_certificates(
    host: &str,
    port: u16,
    options: &ServerOptions,
) -> Result<Vec<Vec<u8>>, Error> {
    embed::server_certificates(options.probe(host, port).await?).await
}
