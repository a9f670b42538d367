//! The reasons to refuse a peer: a closed list.
//!
//! A denial gives the reason code (for logs, metrics and ErrorResponse), the text (for the forwarder's errors)
//! and the side at fault, each by one match without a wildcard, so that a new reason cannot lack them.
//!
//! It must never contain a secret. Measurements, statuses and advisories are public.

use std::fmt;
use std::sync::Arc;

use crate::tcb::{Advisory, TcbStatus, TcbStatuses};
use crate::values::{AppId, ComposeHash, InstanceId, Mrtd, OsImageHash, Rtmr, abbreviated};

/// Why a peer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The peer presented no certificate.
    NoCertificate,
    /// The certificate carries neither `.8` nor `.1`.
    NoEvidence,
    /// Not an X.509 certificate, or beyond the caps. Says what was expected, never the peer's bytes.
    MalformedCertificate(&'static str),
    /// An evidence extension, envelope, quote or event log cannot be parsed, or is beyond the caps.
    MalformedEvidence(&'static str),
    /// More certificates than [`MAX_CHAIN_LEN`](crate::chain::MAX_CHAIN_LEN).
    ChainTooLong,
    /// The certificate's notAfter has passed.
    Expired,
    /// The certificate's notBefore is in the future, by more than the allowed clock skew.
    NotYetValid,
    /// The certificate is older than the policy's maximum age.
    TooOld,
    /// Evidence of another technology: SGX, SEV-SNP, Nitro, GCP's TDX with a TPM.
    NotTdx,
    /// A TDX quote of a version, key type or certification data that is not supported.
    UnsupportedQuote(&'static str),
    /// The quote's report data is not that of the certificate's key.
    UnboundKey,
    /// A signature of the quote, its certificates or the collateral does not verify under the trusted root.
    BadSignature,
    /// The platform's PCK certificate is revoked.
    PckRevoked,
    /// The platform's PCK certificate, or that of its issuer, is not valid at this time.
    PckNotValid,
    /// The TD is in debug mode, or profiled.
    DebugTd,
    /// The TD is migratable, bound to a service TD, or has reserved attribute bits.
    TdAttributes,
    /// The platform's TCB status is not among the accepted ones.
    Tcb {
        /// The platform's status, from the collateral.
        status: TcbStatus,
        /// What the policy accepts.
        accepted: TcbStatuses,
    },
    /// The platform is below every TCB level that Intel lists: out of date under every policy.
    TcbBelowAll {
        /// What the policy accepts.
        accepted: TcbStatuses,
    },
    /// The collateral does not list the platform's TDX module.
    TcbNotSupported,
    /// The platform is subject to an advisory that the policy refuses.
    AdvisoryRefused(Advisory),
    /// The MRTD is not on the allow-list.
    MrtdNotAllowed(Mrtd),
    /// A run-time measurement register is not on its allow-list.
    RtmrNotAllowed {
        /// The index of the register, 0 to 3.
        index: u8,
        /// Its value.
        value: Rtmr,
    },
    /// Replaying the event log does not give the quote's RTMR3.
    EventLogMismatch,
    /// The app id is not on the allow-list, or the event log proves none.
    AppNotAllowed(Option<AppId>),
    /// The compose hash is not on the allow-list, or the event log proves none.
    ComposeHashNotAllowed(Option<ComposeHash>),
    /// The instance id is not on the allow-list, or the event log proves none.
    InstanceNotAllowed(Option<InstanceId>),
    /// The OS image hash is not on the allow-list, or the event log proves none.
    OsImageHashNotAllowed(Option<OsImageHash>),
    /// The certificate chain does not end in a pinned KMS root.
    KmsRootMismatch,
    /// Another value than the policy pins. Holds the value as text; `None` if the peer shows none.
    PinNotAllowed(Pin, Option<Box<str>>),
    /// None of the policy file's entries matches. Holds what differs in the one that comes closest.
    Entry {
        /// The name of the peer's entry.
        entry: Arc<str>,
        /// The name of the operating system that comes closest.
        os: Option<Arc<str>>,
        /// What differs.
        denial: Box<Denial>,
    },
    /// The collateral is of an older TCB evaluation than the policy asks for.
    TcbEvaluationTooOld {
        /// The collateral's `tcbEvaluationDataNumber`.
        found: u32,
        /// The smallest that is accepted.
        minimum: u32,
    },
    /// There is no collateral for this platform, or not yet.
    CollateralUnavailable,
    /// The collateral has expired: its refresh has failed for days, or this clock is fast.
    CollateralExpired,
    /// The collateral is not valid yet. Most often this clock is slow.
    CollateralNotYetValid,
    /// Too many certificates are waiting to be verified.
    Overloaded,
    /// Another verifier than this crate refused, failed or did not answer: Intel Trust Authority, whose
    /// [`ItaError`](crate::ita::ItaError) is converted to this, or one of the application.
    Authority {
        /// The reason code, one of [`ItaError::CODES`](crate::ita::ItaError::CODES) or [`Denial::VERIFIER_CODES`].
        code: &'static str,
        /// Whether the peer or this side is at fault.
        fault: Fault,
        /// The error as text.
        detail: String,
    },
}

impl Denial {
    /// The code that a peer receives if the policy refuses it. It does not say which list refuses it.
    pub const NOT_ALLOWED: &'static str = "not_allowed";

    /// The code of a peer that the application's own verifier refuses.
    pub const VERIFIER_REFUSED: &'static str = "verifier_refused";
    /// The code of a peer about which the application's verifier failed to decide.
    pub const VERIFIER_FAILED: &'static str = "verifier_failed";
    /// The code of a peer about which the application's verifier has not decided in time.
    pub const VERIFIER_TIMEOUT: &'static str = "verifier_timeout";
    /// The codes of an application's own verifier.
    pub const VERIFIER_CODES: [&'static str; 3] = [
        Self::VERIFIER_REFUSED,
        Self::VERIFIER_FAILED,
        Self::VERIFIER_TIMEOUT,
    ];

    /// Every code that [`Denial::code`] can return, in the order of the checks. Metrics and docs use it.
    /// With Trust Authority, those of [`ItaError::CODES`](crate::ita::ItaError::CODES) are added, and with a verifier
    /// of the application [`Denial::VERIFIER_CODES`].
    pub const CODES: [&'static str; 50] = [
        "no_certificate",
        "chain_too_long",
        "malformed_certificate",
        "expired",
        "not_yet_valid",
        "too_old",
        "no_evidence",
        "malformed_evidence",
        "not_tdx",
        "unsupported_quote",
        "unbound_key",
        "overloaded",
        "collateral_unavailable",
        "collateral_expired",
        "collateral_not_yet_valid",
        "tcb_evaluation_too_old",
        "debug_td",
        "bad_signature",
        "pck_revoked",
        "pck_not_valid",
        "td_attributes_refused",
        "tcb_not_supported",
        "tcb_up_to_date",
        "tcb_sw_hardening_needed",
        "tcb_configuration_needed",
        "tcb_configuration_and_sw_hardening_needed",
        "tcb_out_of_date",
        "tcb_out_of_date_configuration_needed",
        "tcb_revoked",
        "tcb_relaunch_advised",
        "tcb_relaunch_advised_configuration_needed",
        "advisory_refused",
        "mrtd_not_allowed",
        "rtmr_not_allowed",
        "xfam_not_allowed",
        "td_attributes_not_allowed",
        "mr_config_id_not_allowed",
        "mr_owner_not_allowed",
        "mr_owner_config_not_allowed",
        "mr_seam_not_allowed",
        "piid_not_allowed",
        "smt_not_allowed",
        "dynamic_platform_not_allowed",
        "cached_keys_not_allowed",
        "event_log_mismatch",
        "app_not_allowed",
        "compose_hash_not_allowed",
        "instance_not_allowed",
        "os_image_hash_not_allowed",
        "kms_root_mismatch",
    ];

    /// Whether only a date of the peer's certificates is at fault, so that they may have been valid earlier.
    #[must_use]
    pub fn is_of_dates(&self) -> bool {
        match self {
            Self::Expired | Self::NotYetValid | Self::TooOld => true,
            Self::Entry { denial, .. } => denial.is_of_dates(),
            _ => false,
        }
    }

    /// The reason code: stable, snake case, one of [`Denial::CODES`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::NoEvidence => "no_evidence",
            Self::MalformedCertificate(_) => "malformed_certificate",
            Self::MalformedEvidence(_) => "malformed_evidence",
            Self::ChainTooLong => "chain_too_long",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TooOld => "too_old",
            Self::NotTdx => "not_tdx",
            Self::UnsupportedQuote(_) => "unsupported_quote",
            Self::UnboundKey => "unbound_key",
            Self::BadSignature => "bad_signature",
            Self::PckRevoked => "pck_revoked",
            Self::PckNotValid => "pck_not_valid",
            Self::DebugTd => "debug_td",
            Self::TdAttributes => "td_attributes_refused",
            Self::Tcb { status, .. } => status_code(*status),
            Self::TcbBelowAll { .. } => status_code(TcbStatus::OutOfDate),
            Self::TcbNotSupported => "tcb_not_supported",
            Self::AdvisoryRefused(_) => "advisory_refused",
            Self::MrtdNotAllowed(_) => "mrtd_not_allowed",
            Self::RtmrNotAllowed { .. } => "rtmr_not_allowed",
            Self::EventLogMismatch => "event_log_mismatch",
            Self::AppNotAllowed(_) => "app_not_allowed",
            Self::ComposeHashNotAllowed(_) => "compose_hash_not_allowed",
            Self::InstanceNotAllowed(_) => "instance_not_allowed",
            Self::OsImageHashNotAllowed(_) => "os_image_hash_not_allowed",
            Self::PinNotAllowed(pin, _) => pin.code(),
            Self::Entry { denial, .. } => denial.code(),
            Self::TcbEvaluationTooOld { .. } => "tcb_evaluation_too_old",
            Self::KmsRootMismatch => "kms_root_mismatch",
            Self::CollateralUnavailable => "collateral_unavailable",
            Self::CollateralExpired => "collateral_expired",
            Self::CollateralNotYetValid => "collateral_not_yet_valid",
            Self::Overloaded => "overloaded",
            Self::Authority { code, .. } => code,
        }
    }

    /// The side at fault. A denial with [`Fault::Ours`] needs an operator, and must not be cached as a verdict
    /// about the peer.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::CollateralUnavailable
            | Self::CollateralExpired
            | Self::CollateralNotYetValid
            | Self::TcbEvaluationTooOld { .. }
            | Self::Overloaded => Fault::Ours,
            Self::Authority { fault, .. } => *fault,
            Self::Entry { denial, .. } => denial.fault(),
            Self::NoCertificate
            | Self::NoEvidence
            | Self::MalformedCertificate(_)
            | Self::MalformedEvidence(_)
            | Self::ChainTooLong
            | Self::Expired
            | Self::NotYetValid
            | Self::TooOld
            | Self::NotTdx
            | Self::UnsupportedQuote(_)
            | Self::UnboundKey
            | Self::BadSignature
            | Self::PckRevoked
            | Self::PckNotValid
            | Self::DebugTd
            | Self::TdAttributes
            | Self::Tcb { .. }
            | Self::TcbBelowAll { .. }
            | Self::TcbNotSupported
            | Self::AdvisoryRefused(_)
            | Self::MrtdNotAllowed(_)
            | Self::RtmrNotAllowed { .. }
            | Self::EventLogMismatch
            | Self::AppNotAllowed(_)
            | Self::ComposeHashNotAllowed(_)
            | Self::InstanceNotAllowed(_)
            | Self::OsImageHashNotAllowed(_)
            | Self::PinNotAllowed(..)
            | Self::KmsRootMismatch => Fault::Peer,
        }
    }

    /// The code that the peer itself receives: [`Denial::code`] if the evidence is at fault, which
    /// the peer can mend, and [`Denial::NOT_ALLOWED`] where the policy is, of which it must learn
    /// nothing.
    #[must_use]
    pub fn peer_code(&self) -> &'static str {
        match self {
            Self::MrtdNotAllowed(_)
            | Self::RtmrNotAllowed { .. }
            | Self::AppNotAllowed(_)
            | Self::ComposeHashNotAllowed(_)
            | Self::InstanceNotAllowed(_)
            | Self::OsImageHashNotAllowed(_)
            | Self::KmsRootMismatch
            | Self::PinNotAllowed(..)
            | Self::Entry { .. } => Self::NOT_ALLOWED,
            Self::NoCertificate
            | Self::NoEvidence
            | Self::MalformedCertificate(_)
            | Self::MalformedEvidence(_)
            | Self::ChainTooLong
            | Self::Expired
            | Self::NotYetValid
            | Self::TooOld
            | Self::NotTdx
            | Self::UnsupportedQuote(_)
            | Self::UnboundKey
            | Self::BadSignature
            | Self::PckRevoked
            | Self::PckNotValid
            | Self::DebugTd
            | Self::TdAttributes
            | Self::Tcb { .. }
            | Self::TcbBelowAll { .. }
            | Self::TcbNotSupported
            | Self::AdvisoryRefused(_)
            | Self::EventLogMismatch
            | Self::CollateralUnavailable
            | Self::CollateralExpired
            | Self::CollateralNotYetValid
            | Self::TcbEvaluationTooOld { .. }
            | Self::Overloaded
            | Self::Authority { .. } => self.code(),
        }
    }

    /// What differs, without the entry that it is about.
    #[must_use]
    pub fn without_entry(&self) -> &Self {
        match self {
            Self::Entry { denial, .. } => denial.without_entry(),
            denial => denial,
        }
    }
}

