//! A test fixture: a peer that passes every check, so that a test can make one thing wrong at a time.
//!
//! It exists so that the tests of several crates share it. It must never be used outside tests: it panics
//! on options that cannot be written.

#![allow(
    clippy::expect_used,
    reason = "options that cannot be written are a mistake in the test"
)]

use super::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, Platform, PlatformOptions,
};
use crate::binding::examine;
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::policy::Policy;
use crate::verify::{AttestedPeer, TrustedRoot, Verifier};

/// Options of a peer, its platform and its verifier. All methods derive from the current options.
pub struct Fixture {
    /// The PKI that signs everything, with [`SEED`](Self::SEED).
    pub pki: Pki,
    /// The platform below the peer's TD.
    pub platform: PlatformOptions,
    /// The evidence in the peer's certificate.
    pub evidence: Evidence,
    /// The rest of the peer's certificate.
    pub leaf: LeafOptions,
    /// The collateral that the verifier holds.
    pub collateral: CollateralOptions,
    /// The verifier's policy.
    pub policy: Policy,
    /// The verifier's time in unix seconds.
    pub now: u64,
}

impl Default for Fixture {
    /// A peer that is accepted at [`NOW`](Self::NOW) under the default policy.
    fn default() -> Self {
        Self {
            pki: Pki::new(&Self::SEED).expect("a PKI"),
            platform: PlatformOptions::default(),
            evidence: Evidence::default(),
            leaf: LeafOptions::default(),
            collateral: CollateralOptions::at(Self::NOW),
            policy: Policy::default(),
            now: Self::NOW,
        }
    }
}

impl Fixture {
    /// 2027-01-15T08:00:00Z in unix seconds: inside the validity of all certificates of a [`Pki`].
    pub const NOW: u64 = 1_800_000_000;
    /// The seed of the PKI and of all keys.
    pub const SEED: [u8; 32] = [7; 32];

    /// The default fixture with one change.
    #[must_use]
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut fixture = Self::default();
        change(&mut fixture);
        fixture
    }

    /// The key pair of the peer `name`.
    #[must_use]
    pub fn key(&self, name: &str) -> Key {
        Key::derive(&Self::SEED, name).expect("a key")
    }

    /// The platform with its PCK certificate.
    #[must_use]
    pub fn issue_platform(&self) -> Platform {
        Platform::new(&self.pki, &self.platform).expect("a PCK certificate")
    }

    /// The certificate of a peer named `peer`.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.certificate_of("peer")
    }

    /// The certificate of the peer `name`. Another name is another key.
    #[must_use]
    pub fn certificate_of(&self, name: &str) -> Certificate {
        let (platform, key) = (self.issue_platform(), self.key(name));
        Certificate::issue(&self.pki, &platform, &key, &self.evidence, &self.leaf)
            .expect("a certificate")
    }

    /// The collateral, signed and parsed.
    #[must_use]
    pub fn issue_collateral(&self) -> Collateral {
        let collateral = self.pki.parsed_collateral(&self.collateral);
        collateral.expect("collateral")
    }

    /// A verifier that trusts the root of the PKI.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier::new(TrustedRoot::dangerous(self.pki.root_der()).expect("a root"))
    }

    /// Verifies the peer's certificate.
    ///
    /// # Errors
    /// The verifier's [`Denial`].
    pub fn verify(&self) -> Result<AttestedPeer, Denial> {
        self.verify_chain(&self.certificate().chain_der())
    }

    /// Verifies `chain`, leaf first.
    ///
    /// # Errors
    /// The verifier's [`Denial`].
    pub fn verify_chain(&self, chain: &[impl AsRef<[u8]>]) -> Result<AttestedPeer, Denial> {
        let evidence = examine(chain, self.now, &self.policy)?;
        self.verifier()
            .verify(&evidence, &self.issue_collateral(), &self.policy, self.now)
    }

    /// The code of the denial, or `admitted`.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        self.verify()
            .map_or_else(|denial| denial.code(), |_| "admitted")
    }
}
