//! Secret types with constant-time comparison.
//!
//! They exist so that no other module holds a secret as a plain string or compares one with `==`. A
//! secret must never be printed, and the time of a comparison must never depend on its bytes.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of a cluster secret in bytes.
pub const CLUSTER_SECRET_LEN: usize = 32;

/// A cluster secret: 32 bytes, written as 64 hex characters.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecret([u8; CLUSTER_SECRET_LEN]);

/// Why a text is not a cluster secret. Never contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterSecretError {
    /// A number of characters other than 64.
    #[error("a cluster secret has 64 hex characters, not {characters}")]
    Length {
        /// The number of characters.
        characters: usize,
    },
    /// A character that is not a hex digit.
    #[error("a cluster secret has 64 hex characters, but character {position} is not a hex digit")]
    NotHex {
        /// The position of the first such character, counted from 1.
        position: usize,
    },
}

impl FromStr for ClusterSecret {
    type Err = ClusterSecretError;

    /// Parses 64 hex characters of either case.
    ///
    /// # Errors
    /// [`ClusterSecretError`], which never contains the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self)
    }
}

impl ClusterSecret {
    /// Creates a secret from random bytes that the caller drew.
    #[must_use]
    pub fn from_bytes(bytes: [u8; CLUSTER_SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// The secret as 64 lower-case hex characters, for the code that distributes it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        encode_hex(&self.0)
    }

    /// The spellings under which a client may know the secret: in lower case and in upper case.
    /// SCRAM derives its keys from the text, so each has separate keys there.
    #[must_use]
    pub fn spellings(&self) -> [Password; 2] {
        let lower = self.to_text();
        let mut upper = lower.clone();
        upper.make_ascii_uppercase();
        [lower, upper].map(|text| Password::new(text.as_bytes()))
    }

    /// Whether `presented`, the text that the client sent as its password, is this secret.
    ///
    /// Accepts 64 hex characters of either case. The time does not depend on the secret; a text
    /// with a wrong length or other characters costs the same work and never matches.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> Choice {
        let (mut bytes, valid) = decode_hex(presented);
        let equal = self.0.ct_eq(&bytes);
        bytes.zeroize();
        equal & valid
    }
}

impl ConstantTimeEq for ClusterSecret {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// Redacts the secret.
impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(redacted)")
    }
}

/// Parses 64 hex characters of either case.
pub(crate) fn parse_hex(text: &str) -> Result<[u8; CLUSTER_SECRET_LEN], ClusterSecretError> {
    let characters = text.chars().count();
    if characters != 2 * CLUSTER_SECRET_LEN {
        return Err(ClusterSecretError::Length { characters });
    }
    if let Some(at) = text.chars().position(|c| !c.is_ascii_hexdigit()) {
        return Err(ClusterSecretError::NotHex { position: at + 1 });
    }
    let (bytes, _valid) = decode_hex(text.as_bytes());
    Ok(bytes)
}

/// Encodes 32 bytes as 64 lower-case hex characters. Allocated once at full size: growing would
/// leave copies in freed memory.
pub(crate) fn encode_hex(bytes: &[u8; CLUSTER_SECRET_LEN]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * CLUSTER_SECRET_LEN));
    for nibble in bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
        text.extend(char::from_digit(nibble.into(), 16));
    }
    text
}

/// Decodes 64 hex characters without a branch or table look-up that depends on them.
fn decode_hex(text: &[u8]) -> ([u8; CLUSTER_SECRET_LEN], Choice) {
    let mut bytes = [0; CLUSTER_SECRET_LEN];
    let mut valid = Choice::from(u8::from(text.len() == 2 * CLUSTER_SECRET_LEN));
    let mut digits = text.iter().copied().chain(std::iter::repeat(b'0'));
    for byte in &mut bytes {
        for _ in 0..2 {
            let (value, is_digit) = hex_digit(digits.next().unwrap_or(b'0'));
            *byte = (*byte << 4) | value;
            valid &= is_digit;
        }
    }
    (bytes, valid)
}

fn hex_digit(character: u8) -> (u8, Choice) {
    let number = character.wrapping_sub(b'0');
    // ASCII letters of the two cases differ in bit 5 only.
    let letter = (character | 0x20).wrapping_sub(b'a');
    let is_number = below(number, 10);
    let is_letter = below(letter, 6);
    let value = (number & mask(is_number)) | (letter.wrapping_add(10) & mask(is_letter));
    (value, is_number | is_letter)
}

/// Whether `value < limit`, computed from the borrow of a subtraction.
fn below(value: u8, limit: u8) -> Choice {
    let borrow = u16::from(value).wrapping_sub(u16::from(limit)) >> 15;
    Choice::from(u8::from(borrow == 1))
}

fn mask(choice: Choice) -> u8 {
    choice.unwrap_u8().wrapping_neg()
}

/// A Postgres password of any bytes. Postgres itself refuses one that contains a NUL.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password {
    bytes: Vec<u8>,
    // Cached so that a comparison hashes only the presented password.
    digest: [u8; 32],
}

impl Password {
    /// Takes ownership of a password.
    #[must_use]
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        let bytes = password.into();
        let digest = Sha256::digest(&bytes).into();
        Self { bytes, digest }
    }

    /// Whether `presented` is this password.
    ///
    /// Compares digests, so that the time reveals neither the bytes nor the length of the password.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> Choice {
        let mut digest: [u8; 32] = Sha256::digest(presented).into();
        let equal = self.digest.ct_eq(&digest);
        digest.zeroize();
        equal
    }

    /// The password itself, for the login.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl ConstantTimeEq for Password {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.digest.ct_eq(&other.digest)
    }
}

/// Redacts the password, including its length.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_text_round_trip() {
        let mut bytes = [0xa0; CLUSTER_SECRET_LEN];
        bytes[31] = 0x0f;
        let text = ClusterSecret::from_bytes(bytes).to_text();
        assert_eq!(*text, format!("{}0f", "a0".repeat(31)));
        let parsed: ClusterSecret = text.parse().unwrap();
        assert!(bool::from(parsed.matches(text.as_bytes())));
    }

    #[test]
    fn a_secret_has_a_spelling_in_each_case() {
        let secret: ClusterSecret = "aB01".repeat(16).parse().unwrap();
        let [lower, upper] = secret.spellings();
        assert_eq!(lower.as_bytes(), "ab01".repeat(16).as_bytes());
        assert_eq!(upper.as_bytes(), "AB01".repeat(16).as_bytes());
    }
}
