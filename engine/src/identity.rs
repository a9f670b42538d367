//! The sidecar's own side of TLS: its certificate and key, what it offers, and
//! what it asks of a client's certificate during the handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}: {why}")]
pub struct IdentityError {
    file: String,
    what: &'static str,
    why: String,
}

impl IdentityError {
    fn new(file: &Path, what: &'static str, why: &dyn std::fmt::Display) -> Self {
        Self {
            file: file.display().to_string(),
            what,
            why: why.to_string(),
        }
    }
}

/// TLS 1.3 and 1.2 under the given identity; `ask_client` for a certificate.
///
/// # Errors
/// A file that cannot be read or parsed, or a key of another certificate.
pub fn tls_config(
    cert: &Path,
    key: &Path,
    ask_client: bool,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let not_pem = "not a PEM certificate";
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| IdentityError::new(cert, not_pem, &error))?;
    if chain.is_empty() {
        return Err(IdentityError::new(cert, not_pem, &"none in it"));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| IdentityError::new(key, "not a PEM private key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| IdentityError::new(cert, "no TLS", &error))?;
    let builder = if ask_client {
        builder.with_client_cert_verifier(Arc::new(HoldsItsKey(provider)))
    } else {
        builder.with_no_client_auth()
    };
    let mut tls = builder
        .with_single_cert(chain, private)
        .map_err(|error| IdentityError::new(cert, "does not go with tls_key", &error))?;
    // libpq 17 and later insist on it for direct TLS (IANA: postgresql).
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    // No resumption: rustls verifies nothing on a resumed session, and the
    // certificates that the gate would look at come from the ticket.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(tls))
}

/// Takes any certificate whose key the client proves to hold. Whether such a
/// client may enter is for the gate to say, which can tell it why not: a TLS
/// alert could not.
#[derive(Debug)]
struct HoldsItsKey(Arc<CryptoProvider>);

impl ClientCertVerifier for HoldsItsKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
