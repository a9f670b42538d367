//! A per-thread cache of valid ECDSA signatures (memoization) in two generations, an approximation of LRU.
//!
//! dcap-qvl 0.7 verifies all of the collateral with every quote. Six of its nine P-256 verifications, two thirds
//! of the time, are of TCB info, QE identity, CRLs and CA certificates that have not changed, and it has no
//! interface that takes them as verified. But its cryptography is pluggable, and verifying a signature is a pure
//! function. So [`CachedEcdsaP256`] calls ring's ECDSA P-256, and caches the SHA-256 of (key, message, signature)
//! of signatures that ring accepted. dcap-qvl still checks dates, revocation, names and chains at every
//! verification.
//!
//! Two of the nine are of one quote only and never seen again. A list in the order of use is filled by them: with 64
//! places, clients of 20 platforms in turn found nothing in it. Of two generations, what was used in the last one
//! survives, and a lookup takes the same time whatever their size.
//!
//! It must never cache a signature that ring refused, nor accept one whose SHA-256 is not in the cache.

use std::cell::RefCell;
use std::collections::HashSet;

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::crypto::RingCrypto;
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::x509::X509CertBackend;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use sha2::{Digest, Sha256};

/// Signatures of one generation, of which a thread keeps two: 64 KB in all. A verification uses nine, of which seven are
/// the same for all quotes of one platform. Within a generation each of 64 platforms is seen again, if their quotes are
/// equally frequent.
const GENERATION: usize = 1_024;

/// dcap-qvl's preset for ring, with [`CachedEcdsaP256`] for the signatures.
pub(crate) struct CachingConfig;

impl Config for CachingConfig {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = CachingCrypto;
}

pub(crate) struct CachingCrypto;

impl CryptoProvider for CachingCrypto {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &CachedEcdsaP256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        RingCrypto::sha256(data)
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        RingCrypto::sha384(data)
    }
}

/// ring's ECDSA P-256 with SHA-256.
#[derive(Debug)]
struct CachedEcdsaP256;

thread_local! {
    static VERIFIED: RefCell<Generations> = RefCell::default();
}

impl SignatureVerificationAlgorithm for CachedEcdsaP256 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = digest([public_key, message, signature]);
        if VERIFIED.with_borrow_mut(|verified| verified.contains(&digest)) {
            return Ok(());
        }
        RingCrypto::sig_algo().verify_signature(public_key, message, signature)?;
        VERIFIED.with_borrow_mut(|verified| verified.insert(digest));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().signature_alg_id()
    }
}

/// Each part is preceded by its length, so that no two triples have the same encoding.
fn digest(parts: [&[u8]; 3]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Digests that were used in this generation or in the one before.
#[derive(Default)]
struct Generations {
    current: HashSet<[u8; 32]>,
    previous: HashSet<[u8; 32]>,
}

impl Generations {
    /// Whether `digest` is known. If so it survives the end of this generation.
    fn contains(&mut self, digest: &[u8; 32]) -> bool {
        if self.current.contains(digest) {
            return true;
        }
        let known = self.previous.remove(digest);
        if known {
            self.insert(*digest);
        }
        known
    }

    fn insert(&mut self, digest: [u8; 32]) {
        if self.current.len() >= GENERATION {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(digest);
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    fn signed(message: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let rng = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap();
        let signature = pair.sign(&rng, message).unwrap();
        (
            pair.public_key().as_ref().to_vec(),
            signature.as_ref().to_vec(),
        )
    }

    #[test]
    fn only_an_identical_triple_is_a_hit() {
        let (key, signature) = signed(b"message");
        for _ in 0..2 {
            assert!(
                CachedEcdsaP256
                    .verify_signature(&key, b"message", &signature)
                    .is_ok()
            );
        }
        let (other_key, other_signature) = signed(b"message");
        for (key, message, signature) in [
            (&key, &b"massage"[..], &signature),
            (&key, b"message\0", &signature),
            (&other_key, b"message", &signature),
            (&key, b"message", &other_signature),
        ] {
            assert!(
                CachedEcdsaP256
                    .verify_signature(key, message, signature)
                    .is_err()
            );
            assert!(
                CachedEcdsaP256
                    .verify_signature(key, message, signature)
                    .is_err(),
                "refusals are not cached"
            );
        }
    }

    #[test]
    fn bytes_cannot_move_between_parts() {
        assert_ne!(digest([b"ab", b"c", b""]), digest([b"a", b"bc", b""]));
        assert_ne!(digest([b"", b"abc", b""]), digest([b"", b"", b"abc"]));
    }

    fn number(n: usize) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_le_bytes());
        digest
    }

    #[test]
    fn what_is_used_in_each_generation_is_kept() {
        let mut verified = Generations::default();
        let unique = (1..10 * GENERATION).map(number);
        verified.insert(number(0));
        for digest in unique {
            assert!(verified.contains(&number(0)));
            verified.insert(digest);
            assert!(verified.current.len() <= GENERATION);
            assert!(verified.previous.len() <= GENERATION);
        }
        assert!(!verified.contains(&number(1)));
    }

    #[test]
    fn quotes_of_many_platforms_find_the_signatures_of_their_collateral() {
        let (platforms, shared, quotes) = (20, 7, 2_000);
        let mut verified = Generations::default();
        let mut missed = 0;
        for quote in 0..quotes {
            let platform = quote % platforms;
            let of_platform = (0..shared).map(|n| number(platform * shared + n));
            let of_quote = [number(1_000_000 + 2 * quote), number(1_000_001 + 2 * quote)];
            for digest in of_platform.chain(of_quote) {
                if !verified.contains(&digest) {
                    missed += 1;
                    verified.insert(digest);
                }
            }
        }
        assert_eq!(missed, platforms * shared + 2 * quotes);
    }
}
