//! EIP-191 signatures over secp256k1: signing, and recovering the signer.
//!
//! The cryptography is k256's, keccak-256 is sha3's. A signature is `r || s || v`, where v is 27 or 28, or
//! 0 or 1. A signature with s in the upper half of the group order is refused: anyone can compute it from
//! a valid one without the key (malleability). [EIP-2; EIP-191, version 0x45]

use std::fmt;
use std::str::FromStr;

use k256::ecdsa::{RecoveryId, VerifyingKey};
use sha3::{Digest, Keccak256};
use zeroize::Zeroizing;

use super::{EthAddress, ManifestError};

/// 65 bytes: `r || s || v`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Signature([u8; 65]);

impl Signature {
    /// Recovers the address whose key signed `text`; `None` if the signature is invalid.
    pub(super) fn signer_of(&self, text: &str) -> Option<EthAddress> {
        let (rs, v) = self.0.split_at_checked(64)?;
        let recovery = match v {
            [v @ (0 | 1)] => RecoveryId::from_byte(*v)?,
            [v @ (27 | 28)] => RecoveryId::from_byte(v.checked_sub(27)?)?,
            _ => return None,
        };
        let signature = k256::ecdsa::Signature::from_slice(rs).ok()?;
        if signature.normalize_s().is_some() {
            return None;
        }
        let key = VerifyingKey::recover_from_prehash(&digest(text), &signature, recovery).ok()?;
        Some(address_of(&key))
    }
}

impl FromStr for Signature {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let mut bytes = [0; 65];
        let decoded = text
            .strip_prefix("0x")
            .map(|digits| hex::decode_to_slice(digits, &mut bytes));
        match decoded {
            Some(Ok(())) => Ok(Self(bytes)),
            Some(Err(_)) | None => Err(ManifestError::Value {
                name: "sig",
                expected: "0x and 130 hex digits",
            }),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

/// The hash of `text` that is signed.
fn digest(text: &str) -> [u8; 32] {
    Keccak256::new()
        .chain_update(b"\x19Ethereum Signed Message:\n")
        .chain_update(text.len().to_string())
        .chain_update(text)
        .finalize()
        .into()
}

/// The last 20 bytes of keccak-256 over `x || y`.
fn address_of(key: &VerifyingKey) -> EthAddress {
    let point = key.to_encoded_point(false);
    let hash = Keccak256::digest(point.as_bytes().get(1..).unwrap_or_default());
    EthAddress(hash.last_chunk().copied().unwrap_or_default())
}

/// An operator's key. Wiped when dropped.
pub struct SigningKey(k256::ecdsa::SigningKey);

/// A text that is not a key. Does not hold the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signing key is 64 hex digits (32 bytes), not zero and below the order of secp256k1")]
pub struct KeyError;

impl SigningKey {
    /// Parses a key from hex, with or without `0x`. Trims white space, such as a file's final newline. The
    /// caller has to wipe its own copy.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim_ascii();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(digits, bytes.as_mut_slice()).map_err(|_| KeyError)?;
        let key = k256::ecdsa::SigningKey::from_slice(bytes.as_slice());
        key.map(Self).map_err(|_| KeyError)
    }

    /// The address of the key.
    #[must_use]
    pub fn address(&self) -> EthAddress {
        address_of(self.0.verifying_key())
    }

    /// Signs `text` deterministically (RFC 6979), with s in the lower half and v 27 or 28.
    pub(super) fn sign(&self, text: &str) -> Option<Signature> {
        let (signature, recovery) = self.0.sign_prehash_recoverable(&digest(text)).ok()?;
        let v = recovery.to_byte().checked_add(27)?;
        let bytes = [&signature.to_bytes()[..], &[v]].concat();
        bytes.try_into().ok().map(Signature)
    }
}

impl fmt::Debug for SigningKey {
    /// Shows the address only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the documentation of web3.js, `web3.eth.accounts.sign`.
    #[test]
    fn public_test_vector_of_eip_191() {
        let key = "0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
        let key = SigningKey::from_hex(key).unwrap();
        assert_eq!(
            key.address().to_string(),
            "0x2c7536e3605d9c16a7a3d7b1898e529396a65c23"
        );
        let hash = "1da44b586eb0729ff70a73c326926f6ed5a25f5b056e7f47fbc6e58d86871655";
        assert_eq!(hex::encode(digest("Some data")), hash);
        let signature = key.sign("Some data").unwrap();
        assert_eq!(
            signature.to_string(),
            "0xb91467e570a6466aa9e9876cbcd013baba02900b8979d43fe208a4a4f339f5fd\
             6007e74cd82e037b800186422fc2da167c747ef045e5d18a5f5d4300f8e1a0291c"
        );
        assert_eq!(signature.signer_of("Some data"), Some(key.address()));
        assert_ne!(signature.signer_of("Some dat4"), Some(key.address()));
    }

    /// (r, n - s) with the other v verifies too, and can be computed without the key.
    #[test]
    fn refuses_a_malleated_signature() {
        let key = SigningKey::from_hex(&"11".repeat(32)).unwrap();
        let Signature(mut bytes) = key.sign("text").unwrap();
        let s = k256::ecdsa::Signature::from_slice(&bytes[..64])
            .unwrap()
            .s();
        bytes[32..64].copy_from_slice(&(-*s).to_bytes());
        bytes[64] ^= 27 ^ 28;
        assert_eq!(Signature(bytes).signer_of("text"), None);
    }

    #[test]
    fn accepts_both_encodings_of_the_recovery_id() {
        let key = SigningKey::from_hex(&"11".repeat(32)).unwrap();
        let signature = key.sign("text").unwrap();
        let signed = |v: u8| {
            let mut with = signature.clone();
            with.0[64] = v;
            with.signer_of("text") == Some(key.address())
        };
        let accepted: Vec<u8> = (0..=255).filter(|v| signed(*v)).collect();
        let v = signature.0[64];
        assert_eq!(accepted, [v - 27, v]);
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let secret = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
        let shown = format!("{:?}", SigningKey::from_hex(secret).unwrap());
        assert_eq!(
            shown,
            "SigningKey(of 0x2c7536e3605d9c16a7a3d7b1898e529396a65c23)"
        );
        for wrong in [
            "",
            "0x",
            "11",
            &"00".repeat(32),
            &"ff".repeat(32),
            &"1g".repeat(32),
        ] {
            assert_eq!(
                SigningKey::from_hex(wrong).unwrap_err(),
                KeyError,
                "{wrong}"
            );
        }
        assert!(SigningKey::from_hex(&format!(" 0x{secret}\n")).is_ok());
    }
}
