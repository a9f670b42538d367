//! Every way in which a manifest is refused.

use super::EthAddress;
use crate::limits::{MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN};

/// Why a manifest is refused. None holds bytes of the record: it may be anybody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More than [`MAX_MANIFEST_LEN`].
    #[error("the manifest has more than {MAX_MANIFEST_LEN} bytes")]
    TooLong,
    /// More than [`MAX_MANIFEST_FIELDS`].
    #[error("the manifest has more than {MAX_MANIFEST_FIELDS} fields")]
    TooManyFields,
    /// It is not a list of `key=value` in printable ASCII.
    #[error("malformed manifest: {0}")]
    Malformed(&'static str),
    /// A required field is not there.
    #[error("the manifest has no {0}")]
    Missing(&'static str),
    /// A field is there more than once; an unknown one has no name here.
    #[error("the manifest has {0} more than once")]
    Repeated(&'static str),
    /// A field's value has another form than it should.
    #[error("the manifest's {name} is not {expected}")]
    Value {
        /// Which field.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The leader's URL names no host that may be connected to.
    #[error("the manifest's leader_url is refused: {0}")]
    LeaderUrl(&'static str),
    /// Another version than 1.
    #[error("the manifest is of another version than 1")]
    Version,
    /// It is not signed by the trusted address.
    #[error("manifest signature verification failed")]
    Signature {
        /// Who did sign it, if it is a signature at all.
        recovered: Option<EthAddress>,
    },
    /// It is of another cluster than the one that is wanted, or that was followed so far.
    #[error("the manifest is of another cluster")]
    OtherCluster,
    /// Its time is over, or this clock is fast.
    #[error("manifest expired")]
    Expired,
    /// It would be believed for longer than is allowed, or this clock is slow.
    #[error("the manifest is valid for longer than {limit} s, the most that is accepted")]
    FarFuture {
        /// Seconds.
        limit: u64,
    },
    /// A newer epoch was seen before: it is a replay, or DNS is behind.
    #[error("the manifest's epoch {found} is older than {held}, which was seen before")]
    OldEpoch {
        /// Of the refused manifest.
        found: u64,
        /// Of the newest one.
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
