//! What stands in for dstack and Intel, and what the sidecars are told of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attest::agent::TlsKeyRequest;
use attest::mock::{
    Agent, AgentListen, AgentOptions, CollateralOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};
use rustls::crypto::aws_lc_rs::default_provider;
use zeroize::Zeroizing;

use super::postgres::Postgres;
use super::{DevError, system};
use crate::io::clock::unix_now;

/// Where the sidecars listen beside each other, unless told otherwise.
const LISTEN: &str = "127.0.0.1:5433";
const ADMIN_LISTEN: &str = "127.0.0.1:8080";
const SIMULATOR_LISTEN: &str = "127.0.0.1:5434";
/// Files of the folder.
pub(super) const TDX_ROOT: &str = "tdx-root.pem";
pub(super) const CA: &str = "ca.pem";
pub(super) const CLIENT_CERT: &str = "client.pem";
pub(super) const CLIENT_KEY: &str = "client.key";
/// Any port that is free.
const ANY: &str = "127.0.0.1:0";

/// Everything but Postgres and the sidecars.
pub(super) struct Cluster {
    pub(super) agent: Agent,
    pub(super) pccs: Pccs,
    pub(super) superuser_password: Zeroizing<String>,
    pub(super) read_secret: Zeroizing<String>,
    pub(super) readwrite_secret: Zeroizing<String>,
    folder: PathBuf,
    usual_ports: bool,
}

fn random_hex() -> Result<Zeroizing<String>, DevError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    let random = default_provider().secure_random;
    random.fill(bytes.as_mut()).map_err(|_| DevError::Random)?;
    Ok(Zeroizing::new(hex::encode(bytes.as_slice())))
}

impl Cluster {
    /// Its files are in `folder`. A command needs no port that is the same
    /// every time, and another may run beside it: `usual_ports` is for people.
    pub(super) fn make(folder: &Path, usual_ports: bool) -> Result<Self, DevError> {
        let mut seed = [0_u8; 32];
        let random = default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| DevError::Random)?;
        let pki = Arc::new(Pki::new(&seed)?);
        let platform = Platform::new(&pki, &PlatformOptions::default())?;
        let collateral = pki.collateral(&CollateralOptions::at(unix_now()))?;
        let pccs = Pccs::start(PccsResponses::empty().with(platform.collateral_key(), collateral))?;
        let socket = folder.join("dstack.sock");
        let options = AgentOptions {
            seed,
            app_name: "dev".to_owned(),
            ..AgentOptions::new(unix_now)
        };
        let agent = Agent::start(Arc::clone(&pki), AgentListen::Unix(socket), options)?;
        write(&folder.join(TDX_ROOT), pki.root_pem(), 0o644)?;
        write(&folder.join(CA), pki.kms_pem(), 0o644)?;
        let superuser_password = ask(&agent, folder)?;
        Ok(Self {
            agent,
            pccs,
            superuser_password,
            read_secret: random_hex()?,
            readwrite_secret: random_hex()?,
            folder: folder.to_owned(),
            usual_ports,
        })
    }

    /// A file of its folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What both sidecars are told.
    fn settings(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let text = |text: &str| OsString::from(text.to_owned());
        BTreeMap::from([
            ("TEESQL_POSTGRES", text(&postgres.address())),
            ("TEESQL_READ_SECRET", text(&self.read_secret)),
            ("TEESQL_READWRITE_SECRET", text(&self.readwrite_secret)),
            ("TEESQL_PROVISION", text("true")),
            ("TEESQL_CERTIFICATE_ALT_NAMES", text(&alt_names())),
            // Who ends it has sessions of his own open, and is done with them.
            ("TEESQL_DRAIN_TIMEOUT", text("1s")),
        ])
    }

    /// Production mode, under the mock root.
    pub(super) fn production(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let agent = self.agent.endpoint().to_string();
        let mut settings = self.settings(postgres);
        settings.extend([
            ("TEESQL_LISTEN", self.address("TEESQL_LISTEN", LISTEN)),
            (
                "TEESQL_ADMIN_LISTEN",
                self.address("TEESQL_ADMIN_LISTEN", ADMIN_LISTEN),
            ),
            ("TEESQL_GUEST_AGENT", agent.into()),
            (
                "TEESQL_DANGEROUS_TDX_ROOT_CA",
                self.file(TDX_ROOT).into_os_string(),
            ),
            ("TEESQL_PCCS", self.pccs.url().into()),
        ]);
        settings
    }

    /// The environment is obeyed.
    fn address(&self, name: &str, usual: &str) -> OsString {
        let usual = if self.usual_ports { usual } else { ANY };
        std::env::var_os(name).unwrap_or(usual.into())
    }

    pub(super) fn simulator(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let agent = self.agent.endpoint().to_string();
        // Beside the usual port a usual port, beside another one a free one.
        let usual = self.usual_ports && std::env::var_os("TEESQL_LISTEN").is_none();
        let listen = if usual { SIMULATOR_LISTEN } else { ANY };
        let mut settings = self.settings(postgres);
        settings.extend([
            ("TEESQL_LISTEN", listen.into()),
            ("TEESQL_ADMIN_LISTEN", "off".into()),
            ("TEESQL_SHARDS", "1".into()),
            ("DSTACK_SIMULATOR_ENDPOINT", agent.into()),
        ]);
        settings
    }
}

/// Those of loopback, and the address that is listened on where it is another.
fn alt_names() -> String {
    let listen = std::env::var("TEESQL_LISTEN").ok();
    let address = listen.and_then(|listen| listen.parse::<SocketAddr>().ok());
    let ip = address.map(|address| address.ip());
    match ip.filter(|ip| !ip.is_unspecified() && !ip.is_loopback()) {
        Some(ip) => format!("localhost,127.0.0.1,::1,{ip}"),
        None => "localhost,127.0.0.1,::1".to_owned(),
    }
}

/// A client's certificate, and the superuser's password, from the guest agent.
fn ask(agent: &Agent, folder: &Path) -> Result<Zeroizing<String>, DevError> {
    let runtime = crate::app::runtime::of_this_thread();
    let runtime = runtime.map_err(system("cannot ask the guest agent"))?;
    let places = attest::agent::AgentAddresses::only(agent.endpoint());
    let asked = attest::agent::Agent::new(places, attest::agent::AgentOptions::default())?;
    let request = TlsKeyRequest {
        subject: "dev client".to_owned(),
        usage_ra_tls: true,
        usage_client_auth: true,
        ..TlsKeyRequest::default()
    };
    let client = runtime.block_on(asked.tls_key(&request))?;
    write(&folder.join(CLIENT_CERT), &client.chain_pem(), 0o644)?;
    // libpq refuses a key that others can read.
    write(&folder.join(CLIENT_KEY), &client.key_pem(), 0o600)?;
    Ok(runtime.block_on(asked.key("pg/superuser", ""))?.to_hex())
}

/// A file that is nobody else's to read where `mode` says so, at any time.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(system(format!("cannot write {}", path.display())))
}
