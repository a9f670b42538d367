//! The passwords that all members of a cluster derive from one key, by HKDF-SHA-256. [RFC 5869]
//!
//! The guest agent derives the same keys on all instances of one application. The cluster key
//! exists for clusters whose members are different applications. A derived password has the same
//! form as one from the guest agent: 32 bytes in lower-case hex.
//!
//! The input key is the cluster key, the salt is empty, and the info is the ASCII text
//! `teesql-cluster-key/1/` with the password's label after it. OpenSSL computes the same:
//!
//! ```text
//! openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:<key> \
//!   -kdfopt info:teesql-cluster-key/1/pg/superuser HKDF
//! ```
//!
//! A label must never change its password: all members, and the stored backups, depend on it. The
//! number in the info is the version, for a derivation that replaces this one.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::scram::hmac;
use crate::secret::{ClusterSecretError, Password, encode_hex, parse_hex};

/// Length of a cluster key in bytes: the output of SHA-256.
pub const CLUSTER_KEY_LEN: usize = 32;

/// HKDF's salt where there is none. [RFC 5869, section 2.2]
const NO_SALT: [u8; CLUSTER_KEY_LEN] = [0; CLUSTER_KEY_LEN];

/// The first part of HKDF's info, with the version.
const INFO_PREFIX: &str = "teesql-cluster-key/1/";

/// The key of a cluster: 32 random bytes, written as 64 hex characters. Not a cluster secret, with
/// which clients log in.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ClusterKey([u8; CLUSTER_KEY_LEN]);

/// Why a text is not a cluster key. Never contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterKeyError {
    /// A number of characters other than 64.
    #[error("a cluster key has 64 hex characters, not {characters}")]
    Length {
        /// The number of characters.
        characters: usize,
    },
    /// A character that is not a hex digit.
    #[error("a cluster key has 64 hex characters, but character {position} is not a hex digit")]
    NotHex {
        /// The position of the first such character, counted from 1.
        position: usize,
    },
}

/// What a derived password is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasswordLabel {
    /// The role `postgres`.
    Superuser,
    /// The role `teesql_read`.
    Read,
    /// The role `teesql_readwrite`.
    ReadWrite,
    /// The role `replicator`, with which standbys stream from the leader.
    Replicator,
    /// The role `rewind`, with which pg_rewind reads the leader's files.
    Rewind,
    /// The passphrase with which backups are encrypted.
    BackupEncryption,
}

impl PasswordLabel {
    /// All labels.
    pub const ALL: [Self; 6] = [
        Self::Superuser,
        Self::Read,
        Self::ReadWrite,
        Self::Replicator,
        Self::Rewind,
        Self::BackupEncryption,
    ];

    /// The label as text. Also the path of the key that the guest agent derives (`GetKey`) where
    /// there is no cluster key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Superuser => "pg/superuser",
            Self::Read => "pg/teesql_read",
            Self::ReadWrite => "pg/teesql_readwrite",
            Self::Replicator => "pg/replicator",
            Self::Rewind => "pg/rewind",
            Self::BackupEncryption => "backup/encryption",
        }
    }
}

impl FromStr for ClusterKey {
    type Err = ClusterKeyError;

    /// Parses 64 hex characters of either case.
    ///
    /// # Errors
    /// [`ClusterKeyError`], which never contains the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self).map_err(|error| match error {
            ClusterSecretError::Length { characters } => ClusterKeyError::Length { characters },
            ClusterSecretError::NotHex { position } => ClusterKeyError::NotHex { position },
        })
    }
}

impl ClusterKey {
    /// Creates a key from random bytes that the caller drew.
    #[must_use]
    pub fn from_bytes(bytes: [u8; CLUSTER_KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Derives a password: 64 lower-case hex characters, always the same for one key and label.
    #[must_use]
    pub fn password(&self, label: PasswordLabel) -> Password {
        let info = [INFO_PREFIX, label.as_str()].concat();
        let derived = hkdf(&NO_SALT, &self.0, info.as_bytes());
        Password::new(encode_hex(&derived).as_bytes())
    }
}

/// Redacts the key.
impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(redacted)")
    }
}

/// The first 32 bytes of HKDF-SHA-256's output: one block, so that the expansion is a single HMAC
/// with the counter 1.
fn hkdf(salt: &[u8; CLUSTER_KEY_LEN], key: &[u8], info: &[u8]) -> Zeroizing<[u8; CLUSTER_KEY_LEN]> {
    let pseudorandom_key = Zeroizing::new(hmac(salt, key));
    let message = [info, &[1]].concat();
    Zeroizing::new(hmac(&pseudorandom_key, &message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hkdf_reproduces_rfc_5869() {
        // Appendix A.1: salt and info. The first 32 of 42 bytes.
        // HMAC pads a short salt with zeros.
        let mut salt = NO_SALT;
        for (slot, byte) in salt.iter_mut().zip(0..13) {
            *slot = byte;
        }
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        assert_eq!(
            hex(hkdf(&salt, &[0x0b; 22], &info).as_slice()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
        // Appendix A.3: neither salt nor info.
        assert_eq!(
            hex(hkdf(&NO_SALT, &[0x0b; 22], &[]).as_slice()),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        );
    }
}
