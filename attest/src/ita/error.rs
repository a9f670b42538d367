//! Errors of an appraisal by Trust Authority: a closed list.

use super::BaseError;
use crate::denial::{Denial, Fault};

/// Why there is no appraisal. No variant holds a token, key or response.
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
    /// The base URL is refused.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The HTTP client cannot be created: the system has no trusted roots.
    #[error("the HTTP client for Intel Trust Authority cannot be created: {0}")]
    Client(String),
    /// The connection failed: refused, no route, unknown name, TLS error, or closed before a response.
    #[error("no connection to Intel Trust Authority")]
    Unreachable,
    /// The deadline expired.
    #[error("Intel Trust Authority did not answer in time")]
    Timeout,
    /// Status 401: the API key is wrong or was withdrawn.
    #[error("Intel Trust Authority does not accept the API key (HTTP status 401)")]
    Unauthorized,
    /// Status 400: the quote does not verify.
    #[error("Intel Trust Authority refused the quote (HTTP status 400)")]
    QuoteRefused,
    /// A status other than 200. Redirects are not followed.
    #[error("Intel Trust Authority answered with HTTP status {0}")]
    Status(u16),
    /// A response is larger than its cap.
    #[error("Intel Trust Authority's response has more than {limit} bytes")]
    TooLarge {
        /// The cap.
        limit: usize,
    },
    /// The connection was closed before the end of a response.
    #[error("Intel Trust Authority closed the connection before the end of its response")]
    Truncated,
    /// The response has no token.
    #[error("Intel Trust Authority's response holds no token")]
    MalformedAnswer,
    /// The token cannot be parsed. Says what was expected, never the token's bytes.
    #[error("malformed attestation token: {0}")]
    MalformedToken(&'static str),
    /// The algorithm is neither PS384 nor RS256, or not that of the key.
    #[error("the attestation token is not signed with PS384 or RS256")]
    Algorithm,
    /// The token's `jku` is not at Trust Authority's own origin.
    #[error("the attestation token's jku is not on Intel Trust Authority's host")]
    UntrustedJku,
    /// The key set cannot be parsed.
    #[error("Intel Trust Authority's key set is malformed")]
    MalformedKeys,
    /// The token's key is not in the key set, not even in a newly fetched one.
    #[error("the attestation token's key is not one of Intel Trust Authority's")]
    UnknownKey,
    /// The token's key has fewer than 2,048 bits.
    #[error("the attestation token's key is too short")]
    WeakKey,
    /// The signature does not verify.
    #[error("the attestation token's signature does not verify")]
    BadSignature,
    /// The token has expired, or this clock is fast.
    #[error("the attestation token has expired")]
    Expired,
    /// The token is not valid yet. Most often this clock is slow.
    #[error("the attestation token is not valid yet (is the clock right?)")]
    NotYetValid,
    /// The token is about a quote of another key.
    #[error("the attestation token's report data is not the quote's")]
    ReportDataMismatch,
    /// The token is about another TD. Names the claim that differs.
    #[error("the attestation token's {0} is not the quote's")]
    MeasurementMismatch(&'static str),
    /// The token's debug mode differs from the quote's. Names the claim.
    #[error("the attestation token's {0} is not the quote's")]
    DebugMismatch(&'static str),
    /// The TCB status is unknown.
    #[error("the attestation token's attester_tcb_status is unknown")]
    UnknownTcbStatus,
    /// The token is valid, and the policy refuses the peer, as it would under every verifier.
    #[error(transparent)]
    Denied(#[from] Denial),
}

impl From<ItaError> for Denial {
    /// Keeps a policy's denial as it is, and wraps every other error in [`Denial::Authority`].
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
    /// Every code that [`ItaError::code`] can give in addition to those of [`Denial::CODES`].
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

    /// Whose fault it is. Only what says something about the peer may be cached as a denial: a Trust
    /// Authority that is down, or an invalid token, is not the peer's fault.
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
