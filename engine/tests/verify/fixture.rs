//! [`attest::mock::Fixture`] as files: the peer's chain, the root and the collateral, in a temporary folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use attest::mock::Fixture;

use crate::command::{Run, verify};

pub(crate) const NOW: u64 = Fixture::NOW;

/// A peer and the folder with its files.
pub(crate) struct CommandFixture {
    pub(crate) peer: Fixture,
    folder: tempfile::TempDir,
}

impl Default for CommandFixture {
    /// A peer that is accepted under the default policy.
    fn default() -> Self {
        Self {
            peer: Fixture::default(),
            folder: tempfile::tempdir().unwrap(),
        }
    }
}

impl CommandFixture {
    /// The default fixture with one change.
    pub(crate) fn with(change: impl FnOnce(&mut Fixture)) -> Self {
        let mut fixture = Self::default();
        change(&mut fixture.peer);
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        // Keys must be private.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The file with the peer's chain.
    pub(crate) fn pem(&self) -> String {
        self.write("peer.pem", self.peer.certificate().chain_pem())
    }

    /// The file with the root.
    pub(crate) fn root_pem(&self) -> String {
        self.write("root.pem", self.peer.pki.root_pem())
    }

    /// The flags for root, collateral and time.
    pub(crate) fn flags(&self) -> Vec<String> {
        let collateral = self.peer.issue_collateral().to_json().unwrap();
        let collateral = self.write("collateral.json", collateral);
        let mut flags = self.flags_without_collateral();
        flags.extend(["--collateral".to_owned(), collateral]);
        flags
    }

    /// The flags for root and time.
    pub(crate) fn flags_without_collateral(&self) -> Vec<String> {
        let (root, now) = (self.root_pem(), self.peer.now.to_string());
        ["--dangerous-tdx-root-ca", &root, "--at", &now]
            .map(str::to_owned)
            .into()
    }

    /// Verifies the peer's chain, with additional flags.
    pub(crate) fn verify(&self, more: &[&str]) -> Run {
        self.verify_file(&self.pem(), more)
    }

    /// Verifies a file, with additional flags.
    pub(crate) fn verify_file(&self, path: &str, more: &[&str]) -> Run {
        let mut arguments = vec![path.to_owned()];
        arguments.extend(self.flags());
        arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
        verify(arguments)
    }
}
