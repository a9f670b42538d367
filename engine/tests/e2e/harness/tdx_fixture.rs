//! A mock TDX for both sides: servers' and clients' certificates, a PCCS.

use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Machine, MachineOptions, Pccs,
    PccsAnswers, Pki,
};

use crate::harness::forwarder::Settings;
use crate::harness::process::run_successfully;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Fixture;

pub(crate) const SEED: [u8; 32] = [0xf0; 32];

pub(crate) struct TdxFixture {
    pub(crate) pki: Arc<Pki>,
    pub(crate) machine: Machine,
    pub(crate) pccs: Pccs,
    folder: tempfile::TempDir,
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

impl TdxFixture {
    pub(crate) fn new() -> Self {
        let pki = Arc::new(Pki::new(&SEED).expect("a PKI"));
        let machine = Machine::new(&pki, &MachineOptions::default()).expect("a machine");
        let collateral = pki.collateral(&CollateralOptions::at(now()));
        let answers = PccsAnswers::none().with(machine.key(), collateral.expect("collateral"));
        let tdx = Self {
            pccs: Pccs::start(answers).expect("a PCCS on loopback"),
            pki,
            machine,
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(tdx.path("root.pem"), tdx.pki.root_pem()).expect("root.pem");
        fs::write(tdx.path("kms.pem"), tdx.pki.kms_pem()).expect("kms.pem");
        tdx
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// A certificate of this machine.
    pub(crate) fn issue(&self, name: &str, evidence: &Evidence) -> Certificate {
        self.issue_on(&self.pki, &self.machine, name, evidence)
    }

    pub(crate) fn issue_on(
        &self,
        pki: &Pki,
        machine: &Machine,
        name: &str,
        evidence: &Evidence,
    ) -> Certificate {
        let key = Key::derive(&SEED, name).expect("a key");
        let leaf = LeafOptions::default();
        Certificate::issue(pki, machine, &key, evidence, &leaf).expect("a leaf")
    }

    /// Its PEM files: chain and key.
    pub(crate) fn files(&self, name: &str, certificate: &Certificate) -> (String, String) {
        let (cert, key) = (self.path(name) + ".pem", self.path(name) + ".key");
        fs::write(&cert, certificate.chain_pem()).expect("the certificate");
        fs::write(&key, certificate.key().to_pkcs8_pem().expect("a key")).expect("the key");
        (cert, key)
    }

    /// A sidecar in production mode under the mock root, with evidence of its own.
    pub(crate) fn sidecar(&self, fixture: &Fixture) -> Sidecar {
        Sidecar::start(&self.sidecar_settings(fixture))
    }

    pub(crate) fn sidecar_settings(&self, fixture: &Fixture) -> crate::harness::sidecar::Settings {
        let (cert, key) = self.files("sidecar", &self.issue("sidecar", &Evidence::default()));
        fixture
            .settings()
            .set("TEESQL_TLS_CERT", &cert)
            .set("TEESQL_TLS_KEY", &key)
            .set("TEESQL_REQUIRE_CLIENT_ATTESTATION", "true")
            .without("TEESQL_ALLOW_UNATTESTED_CLIENTS")
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    /// A forwarder with a certificate that sidecars accept, to nowhere yet.
    pub(crate) fn settings(&self, fixture: &Fixture) -> Settings {
        let (cert, key) = self.files("client", &self.issue("client", &Evidence::default()));
        Settings::new(fixture.driver)
            .set("TEESQL_CLIENT_CERT", &cert)
            .set("TEESQL_CLIENT_KEY", &key)
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    pub(crate) fn settings_to(&self, fixture: &Fixture, target: impl ToString) -> Settings {
        self.settings(fixture)
            .set("TEESQL_TARGET", &target.to_string())
    }
}

/// `run_successfully`, with time for a busy machine.
pub(crate) fn told(command: std::process::Command) -> String {
    run_successfully(command, crate::harness::process::TIMEOUT * 4)
}
