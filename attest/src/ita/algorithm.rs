//! The signature algorithms that a token may use. [RFC 7518, sections 3.3 and 3.5]

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RsaParameters};

use super::ItaError;

/// The algorithms that Intel signs with. No other can be represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Ps384,
    Rs256,
}

impl Algorithm {
    pub(super) fn from_name(name: &str) -> Result<Self, ItaError> {
        match name {
            "PS384" => Ok(Self::Ps384),
            "RS256" => Ok(Self::Rs256),
            _ => Err(ItaError::Algorithm),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ps384 => "PS384",
            Self::Rs256 => "RS256",
        }
    }

    pub(super) fn parameters(self) -> &'static RsaParameters {
        match self {
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        }
    }
}
