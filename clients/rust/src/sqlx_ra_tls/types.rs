//! The verifier's trait, its options and its results.

use async_trait::async_trait;

use super::native::Native;

pub use engine::embed::expected_report_data as expected_report_data_for_pubkey;

/// What a verifier requires of a quote.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Allowed MRTDs in hex; empty allows any.
    pub allowed_mr_td: Vec<String>,
    /// Accept TDs in debug mode.
    pub allow_debug_mode: bool,
}

/// What a verifier has found, in lower-case hex.
#[derive(Debug, Clone)]
pub struct VerificationResult {
    /// MRTD.
    pub mr_td: String,
    /// RTMR0.
    pub rtmr0: String,
    /// RTMR1.
    pub rtmr1: String,
    /// RTMR2.
    pub rtmr2: String,
    /// RTMR3.
    pub rtmr3: String,
    /// The TCB status, in Intel's spelling.
    pub tcb_status: String,
    /// Whether the TD is in debug mode.
    pub is_debug_mode: bool,
}

impl From<crate::Claims> for VerificationResult {
    fn from(claims: crate::Claims) -> Self {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = claims.rtmr;
        Self {
            mr_td: claims.mrtd,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            tcb_status: claims.tcb_status.unwrap_or_default(),
            is_debug_mode: claims.is_debug,
        }
    }
}

/// Why a quote is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The TD is in debug mode.
    #[error("TDX TD is in debug mode; set allow_debug_mode=true to override")]
    DebugMode,
    /// The TCB status is not accepted.
    #[error("unacceptable TCB status: {0}")]
    BadTcbStatus(String),
    /// The MRTD is not on the allow-list.
    #[error("MRTD {mrtd} not in allowlist")]
    MrtdNotAllowed {
        /// The MRTD.
        mrtd: String,
    },
    /// The service that verifies failed, or the quote is not genuine.
    #[error("attestation service error: {0}")]
    Service(String),
    /// The quote was made for another key.
    #[error(
        "quote report_data does not bind the TLS certificate's public key (replay-attack guard)"
    )]
    PubkeyMismatch,
    /// Another reason.
    #[error("{0}")]
    Other(String),
}

impl From<crate::Error> for VerifyError {
    fn from(error: crate::Error) -> Self {
        match error.code() {
            "debug_td" => Self::DebugMode,
            "unbound_key" => Self::PubkeyMismatch,
            code if code.starts_with("tcb_") => Self::BadTcbStatus(error.to_string()),
            "mrtd_not_allowed" => Self::MrtdNotAllowed {
                mrtd: error.to_string(),
            },
            _ => Self::Service(error.to_string()),
        }
    }
}

/// Verifies quotes.
#[async_trait]
pub trait RaTlsVerifier: Send + Sync + 'static {
    /// Verifies a quote.
    ///
    /// # Errors
    /// [`VerifyError`].
    async fn verify(
        &self,
        quote: &[u8],
        options: &VerifyOptions,
    ) -> Result<VerificationResult, VerifyError>;

    /// Verifies a quote, and that it belongs to the key of the certificate `cert_der`.
    ///
    /// # Errors
    /// [`VerifyError`].
    async fn verify_with_pubkey(
        &self,
        quote: &[u8],
        options: &VerifyOptions,
        cert_der: &[u8],
    ) -> Result<VerificationResult, VerifyError> {
        match engine::embed::bound_quote(cert_der) {
            Ok(bound) if bound == quote => self.verify(quote, options).await,
            Ok(_) => Err(VerifyError::PubkeyMismatch),
            Err(error) => Err(error.into()),
        }
    }

    /// How this crate verifies instead of calling the verifier. Only for this module's verifiers.
    #[doc(hidden)]
    fn native(&self) -> Native {
        Native::Custom
    }
}
