//! A mock TDX environment: a PKI in place of Intel's, a platform, a PCCS, a folder with certificates,
//! and on request a guest agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::mock::{
    Agent, AgentListen, AgentOptions, Certificate, CollateralOptions, Evidence, Key, LeafOptions,
    Pccs, PccsResponses, Pki, Platform, PlatformOptions,
};

use crate::harness::fixture::Fixture;
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::{Credentials, libpq};

/// The seed of the PKI and of all keys.
pub(crate) const SEED: [u8; 32] = [0x5e; 32];

/// The mock environment of one test. Its folder has `root.pem` (the mock's Intel root), `kms.pem`
/// (the CA of all leaf certificates), and `client.pem` with `client.key` (a client that passes
/// every check).
pub(crate) struct TdxFixture {
    pub(crate) pki: Arc<Pki>,
    pub(crate) platform: Platform,
    pub(crate) pccs: Pccs,
    folder: tempfile::TempDir,
}

/// Unix time in seconds: the programs under test read the real clock.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

impl TdxFixture {
    pub(crate) fn new() -> Self {
        let pki = Arc::new(Pki::new(&SEED).expect("a PKI"));
        let platform = Platform::new(&pki, &PlatformOptions::default()).expect("a platform");
        let collateral = pki.collateral(&CollateralOptions::at(now()));
        let responses =
            PccsResponses::empty().with(platform.collateral_key(), collateral.expect("collateral"));
        let tdx = Self {
            pccs: Pccs::start(responses).expect("a PCCS on loopback"),
            pki,
            platform,
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(tdx.path("root.pem"), tdx.pki.root_pem()).expect("root.pem");
        fs::write(tdx.path("kms.pem"), tdx.pki.kms_pem()).expect("kms.pem");
        tdx.write_pem("client", &tdx.issue("client", &Evidence::default()));
        tdx
    }

    /// The path of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Issues a certificate on this platform.
    pub(crate) fn issue(&self, name: &str, evidence: &Evidence) -> Certificate {
        self.issue_with(name, evidence, &LeafOptions::default())
    }

    /// Issues a certificate on this platform with the given leaf.
    pub(crate) fn issue_with(
        &self,
        name: &str,
        evidence: &Evidence,
        leaf: &LeafOptions,
    ) -> Certificate {
        let key = Key::derive(&SEED, name).expect("a key");
        Certificate::issue(&self.pki, &self.platform, &key, evidence, leaf).expect("a leaf")
    }

    /// Issues a certificate under another PKI or on another platform.
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

    /// Writes chain and key of `certificate` to PEM files and returns their paths.
    pub(crate) fn write_pem(&self, name: &str, certificate: &Certificate) -> (String, String) {
        let (cert, key) = (self.path(name) + ".pem", self.path(name) + ".key");
        fs::write(&cert, certificate.chain_pem()).expect("the certificate");
        fs::write(&key, certificate.key().to_pkcs8_pem().expect("a key")).expect("the key");
        // libpq rejects a key that others can read.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("permissions");
        (cert, key)
    }

    /// The socket that [`start_agent`](Self::start_agent) listens on.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path("dstack.sock").into()
    }

    /// Starts the guest agent.
    pub(crate) fn start_agent(&self) -> Agent {
        self.start_agent_with(|_| ())
    }

    /// Starts the guest agent with changed options.
    pub(crate) fn start_agent_with(&self, change: impl FnOnce(&mut AgentOptions)) -> Agent {
        self.start_agent_at(AgentListen::Unix(self.agent_socket()), change)
    }

    pub(crate) fn start_agent_at(
        &self,
        listen: AgentListen,
        change: impl FnOnce(&mut AgentOptions),
    ) -> Agent {
        let mut options = AgentOptions {
            seed: SEED,
            ..AgentOptions::new(now)
        };
        change(&mut options);
        Agent::start(Arc::clone(&self.pki), listen, options).expect("a guest agent")
    }

    /// Settings of a sidecar in production mode under the mock root, with the harness's server
    /// certificate.
    pub(crate) fn production_settings(&self, fixture: &Fixture) -> Settings {
        self.require_attestation(fixture.settings())
    }