/// A value that a policy can pin, apart from measurements and identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// XFAM.
    Xfam,
    /// TDATTRIBUTES.
    TdAttributes,
    /// MRCONFIGID.
    MrConfigId,
    /// MROWNER.
    MrOwner,
    /// MROWNERCONFIG.
    MrOwnerConfig,
    /// MRSEAM.
    MrSeam,
    /// The platform instance id.
    Piid,
    /// Simultaneous multithreading.
    Smt,
    /// A platform to which packages can be added.
    DynamicPlatform,
    /// Root keys kept by Intel's registration service.
    CachedKeys,
}

impl Pin {
    fn code(self) -> &'static str {
        match self {
            Self::Xfam => "xfam_not_allowed",
            Self::TdAttributes => "td_attributes_not_allowed",
            Self::MrConfigId => "mr_config_id_not_allowed",
            Self::MrOwner => "mr_owner_not_allowed",
            Self::MrOwnerConfig => "mr_owner_config_not_allowed",
            Self::MrSeam => "mr_seam_not_allowed",
            Self::Piid => "piid_not_allowed",
            Self::Smt => "smt_not_allowed",
            Self::DynamicPlatform => "dynamic_platform_not_allowed",
            Self::CachedKeys => "cached_keys_not_allowed",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Xfam => "XFAM",
            Self::TdAttributes => "TDATTRIBUTES",
            Self::MrConfigId => "MRCONFIGID",
            Self::MrOwner => "MROWNER",
            Self::MrOwnerConfig => "MROWNERCONFIG",
            Self::MrSeam => "MRSEAM",
            Self::Piid => "PIID",
            Self::Smt => "SMT",
            Self::DynamicPlatform => "dynamic platform",
            Self::CachedKeys => "cached keys",
        }
    }
}

