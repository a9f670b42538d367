//! The rustls client configurations of the forwarder, and of a member that opens links. They check possession of the server's
//! key only: the attestation gate decides whether the server is trusted.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use wire::link::LINK_ALPN;

use crate::tls::peer_verifier::PossessionVerifier;
use crate::tls::record_layer::RecordLayer;

/// Builds a configuration for TLS 1.3 and 1.2 that presents `client_certificate` to
/// a server that requests one. `record_layer` seals and opens the records of its TLS 1.3 sessions.
///
/// # Errors
/// rustls rejected its own defaults. This is a bug.
pub(crate) fn client_config(
    client_certificate: Option<Arc<CertifiedKey>>,
    record_layer: RecordLayer,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionVerifier(provider)));
    let mut config = match client_certificate {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertResolver(own))),
        None => builder.with_no_client_auth(),
    };
    // No resumption: rustls verifies nothing on a resumed session, and the certificates that
    // the attestation gate checks would come from the ticket.
    config.resumption = Resumption::disabled();
    config.key_log = record_layer.key_log();
    Ok(Arc::new(config))
}

/// Builds the configuration with which a member opens links: TLS 1.3 only, with the ALPN protocol of links.
///
/// # Errors
/// As [`client_config`].
pub(crate) fn link_config(
    own: Arc<CertifiedKey>,
    record_layer: RecordLayer,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionVerifier(provider)))
        .with_client_cert_resolver(Arc::new(SingleCertResolver(own)));
    config.alpn_protocols = vec![LINK_ALPN.to_vec()];
    // As above.
    config.resumption = Resumption::disabled();
    config.key_log = record_layer.key_log();
    Ok(Arc::new(config))
}

/// Presents one certificate to every server that requests one and accepts its key type.
#[derive(Debug)]
struct SingleCertResolver(Arc<CertifiedKey>);

impl ResolvesClientCert for SingleCertResolver {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let supported = self.0.key.choose_scheme(schemes).is_some();
        supported.then(|| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
