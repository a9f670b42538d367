//! Errors of a manifest: a closed list.

use super::EthAddress;
use crate::limits::{MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN};

/// Why a manifest is refused. No variant holds bytes of the record, which anyone may have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The record has more than [`MAX_MANIFEST_LEN`] bytes.
    #[error("the manifest has more than {MAX_MANIFEST_LEN} bytes")]
    TooLong,
    /// The record has more than [`MAX_MANIFEST_FIELDS`] fields.
    #[error("the manifest has more than {MAX_MANIFEST_FIELDS} fields")]
    TooManyFields,
    /// The record is not a list of `key=value` in printable ASCII.
    #[error("malformed manifest: {0}")]
    Malformed(&'static str),
    /// A required field is missing.
    #[error("the manifest has no {0}")]
    Missing(&'static str),
    /// A field is repeated. Unknown fields are not named.
    #[error("the manifest has {0} more than once")]
    Repeated(&'static str),
    /// A field's value cannot be parsed.
    #[error("the manifest's {name} is not {expected}")]
    Value {
        /// The field.
        name: &'static str,
        /// The expected form.
        expected: &'static str,
    },
    /// The leader's URL does not name a host to connect to.
    #[error("the manifest's leader_url is refused: {0}")]
    LeaderUrl(&'static str),
    /// The version is not 1.
    #[error("the manifest's version is not 1")]
    Version,
    /// The signature is not of the trusted address.
    #[error("manifest signature verification failed")]
    Signature {
        /// The address that did sign it; `None` for an invalid signature.
        recovered: Option<EthAddress>,
    },
    /// The manifest is for another cluster than configured, or than the one followed so far.
    #[error("the manifest is for another cluster")]
    OtherCluster,
    /// The manifest has expired, or this clock is fast.
    #[error("manifest expired")]
    Expired,
    /// The manifest would be valid for longer than allowed, or this clock is slow.
    #[error("the manifest is valid for longer than the accepted maximum of {limit} s")]
    FarFuture {
        /// The limit, in seconds.
        limit: u64,
    },
    /// A newer epoch was seen before. The record is a replay, or DNS is late.
    #[error("the manifest's epoch {found} is older than {held}, which was seen before")]
    OldEpoch {
        /// The epoch of the refused manifest.
        found: u64,
        /// The newest epoch seen.
        held: u64,
    },
    /// The signer names two leaders for one epoch.
    #[error("two manifests of epoch {epoch} name different leaders")]
    Equivocation {
        /// The epoch of both.
        epoch: u64,
    },
}

impl ManifestError {
    /// Every code that [`ManifestError::code`] can give, in the order of the checks.
    pub const CODES: [&'static str; 14] = [
        "manifest_too_long",
        "manifest_too_many_fields",
        "manifest_malformed",
        "manifest_field_missing",
        "manifest_field_repeated",
        "manifest_field_value",
        "manifest_leader_url",
        "manifest_version",
        "manifest_signature",
        "manifest_other_cluster",
        "manifest_expired",
        "manifest_far_future",
        "manifest_old_epoch",
        "manifest_equivocation",
    ];

    /// The reason code: stable, snake case, one of [`ManifestError::CODES`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "manifest_too_long",
            Self::TooManyFields => "manifest_too_many_fields",
            Self::Malformed(_) => "manifest_malformed",
            Self::Missing(_) => "manifest_field_missing",
            Self::Repeated(_) => "manifest_field_repeated",
            Self::Value { .. } => "manifest_field_value",
            Self::LeaderUrl(_) => "manifest_leader_url",
            Self::Version => "manifest_version",
            Self::Signature { .. } => "manifest_signature",
            Self::OtherCluster => "manifest_other_cluster",
            Self::Expired => "manifest_expired",
            Self::FarFuture { .. } => "manifest_far_future",
            Self::OldEpoch { .. } => "manifest_old_epoch",
            Self::Equivocation { .. } => "manifest_equivocation",
        }
    }
}
