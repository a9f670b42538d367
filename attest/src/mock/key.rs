//! P-256 keys derived from a seed, with deterministic signatures (RFC 6979).

use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use sha2::{Digest, Sha256, Sha512};

use super::MockError;

/// Attempts to find a scalar below the curve's order. Each fails with a probability of 2^-32.
const MAX_TRIES: u8 = 8;

/// A P-256 key pair. It is public test material and needs no protection.
#[derive(Clone)]
pub struct Key {
    signing: SigningKey,
    /// SEC1, uncompressed: `04 || x || y`.
    point: Vec<u8>,
}

impl Key {
    /// Derives the key of `seed` and `label`. The result is always the same.
    ///
    /// # Errors
    /// [`MockError::Key`] with a probability of 2^-256.
    pub fn derive(seed: &[u8; 32], label: &str) -> Result<Self, MockError> {
        for counter in 0..MAX_TRIES {
            let scalar = Sha256::new()
                .chain_update(b"teesql mock key\0")
                .chain_update(seed)
                .chain_update([counter])
                .chain_update(label.as_bytes())
                .finalize();
            if let Ok(key) = SigningKey::from_bytes(&scalar) {
                return Ok(Self::from_signing(key));
            }
        }
        Err(MockError::Key("no scalar below the order".to_owned()))
    }

    /// Reads a key from PKCS#8 in PEM.
    ///
    /// # Errors
    /// [`MockError::Key`] if it is not a P-256 key.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, MockError> {
        use p256::pkcs8::DecodePrivateKey;
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|e| MockError::Key(e.to_string()))?;
        Ok(Self::from_signing(key))
    }

    fn from_signing(signing: SigningKey) -> Self {
        let point = signing
            .verifying_key()
            .to_encoded_point(false)
            .as_bytes()
            .to_vec();
        Self { signing, point }
    }

    /// The key as PKCS#8 in PEM.
    ///
    /// # Errors
    /// [`MockError::Key`], which does not occur for P-256.
    pub fn to_pkcs8_pem(&self) -> Result<String, MockError> {
        let pem = self.signing.to_pkcs8_pem(LineEnding::LF);
        Ok(pem.map_err(|e| MockError::Key(e.to_string()))?.to_string())
    }

    /// The key as PKCS#8 in DER.
    ///
    /// # Errors
    /// [`MockError::Key`], which does not occur for P-256.
    pub fn to_pkcs8_der(&self) -> Result<Vec<u8>, MockError> {
        let der = self.signing.to_pkcs8_der();
        Ok(der
            .map_err(|e| MockError::Key(e.to_string()))?
            .as_bytes()
            .to_vec())
    }

    /// The SubjectPublicKeyInfo in DER: 91 bytes.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// The report data that binds a quote to a certificate of this key:
    /// `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`. [dstack `QuoteContentType::RaTlsCert`]
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        Sha512::new()
            .chain_update(b"ratls-cert:")
            .chain_update(self.spki_der())
            .finalize()
            .into()
    }

    /// Signs SHA-256 of `message`. Returns `r || s`, the form used in quotes and Intel's JSON.
    #[must_use]
    pub fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.signing.sign(message);
        signature.to_bytes().into()
    }

    /// `x || y`, the form used in quotes.
    pub(super) fn raw_public(&self) -> &[u8] {
        self.point.get(1..).unwrap_or_default()
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: Signature = self.signing.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// Shows only a part of the public key.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Key({})",
            hex::encode(self.point.get(1..9).unwrap_or_default())
        )
    }
}
