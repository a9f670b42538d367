//! The launch token: shows that the settings come from the operator, although the platform that passes them on is not
//! trusted.
//!
//! dstack encrypts the variables of a deployment, but does not authenticate them: their host knows the public key and can
//! encrypt others. The deployment's text is measured, so the SHA-256 of the token in it cannot be changed, and only
//! settings that contain the token itself are accepted. A token must never be logged, and must not be short enough to be
//! found by trying, since its hash is public.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Shortest token in bytes. 32 letters or digits, as dstack's own scripts draw, have 190 bits.
const MIN_TOKEN: usize = 32;
/// Length of a SHA-256 in bytes.
const DIGEST_LEN: usize = 32;

/// A launch token.
pub(crate) struct LaunchToken(Zeroizing<Vec<u8>>);

/// The SHA-256 of the launch token that is required.
#[derive(Clone, Copy)]
pub(crate) struct LaunchTokenDigest([u8; DIGEST_LEN]);

/// The token is too short.
#[derive(Debug, thiserror::Error)]
#[error(
    "a launch token has at least {MIN_TOKEN} characters, since its hash is public and short ones can be guessed: \
     teesql-sidecar secret makes one"
)]
pub(crate) struct ShortToken;

/// The text is not a SHA-256.
#[derive(Debug, thiserror::Error)]
#[error("expected a SHA-256: 64 hex characters")]
pub(crate) struct InvalidDigest;

impl FromStr for LaunchToken {
    type Err = ShortToken;

    fn from_str(text: &str) -> Result<Self, ShortToken> {
        if text.len() < MIN_TOKEN {
            return Err(ShortToken);
        }
        Ok(Self(text.as_bytes().to_vec().into()))
    }
}

impl FromStr for LaunchTokenDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let mut bytes = [0; DIGEST_LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidDigest)?;
        Ok(Self(bytes))
    }
}

impl LaunchTokenDigest {
    /// Whether this is the SHA-256 of `token`. The time does not depend on where the hashes differ.
    pub(crate) fn matches(self, token: &LaunchToken) -> bool {
        let digest: [u8; DIGEST_LEN] = Sha256::digest(token.0.as_slice()).into();
        digest.ct_eq(&self.0).into()
    }
}

impl fmt::Debug for LaunchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaunchToken(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hash_of_the_token_matches() {
        // printf %s 0123456789abcdef0123456789abcdef | sha256sum
        let digest = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";
        let digest: LaunchTokenDigest = digest.parse().unwrap();
        let token: LaunchToken = "0123456789abcdef0123456789abcdef".parse().unwrap();
        assert!(digest.matches(&token));
        let other: LaunchToken = "0123456789abcdef0123456789abcdeF".parse().unwrap();
        assert!(!digest.matches(&other));
    }

    #[test]
    fn a_short_token_and_a_malformed_digest_are_refused() {
        assert!(
            "0123456789abcdef0123456789abcde"
                .parse::<LaunchToken>()
                .is_err()
        );
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
            assert!(text.parse::<LaunchTokenDigest>().is_err(), "{text}");
        }
    }
}
