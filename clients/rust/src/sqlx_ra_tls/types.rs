//! The verifier's trait, its options and its results.

use async_trait::async_trait;

use super::native::Native;
use crate::ErrorKind;

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
    /// This TCB status, in Intel's spelling, is not accepted.
    #[error("unacceptable TCB status: {0}")]
    BadTcbStatus(String),
    /// The MRTD is not on the allow-list.
    #[error("MRTD {mrtd} not in allowlist")]
    MrtdNotAllowed {
        /// The MRTD, in lower-case hex.
        mrtd: String,
    },
    /// There is no verdict: the service that verifies is unavailable, or failed.
    #[error("attestation service error: {0}")]
    Service(String),
    /// The quote was made for another key.
    #[error(
        "quote report_data does not bind the TLS certificate's public key (replay-attack guard)"
    )]
    PubkeyMismatch,
    /// Another reason, such as a signature that does not verify.
    #[error("{0}")]
    Other(String),
}

impl From<crate::Error> for VerifyError {
    fn from(error: crate::Error) -> Self {
        match (error.code(), error.value()) {
            ("debug_td", _) => Self::DebugMode,
            ("unbound_key", _) => Self::PubkeyMismatch,
            ("mrtd_not_allowed", Some(mrtd)) => Self::MrtdNotAllowed {
                mrtd: mrtd.to_owned(),
            },
            (code, Some(status)) if code.starts_with("tcb_") => {
                Self::BadTcbStatus(status.to_owned())
            }
            _ if error.kind() == ErrorKind::Refused => Self::Other(error.to_string()),
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

#[cfg(test)]
mod tests {
    use attest::Denial;
    use attest::tcb::{TcbStatus, TcbStatuses};
    use attest::values::Mrtd;

    use super::*;

    fn converted(denial: Denial) -> VerifyError {
        crate::Error::from(denial).into()
    }

    #[test]
    fn an_error_names_the_refused_value_once() {
        let error = converted(Denial::MrtdNotAllowed(Mrtd([0xab; Mrtd::LEN])));
        let mrtd = "ab".repeat(Mrtd::LEN);
        assert_eq!(error.to_string(), format!("MRTD {mrtd} not in allowlist"));
        assert!(matches!(error, VerifyError::MrtdNotAllowed { mrtd: found } if found == mrtd));
        let error = converted(Denial::Tcb {
            status: TcbStatus::OutOfDate,
            accepted: TcbStatuses::default(),
        });
        assert_eq!(error.to_string(), "unacceptable TCB status: OutOfDate");
        assert!(matches!(error, VerifyError::BadTcbStatus(status) if status == "OutOfDate"));
    }

    #[test]
    fn only_an_error_without_a_verdict_is_one_of_the_service() {
        for denial in [
            Denial::BadSignature,
            Denial::TcbNotSupported,
            Denial::EventLogMismatch,
        ] {
            let error = converted(denial);
            assert!(matches!(error, VerifyError::Other(_)), "{error:?}");
        }
        let too_old = Denial::TcbEvaluationTooOld {
            found: 1,
            minimum: 2,
        };
        for denial in [Denial::CollateralUnavailable, too_old] {
            let error = converted(denial);
            assert!(matches!(error, VerifyError::Service(_)), "{error:?}");
        }
        let error = converted(Denial::DebugTd);
        assert!(matches!(error, VerifyError::DebugMode), "{error:?}");
        let error = converted(Denial::UnboundKey);
        assert!(matches!(error, VerifyError::PubkeyMismatch), "{error:?}");
    }
}
