//! Every way in which an appraisal fails: a closed list.

use super::BaseError;
use crate::denial::{Denial, Fault};

/// Why Trust Authority's word was not had, or not believed. No token, key or answer is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItaError {
    /// No API key is configured.
    #[error(
        "Intel Trust Authority API key required. Pass {{ apiKey }} option or set \
         INTEL_TRUST_AUTHORITY_API_KEY env var. Register at https://portal.trustauthority.intel.com"
    )]
    MissingKey,
    /// The API key cannot be sent in a header.
    #[error("the Intel Trust Authority API key is not 1 to 512 visible ASCII characters")]
    BadKey,
    /// The base is refused.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The HTTP client cannot be made: the system has no trusted roots.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    /// No connection: refused, no route, no such name, TLS failed, or closed without an answer.
    #[error("no connection to Intel Trust Authority")]
    Unreachable,
    /// Not within the deadline.
    #[error("Intel Trust Authority did not answer in time")]
    Timeout,
    /// 401: the API key is wrong, or has been withdrawn.
    #[error("Intel Trust Authority does not accept the API key (HTTP status 401)")]
    Unauthorized,
    /// 400: the quote does not verify.
    #[error("Intel Trust Authority refused the quote (HTTP status 400)")]
    QuoteRefused,
    /// Another status than 200. Redirects are not followed.
    #[error("Intel Trust Authority answered with HTTP status {0}")]
    Status(u16),
    /// More bytes than any answer needs.
    #[error("Intel Trust Authority's answer has more than {limit} bytes")]
    TooLarge {
        /// The cap.
        limit: usize,
    },
    /// The connection broke in the middle of an answer.
    #[error("Intel Trust Authority's answer broke off")]
    Truncated,
    /// An answer without a token.
    #[error("Intel Trust Authority's answer holds no token")]
    MalformedAnswer,
    /// A token that cannot be read. What was expected, never its bytes.
    #[error("malformed attestation token: {0}")]
    MalformedToken(&'static str),
    /// Another algorithm than PS384 and RS256, or than the key is for.
    #[error("the attestation token is not signed with PS384 or RS256")]
    Algorithm,
    /// The token names keys that are not Trust Authority's own.
    #[error("the attestation token's jku is not on Intel Trust Authority's host")]
    UntrustedJku,
    /// The key set cannot be read.
    #[error("Intel Trust Authority's key set is malformed")]
    MalformedKeys,
    /// The token's key is not in the key set, not even in a new one.
    #[error("the attestation token's key is not one of Intel Trust Authority's")]
    UnknownKey,
    /// The token's key has less than 2,048 bits.
    #[error("the attestation token's key is too short")]
    WeakKey,
    /// The signature does not verify.
    #[error("the attestation token's signature does not verify")]
    BadSignature,
    /// The token's time is over, or this clock is fast.
    #[error("the attestation token has expired")]
    Expired,
    /// The token is from the future: most often this clock is slow.
    #[error("the attestation token is not valid yet (is the clock right?)")]
    NotYetValid,
    /// The token is about another key's quote.
    #[error("the attestation token's report data is not the quote's")]
    ReportDataMismatch,
    /// The token is about another TD: which claim differs.
    #[error("the attestation token's {0} is not the quote's")]
    MeasurementMismatch(&'static str),
    /// The token says otherwise of debug mode than the quote: which claim.
    #[error("the attestation token's {0} is not the quote's")]
    DebugMismatch(&'static str),
    /// A TCB status that is not one of Intel's.
    #[error("the attestation token's attester_tcb_status is unknown")]
    UnknownTcbStatus,
    /// The token is believed, and the peer is refused for the same reason as under every verifier.
    #[error(transparent)]
    Denied(#[from] Denial),
}

impl From<ItaError> for Denial {
    /// Keeps a policy denial as it is, and wraps every other error in [`Denial::Authority`].
    fn from(error: ItaError) -> Self {
        match error {
            ItaError::Denied(denial) => denial,
            error => Self::Authority {
                code: error.code(),
                fault: error.fault(),
                detail: error.to_string(),
            },
        }
    }
}

impl ItaError {
    /// Every code that [`ItaError::code`] can give beside those of [`Denial::CODES`].
    pub const CODES: [&'static str; 25] = [
        "ita_missing_key",
        "ita_bad_key",
        "ita_base",
        "ita_client",
        "ita_unreachable",
        "ita_timeout",
        "ita_unauthorized",
        "ita_quote_refused",
        "ita_status",
        "ita_too_large",
        "ita_broken_off",
        "ita_malformed_answer",
        "ita_malformed_token",
        "ita_algorithm",
        "ita_jku_elsewhere",
        "ita_malformed_keys",
        "ita_unknown_key",
        "ita_weak_key",
        "ita_bad_signature",
        "ita_expired",
        "ita_not_yet_valid",
        "ita_report_data_mismatch",
        "ita_measurement_mismatch",
        "ita_debug_mismatch",
        "ita_tcb_unknown",
    ];

    /// The reason code: stable, snake case, of [`ItaError::CODES`] or [`Denial::CODES`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingKey => "ita_missing_key",
            Self::BadKey => "ita_bad_key",
            Self::Base(_) => "ita_base",
            Self::Client(_) => "ita_client",
            Self::Unreachable => "ita_unreachable",
            Self::Timeout => "ita_timeout",
            Self::Unauthorized => "ita_unauthorized",
            Self::QuoteRefused => "ita_quote_refused",
            Self::Status(_) => "ita_status",
            Self::TooLarge { .. } => "ita_too_large",
            Self::Truncated => "ita_broken_off",
            Self::MalformedAnswer => "ita_malformed_answer",
            Self::MalformedToken(_) => "ita_malformed_token",
            Self::Algorithm => "ita_algorithm",
            Self::UntrustedJku => "ita_jku_elsewhere",
            Self::MalformedKeys => "ita_malformed_keys",
            Self::UnknownKey => "ita_unknown_key",
            Self::WeakKey => "ita_weak_key",
            Self::BadSignature => "ita_bad_signature",
            Self::Expired => "ita_expired",
            Self::NotYetValid => "ita_not_yet_valid",
            Self::ReportDataMismatch => "ita_report_data_mismatch",
            Self::MeasurementMismatch(_) => "ita_measurement_mismatch",
            Self::DebugMismatch(_) => "ita_debug_mismatch",
            Self::UnknownTcbStatus => "ita_tcb_unknown",
            Self::Denied(denial) => denial.code(),
        }
    }

    /// Whose fault it is. Only what says something of the peer may be remembered against it: a Trust
    /// Authority that is down, or a token that is not believed, is not the peer's doing.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::QuoteRefused => Fault::Peer,
            Self::Denied(denial) => denial.fault(),
            Self::MissingKey
            | Self::BadKey
            | Self::Base(_)
            | Self::Client(_)
            | Self::Unreachable
            | Self::Timeout
            | Self::Unauthorized
            | Self::Status(_)
            | Self::TooLarge { .. }
            | Self::Truncated
            | Self::MalformedAnswer
            | Self::MalformedToken(_)
            | Self::Algorithm
            | Self::UntrustedJku
            | Self::MalformedKeys
            | Self::UnknownKey
            | Self::WeakKey
            | Self::BadSignature
            | Self::Expired
            | Self::NotYetValid
            | Self::ReportDataMismatch
            | Self::MeasurementMismatch(_)
            | Self::DebugMismatch(_)
            | Self::UnknownTcbStatus => Fault::Ours,
        }
    }
}