    /// Changes `settings` to production mode under the mock root.
    pub(crate) fn require_attestation(&self, settings: Settings) -> Settings {
        self.trust_mock_root(settings)
            .set("TEESQL_REQUIRE_CLIENT_ATTESTATION", "true")
            .without("TEESQL_ALLOW_UNATTESTED_CLIENTS")
    }

    /// Changes `settings` to those of a member of a cluster, another instance of the mock's application. `list` are
    /// all members.
    pub(crate) fn member_settings(&self, settings: Settings, name: &str, list: &str) -> Settings {
        let evidence = Evidence {
            instance_id: vec![name.as_bytes()[0]; 20],
            ..Evidence::default()
        };
        let (cert, key) = self.write_pem(name, &self.issue(name, &evidence));
        self.require_attestation(settings)
            .set("TEESQL_TLS_CERT", &cert)
            .set("TEESQL_TLS_KEY", &key)
            .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
            .set("TEESQL_CLUSTER_NAME", "orders")
            .set("TEESQL_CLUSTER_MEMBER", name)
            .set("TEESQL_CLUSTER_MEMBERS", list)
    }

    fn trust_mock_root(&self, settings: Settings) -> Settings {
        settings
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    /// The same, with a server certificate that carries evidence.
    pub(crate) fn attested_sidecar_settings(&self, fixture: &Fixture) -> Settings {
        let certificate = self.issue("sidecar", &Evidence::default());
        let (cert, key) = self.write_pem("sidecar", &certificate);
        self.production_settings(fixture)
            .set("TEESQL_TLS_CERT", &cert)
            .set("TEESQL_TLS_KEY", &key)
    }

    /// Starts a sidecar that forwarders accept.
    pub(crate) fn start_attested_sidecar(&self, fixture: &Fixture) -> Sidecar {
        Sidecar::start(&self.attested_sidecar_settings(fixture))
    }

    /// Settings of a sidecar in production mode that gets its certificate from the guest agent.
    pub(crate) fn agent_settings(&self, fixture: &Fixture) -> Settings {
        self.with_agent(fixture.settings())
    }

    /// Changes `settings` to production mode with the guest agent's certificate.
    pub(crate) fn with_agent(&self, settings: Settings) -> Settings {
        self.require_attestation(settings)
            .without("TEESQL_TLS_CERT")
            .without("TEESQL_TLS_KEY")
            .set("TEESQL_GUEST_AGENT", &self.path("dstack.sock"))
            .set("TEESQL_CERTIFICATE_ALT_NAMES", "localhost,127.0.0.1")
            .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
    }

    /// Settings of a forwarder that sidecars accept, without a target. Any server is accepted.
    pub(crate) fn forwarder_settings(&self, fixture: &Fixture) -> Settings {
        self.trust_mock_root(Settings::for_forwarder(fixture.variant))
            .set("TEESQL_CLIENT_CERT", &self.path("client.pem"))
            .set("TEESQL_CLIENT_KEY", &self.path("client.key"))
            .set("TEESQL_ALLOW_ANY_SERVER", "true")
    }

    pub(crate) fn forwarder_settings_to(
        &self,
        fixture: &Fixture,
        target: impl ToString,
    ) -> Settings {
        self.forwarder_settings(fixture)
            .set("TEESQL_TARGET", &target.to_string())
    }

    /// `program` as an attested client in libpq's environment. It verifies the server's name
    /// under the KMS CA.
    pub(crate) fn client(
        &self,
        sidecar: &Sidecar,
        program: &str,
        credentials: Credentials<'_>,
    ) -> Command {
        let ca = self.path("kms.pem");
        let mut command = libpq::verify_full_command(
            program,
            sidecar.port(),
            credentials,
            "via_scram",
            ca.as_ref(),
        );
        command
            .env("PGSSLCERT", self.path("client.pem"))
            .env("PGSSLKEY", self.path("client.key"))
            .env("PGCONNECT_TIMEOUT", "30");
        command
    }

    pub(crate) fn psql(
        &self,
        sidecar: &Sidecar,
        credentials: Credentials<'_>,
        sql: &str,
    ) -> Command {
        let mut psql = self.client(sidecar, "psql", credentials);
        psql.args(["-X", "-q", "-A", "-t", "-c", sql]);
        psql
    }
}
