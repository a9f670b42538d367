//! The forwarder's TLS: its own certificate, and no opinion on the server's.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::tls::peer_verifier::PossessionVerifier;
use crate::tls::schedule::SecretCapture;

/// TLS 1.3 and 1.2, with `own` for a server that asks.
///
/// # Errors
/// rustls' defaults do not go together: a bug.
pub(crate) fn client_config(
    own: Option<Arc<CertifiedKey>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionVerifier(provider)));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(Shows(own))),
        None => builder.with_no_client_auth(),
    };
    // rustls verifies nothing on a resumed session, and the gate's certificates
    // would come from the ticket.
    config.resumption = Resumption::disabled();
    // Our own record layer goes on with them; nothing is logged.
    config.key_log = Arc::new(SecretCapture);
    Ok(Arc::new(config))
}

/// Shows one certificate to whoever asks.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fits = self.0.key.choose_scheme(schemes).is_some();
        fits.then(|| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
