//! A mock TDX for both sides: servers' and clients' certificates, a PCCS.

use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};

use super::run::Settings;
use crate::process::succeed;
use crate::sidecar::Sidecar;
use crate::suite::World;

pub(crate) const SEED: [u8; 32] = [0xf0; 32];

pub(crate) struct Lab {
    pub(crate) pki: Arc<Pki>,
    pub(crate) platform: Platform,
    pub(crate) pccs: Pccs,
    folder: tempfile::TempDir,
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

impl Lab {
    pub(crate) fn new() -> Self {
        let pki = Arc::new(Pki::new(&SEED).expect("a PKI"));
        let platform = Platform::new(&pki, &PlatformOptions::default()).expect("a platform");
        let collateral = pki.collateral(&CollateralOptions::at(now()));
        let answers =
            PccsResponses::empty().with(platform.collateral_key(), collateral.expect("collateral"));
        let lab = Self {
            pccs: Pccs::start(answers).expect("a PCCS on loopback"),
            pki,
            platform,
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(lab.path("root.pem"), lab.pki.root_pem()).expect("root.pem");
        fs::write(lab.path("kms.pem"), lab.pki.kms_pem()).expect("kms.pem");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// A certificate of this machine.
    pub(crate) fn issue(&self, name: &str, evidence: &Evidence) -> Certificate {
        self.issue_on(&self.pki, &self.platform, name, evidence)
    }

    pub(crate) fn issue_on(
        &self,
        pki: &Pki,
        platform: &Platform,
        name: &str,
        evidence: &Evidence,
    ) -> Certificate {
        let key = Key::derive(&SEED, name).expect("a key");
        let leaf = LeafOptions::default();
        Certificate::issue(pki, platform, &key, evidence, &leaf).expect("a leaf")
    }

    /// Its PEM files: chain and key.
    pub(crate) fn files(&self, name: &str, certificate: &Certificate) -> (String, String) {
        let (cert, key) = (self.path(name) + ".pem", self.path(name) + ".key");
        fs::write(&cert, certificate.chain_pem()).expect("the certificate");
        fs::write(&key, certificate.key().to_pkcs8_pem().expect("a key")).expect("the key");
        (cert, key)
    }

    /// A sidecar in production mode under the mock root, with evidence of its own.
    pub(crate) fn sidecar(&self, world: &World) -> Sidecar {
        Sidecar::start(&self.sidecar_settings(world))
    }

    pub(crate) fn sidecar_settings(&self, world: &World) -> crate::sidecar::Settings {
        let (cert, key) = self.files("sidecar", &self.issue("sidecar", &Evidence::default()));
        world
            .settings()
            .set("TEESQL_TLS_CERT", &cert)
            .set("TEESQL_TLS_KEY", &key)
            .set("TEESQL_REQUIRE_CLIENT_ATTESTATION", "true")
            .without("TEESQL_ALLOW_UNATTESTED_CLIENTS")
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    /// A forwarder with a certificate that sidecars accept, to nowhere yet.
    pub(crate) fn settings(&self, world: &World) -> Settings {
        let (cert, key) = self.files("client", &self.issue("client", &Evidence::default()));
        Settings::new(world.driver)
            .set("TEESQL_CLIENT_CERT", &cert)
            .set("TEESQL_CLIENT_KEY", &key)
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    pub(crate) fn settings_to(&self, world: &World, target: impl ToString) -> Settings {
        self.settings(world)
            .set("TEESQL_TARGET", &target.to_string())
    }
}

/// `succeed`, with time for a busy machine.
pub(crate) fn told(command: std::process::Command) -> String {
    succeed(command, crate::process::PATIENCE * 4)
}
