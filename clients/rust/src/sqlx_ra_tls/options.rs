//! What is required of a server.

use super::dstack::DstackClientCert;
use super::types::VerifyOptions;

/// What is required of a server.
#[derive(Debug, Clone, Default)]
pub struct RaTlsOptions {
    /// Allowed MRTDs in hex; empty allows any.
    pub allowed_mrtds: Vec<String>,
    /// Accept TDs in debug mode.
    pub allow_debug_mode: bool,
    /// Accept servers whose certificate has no quote.
    pub allow_simulator: bool,
    /// The client certificate, instead of one from the guest agent.
    pub client_cert_override: Option<DstackClientCert>,
}

impl RaTlsOptions {
    pub(super) fn verify_options(&self) -> VerifyOptions {
        VerifyOptions {
            allowed_mr_td: self.allowed_mrtds.clone(),
            allow_debug_mode: self.allow_debug_mode,
        }
    }
}
