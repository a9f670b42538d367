//! The leader manifest: which instance of a cluster leads, signed by the cluster's operator.
//!
//! It is a DNS TXT record at `_teesql-leader.<cluster domain>`, and DNS is whoever answers first. So
//! nothing that it says is given out before the signature is that of the one address which the client
//! was told to trust: [`Manifest::parse`] gives an [`UnverifiedManifest`], which shows its signed text and
//! nothing else, and only [`UnverifiedManifest::verify`] makes a [`Manifest`] with a [`Target`] in it. The
//! manifest chooses where to connect, never whom to trust: the leader proves itself by its quote.
//!
//! ```text
//! v=1;cluster=0x<40 hex>;leader_instance=<hex>;leader_url=<url>;epoch=<uint>;valid_until=<unix>;sig=0x<130 hex>
//! ```
//!
//! Signed is the text without `sig`, its pairs sorted by key and joined with `;`, `cluster` and
//! `leader_instance` in lower case. Fields that are not known are signed like all others, so they are
//! kept in the text and not looked at. [contract, section 7]
//!
//! Nothing here resolves names, reads a clock or draws randomness. A record has at most [`MAX_MANIFEST_LEN`]
//! bytes and [`MAX_MANIFEST_FIELDS`] fields.

mod address;
mod error;
mod fields;
mod leader;
mod leader_state;
mod signature;
mod unsigned;

use std::time::Duration;

pub use address::{EthAddress, EthAddressError};
pub use error::ManifestError;
pub use leader::{LeaderInstance, LeaderUrl, Target};
pub use leader_state::{LeaderState, LeaderUpdate};
pub use signature::{KeyError, SigningKey};
pub use unsigned::UnsignedManifest;

use fields::Fields;
use signature::Signature;

pub use crate::limits::{
    MAX_INSTANCE_DIGITS, MAX_LEADER_URL_LEN, MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN,
};

/// The longest accepted validity, unless told otherwise: 7 days. The epoch keeps a running client from
/// going back, but a client that starts knows no epoch, and believes a replayed manifest to its end.
pub const DEFAULT_MAX_VALIDITY: Duration = Duration::from_secs(7 * 86_400);

/// Whose manifests are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPolicy {
    /// The only signer that is believed.
    pub signer: EthAddress,
    /// The cluster that it must be about. `None` is any: safe only where the signer has one cluster,
    /// since DNS can serve the manifest of another.
    pub cluster: Option<EthAddress>,
    /// How far `valid_until` may lie in the future. `None` is any distance.
    pub max_validity: Option<Duration>,
}

impl ManifestPolicy {
    /// Any cluster of `signer`, for at most [`DEFAULT_MAX_VALIDITY`].
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
/// [`ManifestError::TooLong`]; [`ManifestError::Malformed`] for what is not ASCII.
pub fn join_chunks(chunks: &[&[u8]]) -> Result<String, ManifestError> {
    if chunks.iter().map(|chunk| chunk.len()).sum::<usize>() > MAX_MANIFEST_LEN {
        return Err(ManifestError::TooLong);
    }
    String::from_utf8(chunks.concat()).map_err(|_| fields::NOT_ASCII)
}

/// A manifest that has the right form. Anybody may have written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedManifest {
    fields: UnsignedManifest,
    signed_text: String,
    signature: Signature,
}

impl UnverifiedManifest {
    /// What the signature is over: for whoever wants to see what did not verify.
    #[must_use]
    pub fn signed_text(&self) -> &str {
        &self.signed_text
    }

    /// Who signed it, then for which cluster, then until when; `now` in unix seconds.
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

/// A manifest that the trusted address has signed, and that was in date when it was verified.
///
/// Made by [`UnverifiedManifest::verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    fields: UnsignedManifest,
    signer: EthAddress,
}

impl Manifest {
    /// Reads a record whose chunks are joined: every field of version 1 exactly once, nothing empty
    /// between two `;`, printable ASCII only.
    ///
    /// # Errors
    /// [`ManifestError`] about the form, the fields, and last the version.
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

    /// The instance that leads.
    #[must_use]
    pub fn leader_instance(&self) -> &LeaderInstance {
        &self.fields.leader_instance
    }

    /// Where it is reached, as it was written.
    #[must_use]
    pub fn leader_url(&self) -> &LeaderUrl {
        &self.fields.leader_url
    }

    /// Host and port to connect to.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.fields.leader_url.target()
    }

    /// Grows with each change of leader.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.fields.epoch
    }

    /// The first second at which it is not believed any more, in unix seconds.
    #[must_use]
    pub fn valid_until(&self) -> u64 {
        self.fields.valid_until
    }

    /// Who signed it.
    #[must_use]
    pub fn signer(&self) -> EthAddress {
        self.signer
    }
}
