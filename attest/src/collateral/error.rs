//! Errors of collateral, and the parts that they name.

use std::fmt;

/// A part of the collateral whose signature, date or certificate an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The TCB info: Intel's statement about each patch level of a platform.
    TcbInfo,
    /// The certificate that signs the TCB info.
    TcbInfoSigner,
    /// The identity of the quoting enclave.
    QeIdentity,
    /// The certificate that signs the quoting enclave's identity.
    QeIdentitySigner,
    /// The list of certificates that the root CA has revoked.
    RootCrl,
    /// The list of PCK certificates that a PCK CA has revoked.
    PckCrl,
    /// The CA that issues PCK certificates and signs the PCK CRL.
    PckCa,
    /// The trusted root itself.
    Root,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcbInfo => "TCB info",
            Self::TcbInfoSigner => "TCB info signing certificate",
            Self::QeIdentity => "QE identity",
            Self::QeIdentitySigner => "QE identity signing certificate",
            Self::RootCrl => "root CA CRL",
            Self::PckCrl => "PCK CRL",
            Self::PckCa => "PCK CA certificate",
            Self::Root => "root CA certificate",
        })
    }
}

/// Why collateral is refused. The server that sent it is at fault, except for [`Self::NotYetValid`] and
/// [`Self::Expired`], which a wrong clock on this side also causes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// A part is larger than its cap.
    #[error("{part} has {bytes} bytes, at most {limit} are read")]
    TooLarge {
        /// The part.
        part: Part,
        /// Its size in bytes.
        bytes: usize,
        /// The cap.
        limit: usize,
    },
    /// A part cannot be parsed.
    #[error("{part} is malformed: {why}")]
    Malformed {
        /// The part.
        part: Part,
        /// What was expected. Never the server's bytes.
        why: &'static str,
    },
    /// The TCB info is for another technology.
    #[error("the TCB info is not for TDX")]
    NotTdx,
    /// A signature does not verify under the expected key.
    #[error("the signature of the {part} is wrong")]
    BadSignature {
        /// The part.
        part: Part,
    },
    /// The issuer's name is not that of the expected CA.
    #[error("the {part} was issued by another CA than expected")]
    WrongIssuer {
        /// The part.
        part: Part,
    },
    /// A certificate of the issuer chains is on the root CA's CRL.
    #[error("the {part} is revoked")]
    Revoked {
        /// The part.
        part: Part,
    },
    /// The part is not valid yet. Most often this machine's clock is slow.
    #[error("the {part} is not valid before Unix time {from} (is this machine's clock right?)")]
    NotYetValid {
        /// The part.
        part: Part,
        /// Unix seconds.
        from: u64,
    },
    /// The part has expired.
    #[error("the {part} expired at Unix time {at}")]
    Expired {
        /// The part.
        part: Part,
        /// Unix seconds.
        at: u64,
    },
    /// The collateral is genuine, but for another platform family or PCK CA than requested.
    #[error("the collateral is for another FMSPC or PCK CA than requested")]
    WrongKey,
    /// The collateral is genuine, but the cache is full.
    #[error("the collateral cache holds too many platform families")]
    StoreFull,
}

impl CollateralError {
    /// The error's name from a closed list, for a metric label and the log.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::NotTdx => "not_tdx",
            Self::BadSignature { .. } => "bad_signature",
            Self::WrongIssuer { .. } => "wrong_issuer",
            Self::Revoked { .. } => "revoked",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::WrongKey => "wrong_key",
            Self::StoreFull => "store_full",
        }
    }
}
