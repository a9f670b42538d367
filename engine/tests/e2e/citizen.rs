//! The sidecar as a citizen of its CVM: certificate, passwords and quotes from a
//! guest agent, the HTTP surface, simulator mode, `dev`.
//!
//! `TEESQL_TEST_LONG=1` makes the trials of rotation last a minute each.

mod absent;
mod dev;
mod flood;
pub(crate) mod http;
mod identity;
mod outage;
mod passwords;
mod pem;
mod report;
mod restart;
mod rotation;
mod scrape;
mod secrets;
mod series;
mod simulator;
mod tls;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attest::agent::{AgentAddresses, Method};
use attest::mock::{
    Agent, AgentListen, AgentOptions, Certificate, CollateralOptions, Evidence, Key, LeafOptions,
    Pccs, PccsResponses, Pki, Platform, PlatformOptions,
};

use crate::process::mortal;
use crate::sidecar::{Settings, Sidecar};
use crate::suite::{Suite, World};

const SEED: [u8; 32] = [0xc1; 32];

pub(crate) fn add(suite: &mut Suite) {
    absent::add(suite);
    dev::add(suite);
    flood::add(suite);
    identity::add(suite);
    outage::add(suite);
    passwords::add(suite);
    pem::add(suite);
    report::add(suite);
    restart::add(suite);
    rotation::add(suite);
    secrets::add(suite);
    series::add(suite);
    simulator::add(suite);
}

/// Unix seconds: the sidecar's clock is the real one.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// Whether there is time for the long versions.
fn long() -> bool {
    std::env::var_os("TEESQL_TEST_LONG").is_some()
}

/// This long in the suite, and a minute where there is time for it.
fn duration(usual: Duration) -> Duration {
    if long() {
        Duration::from_secs(60)
    } else {
        usual
    }
}

/// What stands around a sidecar: an "Intel", a PCCS, a folder with certificates,
/// and a guest agent when it has been started.
struct Town {
    pki: Arc<Pki>,
    pccs: Pccs,
    folder: tempfile::TempDir,
}

impl Town {
    fn new() -> Self {
        let pki = Arc::new(Pki::new(&SEED).expect("a PKI"));
        let platform = Platform::new(&pki, &PlatformOptions::default()).expect("a platform");
        let options = CollateralOptions::at(now());
        let collateral = pki.collateral(&options).expect("collateral");
        let answers = PccsResponses::empty().with(platform.collateral_key(), collateral);
        let pccs = Pccs::start(answers).expect("a PCCS on loopback");
        let folder = tempfile::tempdir().expect("a folder");
        let town = Self { pki, pccs, folder };
        fs::write(town.file("root.pem"), town.pki.root_pem()).expect("root.pem");
        fs::write(town.file("ca.pem"), town.pki.kms_pem()).expect("ca.pem");
        town.write_client(&platform);
        town
    }

    fn write_client(&self, platform: &Platform) {
        let key = Key::derive(&SEED, "client").expect("a key");
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        let client = Certificate::issue(&self.pki, platform, &key, &evidence, &leaf);
        let client = client.expect("a leaf");
        fs::write(self.file("client.pem"), client.chain_pem()).expect("client.pem");
        let path = self.file("client.key");
        fs::write(&path, key.to_pkcs8_pem().expect("a key")).expect("client.key");
        // libpq refuses a key that others can read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).to_str().expect("UTF-8").to_owned()
    }

    fn socket(&self) -> PathBuf {
        self.file("dstack.sock")
    }

    fn agent(&self) -> Agent {
        self.agent_at(AgentListen::Unix(self.socket()))
    }

    fn agent_at(&self, listen: AgentListen) -> Agent {
        let options = AgentOptions {
            seed: SEED,
            ..AgentOptions::new(now)
        };
        Agent::start(Arc::clone(&self.pki), listen, options).expect("a guest agent")
    }

    /// Production mode under the mock root, the certificate from the agent at the
    /// socket; Postgres' passwords are those of the shared cluster.
    fn settings(&self, world: &World) -> Settings {
        self.with_agent(world.settings())
    }

    fn with_agent(&self, settings: Settings) -> Settings {
        settings
            .without("TEESQL_TLS_CERT")
            .without("TEESQL_TLS_KEY")
            .without("TEESQL_ALLOW_UNATTESTED_CLIENTS")
            .set("TEESQL_REQUIRE_CLIENT_ATTESTATION", "true")
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
            .set("TEESQL_GUEST_AGENT", &self.path("dstack.sock"))
            .set("TEESQL_CERTIFICATE_ALT_NAMES", "localhost,127.0.0.1")
            .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
    }

    /// `program` as an attested client that verifies the server's name by the CA.
    fn client(&self, sidecar: &Sidecar, program: &str, (role, secret): (&str, &str)) -> Command {
        let mut command = mortal(Path::new(program), "KILL", None);
        command
            .env("PGHOST", "localhost")
            .env("PGHOSTADDR", "127.0.0.1")
            .env("PGPORT", sidecar.port().to_string())
            .env("PGUSER", role)
            .env("PGPASSWORD", secret)
            .env("PGDATABASE", "via_scram")
            .env("PGSSLMODE", "verify-full")
            .env("PGSSLROOTCERT", self.file("ca.pem"))
            .env("PGSSLCERT", self.file("client.pem"))
            .env("PGSSLKEY", self.file("client.key"))
            .env("PGCONNECT_TIMEOUT", "30")
            .env("PGGSSENCMODE", "disable");
        command
    }

    fn psql(&self, sidecar: &Sidecar, who: (&str, &str), sql: &str) -> Command {
        let mut psql = self.client(sidecar, "psql", who);
        psql.args(["-X", "-q", "-A", "-t", "-c", sql]);
        psql
    }
}

/// Where a sidecar says that its HTTP surface is.
fn admin(sidecar: &Sidecar) -> SocketAddr {
    let line = sidecar.await_line("listening", |line| line["message"] == "listening");
    let address = line["admin"].as_str().expect("an admin address");
    address.parse().expect("an address")
}

/// The key that an agent derives, as the password that it is used as.
fn derived(agent: &Agent, path: &str) -> String {
    let places = AgentAddresses::only(agent.endpoint());
    let asked = attest::agent::Agent::new(places, attest::agent::AgentOptions::default());
    let asked = asked.expect("a client");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let key = runtime.block_on(asked.key(path, "")).expect("a key");
    key.to_hex().to_string()
}

/// Our own binary with nothing but this in its environment.
fn teesql(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = mortal(
        Path::new(env!("CARGO_BIN_EXE_teesql-sidecar")),
        "KILL",
        None,
    );
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(environment.iter().copied());
    command
}
