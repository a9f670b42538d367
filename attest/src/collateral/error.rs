//! What can be wrong with collateral, and with getting it.

use std::fmt;

/// A part of the collateral: which signature, date or certificate an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The TCB info: what Intel says of each patch level of a platform.
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

/// Collateral that is refused. Whoever served it is at fault, except for [`Self::NotYetValid`] and
/// [`Self::Expired`], which a wrong clock on this side also causes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// More bytes than any real collateral has.
    #[error("{part} has {bytes} bytes, at most {limit} are read")]
    TooLarge {
        /// Which part.
        part: Part,
        /// Bytes found.
        bytes: usize,
        /// The cap.
        limit: usize,
    },
    /// It cannot be parsed as what it should be.
    #[error("{part} is malformed: {why}")]
    Malformed {
        /// Which part.
        part: Part,
        /// What was expected; never the peer's bytes.
        why: &'static str,
    },
    /// TCB info of another technology.
    #[error("the TCB info is not for TDX")]
    NotTdx,
    /// A signature does not verify under the key that should have made it.
    #[error("the signature of the {part} is wrong")]
    BadSignature {
        /// Which part.
        part: Part,
    },
    /// The issuer's name is not the name of the CA that should have issued it.
    #[error("the {part} was issued by another CA than expected")]
    WrongIssuer {
        /// Which part.
        part: Part,
    },
    /// A certificate of the issuer chains is on the root CA's CRL.
    #[error("the {part} is revoked")]
    Revoked {
        /// Which part.
        part: Part,
    },
    /// The part is from the future: most often this machine's clock is slow.
    #[error("the {part} is not valid before unix time {from} (is this clock right?)")]
    NotYetValid {
        /// Which part.
        part: Part,
        /// Unix seconds.
        from: u64,
    },
    /// The part's time is over.
    #[error("the {part} expired at unix time {at}")]
    Expired {
        /// Which part.
        part: Part,
        /// Unix seconds.
        at: u64,
    },
    /// It is genuine, but for another platform family or PCK CA than was asked for.
    #[error("the collateral is for another FMSPC or PCK CA than asked for")]
    WrongKey,
    /// Genuine, but as many platform families are held as there is room for.
    #[error("collateral for too many platform families is held already")]
    StoreFull,
}

impl CollateralError {
    /// A word from a closed list, for a metric label and the log.
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