/// The side at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer's, or its platform's.
    Peer,
    /// This side's: its collateral, its clock, its load.
    Ours,
}

fn status_code(status: TcbStatus) -> &'static str {
    match status {
        TcbStatus::UpToDate => "tcb_up_to_date",
        TcbStatus::SwHardeningNeeded => "tcb_sw_hardening_needed",
        TcbStatus::ConfigurationNeeded => "tcb_configuration_needed",
        TcbStatus::ConfigurationAndSwHardeningNeeded => "tcb_configuration_and_sw_hardening_needed",
        TcbStatus::OutOfDate => "tcb_out_of_date",
        TcbStatus::OutOfDateConfigurationNeeded => "tcb_out_of_date_configuration_needed",
        TcbStatus::Revoked => "tcb_revoked",
        TcbStatus::RelaunchAdvised => "tcb_relaunch_advised",
        TcbStatus::RelaunchAdvisedConfigurationNeeded => {
            "tcb_relaunch_advised_configuration_needed"
        }
    }
}

/// The proved value in quotes, or that the event log proves no such value.
fn proved<T: fmt::Display>(value: Option<&T>) -> String {
    match value {
        Some(value) => format!("\"{}\"", abbreviated(value)),
        None => "of the peer (its event log proves none)".into(),
    }
}

