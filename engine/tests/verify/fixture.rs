//! A mock TDX in a folder: everything follows from a seed and a time.

use std::fs;

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, Platform, PlatformOptions,
};

use crate::command::{Run, verify};

/// 2027-01-15T08:00:00Z.
pub(crate) const NOW: u64 = 1_800_000_000;

const SEED: [u8; 32] = [7; 32];

/// What a case changes.
pub(crate) struct Case {
    pub(crate) pki: Pki,
    pub(crate) platform: PlatformOptions,
    pub(crate) evidence: Evidence,
    pub(crate) leaf: LeafOptions,
    pub(crate) collateral: CollateralOptions,
    folder: tempfile::TempDir,
}

impl Default for Case {
    /// Everything is right.
    fn default() -> Self {
        Self {
            pki: Pki::new(&SEED).unwrap(),
            platform: PlatformOptions::default(),
            evidence: Evidence::default(),
            leaf: LeafOptions::default(),
            collateral: CollateralOptions::at(NOW),
            folder: tempfile::tempdir().unwrap(),
        }
    }
}

/// The case with one change.
pub(crate) fn case(change: impl FnOnce(&mut Case)) -> Case {
    let mut case = Case::default();
    change(&mut case);
    case
}

impl Case {
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn key(&self) -> Key {
        Key::derive(&SEED, "peer").unwrap()
    }

    pub(crate) fn platform(&self) -> Platform {
        Platform::new(&self.pki, &self.platform).unwrap()
    }

    pub(crate) fn certificate(&self) -> Certificate {
        let key = self.key();
        Certificate::issue(
            &self.pki,
            &self.platform(),
            &key,
            &self.evidence,
            &self.leaf,
        )
        .unwrap()
    }

    /// The chain's file.
    pub(crate) fn pem(&self) -> String {
        self.write("peer.pem", self.certificate().chain_pem())
    }

    /// Root, collateral and time, as flags.
    pub(crate) fn flags(&self) -> Vec<String> {
        let root = self.write("root.pem", self.pki.root_pem());
        let collateral = self.pki.parsed_collateral(&self.collateral).unwrap();
        let collateral = self.write("collateral.json", collateral.to_json().unwrap());
        let mut flags = self.flags_without_collateral(&root);
        flags.extend(["--collateral".to_owned(), collateral]);
        flags
    }

    pub(crate) fn flags_without_collateral(&self, root: &str) -> Vec<String> {
        ["--dangerous-tdx-root-ca", root, "--at", &NOW.to_string()]
            .map(str::to_owned)
            .into()
    }

    /// Judges the certificate, with some flags more.
    pub(crate) fn verify(&self, more: &[&str]) -> Run {
        let mut arguments = vec![self.pem()];
        arguments.extend(self.flags());
        arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
        verify(arguments)
    }
}
