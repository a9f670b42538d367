//! A mock world in which one thing at a time can be made wrong.

use attest::collateral::Collateral;
use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, Platform, PlatformOptions,
};
use attest::{AttestedPeer, Denial, Policy, TrustedRoot, Verifier, examine};

/// Any time between 2020 and 2049.
pub(crate) const NOW: u64 = 1_800_000_000;

const SEED: [u8; 32] = [7; 32];

pub(crate) struct World {
    pub(crate) pki: Pki,
    pub(crate) platform: PlatformOptions,
    pub(crate) evidence: Evidence,
    pub(crate) leaf: LeafOptions,
    pub(crate) collateral: CollateralOptions,
    pub(crate) policy: Policy,
    pub(crate) now: u64,
}

impl Default for World {
    /// Everything is right.
    fn default() -> Self {
        Self {
            pki: Pki::new(&SEED).unwrap(),
            platform: PlatformOptions::default(),
            evidence: Evidence::default(),
            leaf: LeafOptions::default(),
            collateral: CollateralOptions::at(NOW),
            policy: Policy::default(),
            now: NOW,
        }
    }
}

/// The world with one change.
pub(crate) fn world(change: impl FnOnce(&mut World)) -> World {
    let mut world = World::default();
    change(&mut world);
    world
}

impl World {
    pub(crate) fn certificate(&self) -> Certificate {
        self.certificate_of("client")
    }

    pub(crate) fn certificate_of(&self, name: &str) -> Certificate {
        let key = Key::derive(&SEED, name).unwrap();
        let platform = Platform::new(&self.pki, &self.platform).unwrap();
        Certificate::issue(&self.pki, &platform, &key, &self.evidence, &self.leaf).unwrap()
    }

    pub(crate) fn collateral(&self) -> Collateral {
        Collateral::parse(self.pki.collateral(&self.collateral).unwrap()).unwrap()
    }

    pub(crate) fn verifier(&self) -> Verifier {
        Verifier::new(TrustedRoot::dangerous(self.pki.root_der()).unwrap())
    }

    /// The whole way.
    pub(crate) fn admit(&self) -> Result<AttestedPeer, Denial> {
        self.admit_chain(&self.certificate().chain_der())
    }

    pub(crate) fn admit_chain(&self, chain: &[impl AsRef<[u8]>]) -> Result<AttestedPeer, Denial> {
        let evidence = examine(chain, self.now, &self.policy)?;
        self.verifier()
            .verify(&evidence, &self.collateral(), &self.policy, self.now)
    }

    /// The refusal's code, or `admitted`.
    pub(crate) fn code(&self) -> &'static str {
        match self.admit() {
            Ok(_) => "admitted",
            Err(denial) => denial.code(),
        }
    }
}