impl fmt::Display for Denial {
    /// One line for people. The texts for debug TDs, TCB status, MRTD and the KMS root are those that users
    /// already match (contract, section 2).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("the peer presented no certificate"),
            Self::NoEvidence => {
                f.write_str("the peer's certificate has no TDX attestation extension")
            }
            Self::MalformedCertificate(what) => write!(f, "malformed certificate: {what}"),
            Self::MalformedEvidence(what) => write!(f, "malformed attestation evidence: {what}"),
            Self::ChainTooLong => f.write_str("the certificate chain is too long"),
            Self::Expired => f.write_str("the certificate has expired"),
            Self::NotYetValid => {
                f.write_str("the certificate is not valid yet (is the clock right?)")
            }
            Self::TooOld => f.write_str("the certificate is older than the policy allows"),
            Self::NotTdx => f.write_str("the evidence is not of an Intel TDX trust domain"),
            Self::UnsupportedQuote(what) => write!(f, "unsupported TDX quote: {what}"),
            Self::UnboundKey => {
                f.write_str("the quote's report data is not bound to this certificate's key")
            }
            Self::BadSignature => {
                f.write_str("the quote's signature does not verify under the trusted root")
            }
            Self::PckRevoked => f.write_str("the platform's PCK certificate is revoked"),
            Self::PckNotValid => f.write_str("the platform's PCK certificate is not in date"),
            Self::DebugTd => f.write_str(
                "TDX TD is in debug mode — connection refused. \
                 Debug TDs have no confidentiality guarantees. \
                 Run the workload in a production TD, or allow debug TDs explicitly.",
            ),
            Self::TdAttributes => f.write_str(
                "the TD's attributes are refused: it is migratable, bound to a service TD, \
                 lacks SEPT_VE_DISABLE, or has reserved bits set",
            ),
            Self::Tcb { status, accepted } => write!(
                f,
                "Unacceptable TCB status: \"{status}\". Acceptable statuses: {accepted}. \
                 Update the platform's firmware and microcode, or widen the accepted statuses.",
            ),
            Self::TcbBelowAll { accepted } => write!(
                f,
                "Unacceptable TCB status: \"{}\". Acceptable statuses: {accepted}. \
                 The platform is below every level that Intel lists: update its firmware and microcode.",
                TcbStatus::OutOfDate,
            ),
            Self::TcbNotSupported => {
                f.write_str("the collateral does not know the platform's TDX module")
            }
            Self::AdvisoryRefused(id) => {
                write!(
                    f,
                    "the platform is subject to {id}, which the policy refuses"
                )
            }
            Self::MrtdNotAllowed(mrtd) => write!(
                f,
                "MRTD \"{}\" is not in the allowlist. Compare it with the image that should run.",
                abbreviated(mrtd),
            ),
            Self::RtmrNotAllowed { index, value } => {
                write!(
                    f,
                    "RTMR{index} \"{}\" is not in the allowlist.",
                    abbreviated(value)
                )
            }
            Self::EventLogMismatch => f.write_str("replaying the event log does not give RTMR3"),
            Self::AppNotAllowed(id) => {
                write!(f, "app id {} is not in the allowlist.", proved(id.as_ref()))
            }
            Self::ComposeHashNotAllowed(hash) => {
                write!(
                    f,
                    "compose hash {} is not in the allowlist.",
                    proved(hash.as_ref())
                )
            }
            Self::OsImageHashNotAllowed(hash) => {
                write!(
                    f,
                    "OS image hash {} is not in the allowlist.",
                    proved(hash.as_ref())
                )
            }
            Self::InstanceNotAllowed(id) => {
                write!(
                    f,
                    "instance id {} is not in the allowlist.",
                    proved(id.as_ref())
                )
            }
            Self::KmsRootMismatch => f.write_str("cert chain verification failed"),
            Self::PinNotAllowed(pin, Some(value)) => write!(
                f,
                "{} \"{}\" is not what the policy pins.",
                pin.as_str(),
                abbreviated(value)
            ),
            Self::PinNotAllowed(pin, None) => write!(
                f,
                "the policy pins {}, and the platform's PCK certificate does not show it.",
                pin.as_str()
            ),
            Self::Entry {
                entry,
                os: Some(os),
                denial,
            } => write!(f, "{denial} (closest entry: peer {entry:?}, os {os:?})"),
            Self::Entry {
                entry,
                os: None,
                denial,
            } => write!(f, "{denial} (closest entry: peer {entry:?})"),
            Self::TcbEvaluationTooOld { found, minimum } => write!(
                f,
                "the collateral is of TCB evaluation {found}, and min_tcb_evaluation_data_number is \
                 {minimum}: does the PCCS serve newer collateral?"
            ),
            Self::CollateralUnavailable => {
                f.write_str("no collateral for the peer's platform is available")
            }
            Self::CollateralExpired => {
                f.write_str("the collateral for the peer's platform has expired")
            }
            Self::CollateralNotYetValid => f.write_str(
                "the collateral for the peer's platform is not valid yet (is the clock right?)",
            ),
            Self::Overloaded => f.write_str("too many certificates are waiting to be verified"),
            Self::Authority { detail, .. } => f.write_str(detail),
        }
    }
}

impl std::error::Error for Denial {}
