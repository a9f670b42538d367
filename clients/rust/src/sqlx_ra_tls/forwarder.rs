//! The forwarder with the interface of sqlx-ra-tls.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::dstack::{self, DstackClientCert};
use super::error::Error;
use super::native::Native;
use super::options::RaTlsOptions;
use super::types::{RaTlsVerifier, VerifyError, VerifyOptions};
use crate::{Acceptance, BoxFuture, Builder, Evidence, Forwarder, Identity, Refusal, Verifier};

/// A forwarder to one server. It stops when it is dropped.
#[derive(Debug)]
pub struct RaTlsForwarder {
    /// Where drivers connect, without TLS.
    pub local_addr: SocketAddr,
    forwarder: Forwarder,
}

impl RaTlsForwarder {
    /// Starts a forwarder.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start(
        target_host: impl Into<String>,
        target_port: u16,
        client_cert: DstackClientCert,
        verifier: Arc<dyn RaTlsVerifier>,
        opts: RaTlsOptions,
    ) -> Result<Self, Error> {
        let identity = client_cert.identity();
        Self::start_with(target_host.into(), target_port, identity, verifier, &opts).await
    }

    pub(super) async fn start_with(
        host: String,
        port: u16,
        identity: Identity,
        verifier: Arc<dyn RaTlsVerifier>,
        opts: &RaTlsOptions,
    ) -> Result<Self, Error> {
        let builder = builder_of(&host, port, identity, verifier, opts);
        let forwarder = builder.start().await?;
        let (_, port) = forwarder.host_and_port()?;
        Ok(Self {
            local_addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            forwarder,
        })
    }

    /// The forwarder.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }
}

fn builder_of(
    host: &str,
    port: u16,
    identity: Identity,
    verifier: Arc<dyn RaTlsVerifier>,
    opts: &RaTlsOptions,
) -> Builder {
    let options = opts.verify_options();
    let target = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let native = verifier.native();
    let mut builder: Builder = Forwarder::builder()
        .target(target)
        .identity(identity)
        .start_timeout(dstack::TIMEOUT);
    for (name, value) in native.settings(&options.allowed_mr_td, options.allow_debug_mode) {
        builder = builder.setting(name, value);
    }
    if opts.allow_simulator {
        builder = builder.setting("allow_simulator", "true");
    }
    match native {
        Native::Dcap(_) | Native::TrustAuthority(..) => builder,
        Native::Custom | Native::Noop => {
            builder.dangerous_verifier_instead_of_dcap(Adapter { verifier, options })
        }
    }
}

/// Calls a verifier of sqlx-ra-tls.
struct Adapter {
    verifier: Arc<dyn RaTlsVerifier>,
    options: VerifyOptions,
}

impl Verifier for Adapter {
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        Box::pin(async move {
            let leaf = evidence.chain.first().map(Vec::as_slice);
            let verified = self.verifier.verify_with_pubkey(
                &evidence.quote,
                &self.options,
                leaf.unwrap_or_default(),
            );
            let verified = verified.await;
            verified.map(|_| Acceptance::default()).map_err(refusal)
        })
    }
}

/// Whether a verifier refuses the server, or could not decide.
fn refusal(error: VerifyError) -> Refusal {
    let text = error.to_string();
    match error {
        VerifyError::Service(_) => Refusal::Failed(text),
        VerifyError::DebugMode
        | VerifyError::BadTcbStatus(_)
        | VerifyError::MrtdNotAllowed { .. }
        | VerifyError::PubkeyMismatch
        | VerifyError::Other(_) => Refusal::Refused(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlx_ra_tls::NoopVerifier;

    #[test]
    fn the_guest_agent_has_the_time_of_sqlx_ra_tls() {
        let verifier = Arc::new(NoopVerifier::new());
        let opts = RaTlsOptions::default();
        let builder = builder_of("::1", 5433, Identity::guest_agent(), verifier, &opts);
        // It shows the names of its settings.
        let shown = format!("{builder:?}");
        assert!(shown.contains("\"start_timeout\""), "{shown}");
    }

    #[test]
    fn a_service_that_fails_is_no_refusal() {
        let failed = refusal(VerifyError::Service("unreachable".to_owned()));
        let text = "attestation service error: unreachable".to_owned();
        assert_eq!(failed, Refusal::Failed(text));
        let mrtd = "ab".to_owned();
        for error in [
            VerifyError::DebugMode,
            VerifyError::BadTcbStatus("OutOfDate".to_owned()),
            VerifyError::MrtdNotAllowed { mrtd },
            VerifyError::PubkeyMismatch,
            VerifyError::Other("not today".to_owned()),
        ] {
            let text = error.to_string();
            assert_eq!(refusal(error), Refusal::Refused(text));
        }
    }
}
