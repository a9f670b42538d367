//! The client certificate of a forwarder: the first one, and those that replace it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::error::StartError;
use crate::app::lifecycle::start_backoff;
use crate::proxy::outbound::ForwarderState;
use crate::tasks::certificate_renewal::InstallFn;
use crate::tls::certificate::Identity;
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};
use crate::tls::client_config::client_config;
use crate::tls::record_layer::RecordLayer;

/// Gets the first client certificate, within `start_timeout`. With `allow_simulator` the
/// forwarder also starts without one: a simulator does not request it.
///
/// # Errors
/// The guest agent refuses or does not answer in time, or PEM files cannot be used.
pub(super) async fn fetch_certificate(
    source: &CertificateSource,
    start_timeout: Duration,
    allow_simulator: bool,
) -> Result<Option<Identity>, StartError> {
    let deadline = Instant::now() + start_timeout;
    let mut backoff = start_backoff();
    let mut last = None;
    loop {
        let error = match timeout_at(deadline, source.obtain()).await {
            Ok(Ok(identity)) => return Ok(Some(identity)),
            Ok(Err(CertificateSourceError::Identity(error))) => return Err(error.into()),
            Ok(Err(CertificateSourceError::Agent(error))) => error,
            Err(_) => return Err(last.unwrap_or(StartError::AgentTimeout(start_timeout))),
        };
        if allow_simulator {
            tracing::info!(%error, "no client certificate: none will be presented");
            return Ok(None);
        }
        let retry_in = backoff.next_delay();
        if !error.is_transient() || Instant::now() + retry_in >= deadline {
            return Err(StartError::ClientCertificate(error));
        }
        tracing::warn!(%error, ?retry_in, "no client certificate from the guest agent yet");
        last = Some(StartError::ClientCertificate(error));
        sleep(retry_in).await;
    }
}

/// Makes new connections use a new certificate.
pub(super) fn install_certificate(
    state: &Arc<ForwarderState>,
    changed: mpsc::UnboundedSender<()>,
    record_layer: RecordLayer,
) -> InstallFn {
    let state = Arc::clone(state);
    Box::new(move |identity| {
        let own = Some(Arc::clone(identity.certified()));
        state.tls.store(client_config(own, record_layer)?);
        let verifier = state.server_gate.quote_verifier();
        if verifier.is_some_and(|verifier| verifier.set_own_chain(&identity.certified().cert)) {
            // The receiver ends with the process.
            let _ = changed.send(());
        }
        Ok(())
    })
}
