//! Secrets, and their comparison in constant time.
//!
//! It exists so that no other module holds a secret as a plain string or compares one with `==`. It
//! must never print a secret, and never let the time of a comparison depend on the secret's bytes.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a cluster secret.
pub const CLUSTER_SECRET_LEN: usize = 32;

/// A cluster secret: 32 bytes, written as 64 hex characters.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecret([u8; CLUSTER_SECRET_LEN]);

/// Text that is not a cluster secret. Never shows the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterSecretError {
    /// Another number of characters than 64.
    #[error("a cluster secret is 64 hex characters, and this has {characters} characters")]
    Length {
        /// Characters found.
        characters: usize,
    },
    /// A character that is no hex digit.
    #[error("a cluster secret is 64 hex characters, and character {position} is no hex digit")]
    NotHex {
        /// Where the first such character stands, counted from 1.
        position: usize,
    },
}

impl FromStr for ClusterSecret {
    type Err = ClusterSecretError;

    /// Parses 64 hex characters of either case.
    ///
    /// # Errors
    /// [`ClusterSecretError`], which does not hold the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let characters = text.chars().count();
        if characters != 2 * CLUSTER_SECRET_LEN {
            return Err(ClusterSecretError::Length { characters });
        }
        if let Some(at) = text.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(ClusterSecretError::NotHex { position: at + 1 });
        }
        let (bytes, _valid) = decode_hex(text.as_bytes());
        Ok(Self(bytes))
    }
}

impl ClusterSecret {
    /// A new secret, of random bytes that the caller drew.
    #[must_use]
    pub fn from_bytes(bytes: [u8; CLUSTER_SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// Its 64 hex characters, in lower case, for the one who hands it out.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * CLUSTER_SECRET_LEN));
        for nibble in self.0.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
            text.extend(char::from_digit(nibble.into(), 16));
        }
        text
    }

    /// Whether `presented`, the text that the client sent as its password, is this secret.
    ///
    /// 64 hex characters of either case. Takes the same time whatever the secret is; text of a wrong
    /// length or with other characters costs the same work and is never equal.
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

/// Shows nothing of the secret.
impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(redacted)")
    }
}

/// Decodes 64 hex characters, without a branch or a table look-up on any of them.
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
    // Bit 5 is all that tells ASCII letters of the two cases apart.
    let letter = (character | 0x20).wrapping_sub(b'a');
    let is_number = below(number, 10);
    let is_letter = below(letter, 6);
    let value = (number & mask(is_number)) | (letter.wrapping_add(10) & mask(is_letter));
    (value, is_number | is_letter)
}

/// Whether `value < limit`, from the borrow of a subtraction.
fn below(value: u8, limit: u8) -> Choice {
    let borrow = u16::from(value).wrapping_sub(u16::from(limit)) >> 15;
    Choice::from(u8::from(borrow == 1))
}

fn mask(choice: Choice) -> u8 {
    choice.unwrap_u8().wrapping_neg()
}

/// A Postgres password. Any bytes; one that holds a NUL is refused by Postgres itself.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password {
    bytes: Vec<u8>,
    // Kept so that a comparison hashes what was presented and nothing else.
    digest: [u8; 32],
}

impl Password {
    /// Takes the password over.
    #[must_use]
    pub fn new(password: impl Into<Vec<u8>>) -> Self {
        let bytes = password.into();
        let digest = Sha256::digest(&bytes).into();
        Self { bytes, digest }
    }

    /// Whether `presented` is this password.
    ///
    /// Digests are compared, so that neither time nor work shows the password's bytes or length.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> Choice {
        let mut digest: [u8; 32] = Sha256::digest(presented).into();
        let equal = self.digest.ct_eq(&digest);
        digest.zeroize();
        equal
    }

    /// The password itself, for the one who logs in with it.
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

/// Shows nothing of the password, not even its length.
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
}
