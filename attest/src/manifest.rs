//! The leader manifest: a signed DNS record that names the leading instance of a cluster.
//!
//! It is a TXT record at `_teesql-leader.<cluster domain>`. DNS is not authenticated, so nothing in a
//! record is used before its signature verifies under the one address that the client is configured to
//! trust. [`Manifest::parse`] gives an [`UnverifiedManifest`], which shows its signed text and nothing else.
//! Only [`UnverifiedManifest::verify`] makes a [`Manifest`] with a [`Target`] in it. The manifest decides
//! where to connect, never whom to trust: the leader proves itself by its quote.
//!
//! ```text
//! cluster=0x<40 hex>;epoch=<uint>;leader_instance=<hex>;leader_url=<url>;v=1;valid_until=<unix>;sig=0x<130 hex>
//! ```
//!
//! Fields may come in any order; this one is published, since it is that of the signed text. Several publishers may
//! each have their record there: [`newest_of`] takes the valid one with the highest epoch.
//!
//! The signed text is the record without `sig`: its pairs sorted by key and joined with `;`, with `cluster`
//! and `leader_instance` in lower case. Unknown fields are signed like all others, so they stay in the text
//! and are otherwise ignored.
//!
//! Sans-I/O: nothing here resolves names, reads a clock or draws random numbers. A record has at most
//! [`MAX_MANIFEST_LEN`] bytes and [`MAX_MANIFEST_FIELDS`] fields.

mod address;
mod error;
mod fields;
mod leader;
mod leader_state;
mod records;
mod signature;
mod unsigned;

use std::time::Duration;

pub use address::{EthAddress, EthAddressError};
pub use error::ManifestError;
pub use leader::{LeaderInstance, LeaderUrl, Target};
pub use leader_state::{LeaderState, LeaderUpdate};
pub use records::newest_of;
pub use signature::{KeyError, SigningKey};
pub use unsigned::UnsignedManifest;

use fields::Fields;
use signature::Signature;

pub use crate::limits::{
    MAX_INSTANCE_DIGITS, MAX_LEADER_URL_LEN, MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN,
    MAX_MANIFEST_RECORDS,
};

/// Default limit on the validity of a manifest: 7 days. The epoch protects a running client from replay.
/// A client that has just started knows no epoch, and accepts a replayed manifest until it expires.
pub const DEFAULT_MAX_VALIDITY: Duration = Duration::from_secs(7 * 86_400);

/// Which manifests are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPolicy {
    /// The only accepted signer.
    pub signer: EthAddress,
    /// The cluster that the manifest must be for. `None` is any, which is safe only if the signer has one
    /// cluster, since DNS can serve the manifest of another.
    pub cluster: Option<EthAddress>,
    /// How far `valid_until` may be in the future. `None` is no limit.
    pub max_validity: Option<Duration>,
}

impl ManifestPolicy {
    /// Accepts any cluster of `signer`, for at most [`DEFAULT_MAX_VALIDITY`].
    #[must_use]
    pub fn for_signer(signer: EthAddress) -> Self {
        Self {
            signer,
            cluster: None,
            max_validity: Some(DEFAULT_MAX_VALIDITY),
        }
    }
}

/// Joins the character strings of one TXT record.
///
/// # Errors
/// [`ManifestError::TooLong`]; [`ManifestError::Malformed`] if they are not UTF-8.
pub fn join_chunks(chunks: &[&[u8]]) -> Result<String, ManifestError> {
    if chunks.iter().map(|chunk| chunk.len()).sum::<usize>() > MAX_MANIFEST_LEN {
        return Err(ManifestError::TooLong);
    }
    String::from_utf8(chunks.concat()).map_err(|_| fields::NOT_ASCII)
}

/// A well-formed manifest whose signature is not verified. Anyone may have written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedManifest {
    fields: UnsignedManifest,
    signed_text: String,
    signature: Signature,
}

impl UnverifiedManifest {
    /// The text that the signature is over, to show what did not verify.
    #[must_use]
    pub fn signed_text(&self) -> &str {
        &self.signed_text
    }

    /// Checks the signer, the cluster and the validity. `now` is in Unix seconds.
    ///
    /// # Errors
    /// In this order: [`ManifestError::Signature`], [`ManifestError::OtherCluster`],
    /// [`ManifestError::Expired`] unless `valid_until > now`, [`ManifestError::FarFuture`].
    pub fn verify(&self, policy: &ManifestPolicy, now: u64) -> Result<Manifest, ManifestError> {
        let recovered = self.signature.signer_of(&self.signed_text);
        if recovered != Some(policy.signer) {
            return Err(ManifestError::Signature { recovered });
        }
        if policy.cluster.is_some_and(|c| c != self.fields.cluster) {
            return Err(ManifestError::OtherCluster);
        }
        let left = self.fields.valid_until.saturating_sub(now);
        if left == 0 {
            return Err(ManifestError::Expired);
        }
        match policy.max_validity.map(|limit| limit.as_secs()) {
            Some(limit) if left > limit => Err(ManifestError::FarFuture { limit }),
            Some(_) | None => Ok(Manifest {
                fields: self.fields.clone(),
                signer: policy.signer,
            }),
        }
    }
}

/// A manifest with a valid signature of the trusted address, in date when it was verified.
///
/// Made by [`UnverifiedManifest::verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    fields: UnsignedManifest,
    signer: EthAddress,
}

impl Manifest {
    /// Parses a record whose chunks are joined. It must have every field of version 1 exactly once, no empty
    /// field, and printable ASCII only.
    ///
    /// # Errors
    /// A [`ManifestError`] about the form, then the fields, then the version.
    pub fn parse(txt: &str) -> Result<UnverifiedManifest, ManifestError> {
        let fields = Fields::split(txt)?;
        let version = fields.uint("v")?;
        let read = UnverifiedManifest {
            fields: UnsignedManifest {
                cluster: fields.parse("cluster")?,
                leader_instance: fields.parse("leader_instance")?,
                leader_url: fields.parse("leader_url")?,
                epoch: fields.uint("epoch")?,
                valid_until: fields.uint("valid_until")?,
            },
            signature: fields.parse("sig")?,
            signed_text: fields.signed_text(),
        };
        match version {
            1 => Ok(read),
            _ => Err(ManifestError::Version),
        }
    }

    /// The cluster's address.
    #[must_use]
    pub fn cluster(&self) -> EthAddress {
        self.fields.cluster
    }

    /// The leading instance.
    #[must_use]
    pub fn leader_instance(&self) -> &LeaderInstance {
        &self.fields.leader_instance
    }

    /// The leader's URL.
    #[must_use]
    pub fn leader_url(&self) -> &LeaderUrl {
        &self.fields.leader_url
    }

    /// Host and port to connect to.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.fields.leader_url.target()
    }

    /// A number that grows with each change of leader.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.fields.epoch
    }

    /// The first second at which it is invalid, in Unix seconds.
    #[must_use]
    pub fn valid_until(&self) -> u64 {
        self.fields.valid_until
    }

    /// The address that signed it.
    #[must_use]
    pub fn signer(&self) -> EthAddress {
        self.signer
    }
}
