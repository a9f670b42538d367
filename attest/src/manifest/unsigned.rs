//! A manifest before it is signed: for operators and tests.

use super::{EthAddress, LeaderInstance, LeaderUrl, ManifestError, SigningKey};

/// The fields of a manifest of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedManifest {
    /// The cluster's address.
    pub cluster: EthAddress,
    /// The leading instance.
    pub leader_instance: LeaderInstance,
    /// The leader's URL.
    pub leader_url: LeaderUrl,
    /// A number that grows with each change of leader.
    pub epoch: u64,
    /// The first second at which it is invalid, in Unix seconds.
    pub valid_until: u64,
}

impl UnsignedManifest {
    /// The text that is signed: the pairs in the order of their keys.
    #[must_use]
    pub fn signed_text(&self) -> String {
        format!(
            "cluster={};epoch={};leader_instance={};leader_url={};v=1;valid_until={}",
            self.cluster,
            self.epoch,
            self.leader_instance,
            self.leader_url.as_str(),
            self.valid_until,
        )
    }

    /// Signs it. Gives the record to publish in DNS: at most
    /// [`MAX_MANIFEST_LEN`](super::MAX_MANIFEST_LEN) bytes, in chunks of at most 255. Its fields are in the order of
    /// the signed text, with `sig` last: some clients hash what precedes `;sig=` as it is.
    ///
    /// # Errors
    /// [`ManifestError::Signature`] if the key cannot sign, which does not happen with a valid key.
    pub fn sign(&self, key: &SigningKey) -> Result<String, ManifestError> {
        let none = ManifestError::Signature { recovered: None };
        let text = self.signed_text();
        let signature = key.sign(&text).ok_or(none)?;
        Ok(format!("{text};sig={signature}"))
    }
}
