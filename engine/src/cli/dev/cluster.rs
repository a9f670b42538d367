//! The mock guest agent and PCCS of `dev`, its secrets and files, and the settings of its sidecars.

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
    Agent, AgentListen, AgentOptions, CollateralOptions, Envelope, Pccs, PccsResponses, Pki,
    Platform, PlatformOptions,
};
use rustls::crypto::aws_lc_rs::default_provider;
use zeroize::Zeroizing;

use super::error::{DevError, system};
use super::postgres::Postgres;
use crate::config::Errors;
use crate::io::clock::unix_now;

/// Default addresses of the two sidecars.
const LISTEN: &str = "127.0.0.1:5433";
const ADMIN_LISTEN: &str = "127.0.0.1:8080";
const SIMULATOR_LISTEN: &str = "127.0.0.1:5434";
/// File names in the temporary directory.
pub(super) const TDX_ROOT: &str = "tdx-root.pem";
pub(super) const CA: &str = "ca.pem";
pub(super) const CLIENT_CERT: &str = "client.pem";
pub(super) const CLIENT_KEY: &str = "client.key";
const AGENT_SOCKET: &str = "dstack.sock";
pub(super) const CONTROL_SOCKET: &str = "control.sock";
/// Port 0: the system picks a free port.
const ANY_PORT: &str = "127.0.0.1:0";

/// The mocks, the secrets and the files of the cluster.
pub(super) struct Cluster {
    pub(super) agent: Agent,
    pub(super) pccs: Pccs,
    pub(super) superuser_password: Zeroizing<String>,
    pub(super) read_secret: Zeroizing<String>,
    pub(super) readwrite_secret: Zeroizing<String>,
    folder: PathBuf,
    default_ports: bool,
}

pub(super) fn random_hex() -> Result<Zeroizing<String>, DevError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    let random = default_provider().secure_random;
    random.fill(bytes.as_mut()).map_err(|_| DevError::Random)?;
    Ok(Zeroizing::new(hex::encode(bytes.as_slice())))
}

impl Cluster {
    /// Starts the mocks and writes their files to `folder`. With `default_ports`, the sidecars listen
    /// on fixed ports, for people; otherwise on free ones, so that several commands can run at the
    /// same time.
    pub(super) fn create(folder: &Path, default_ports: bool) -> Result<Self, DevError> {
        let mut seed = [0_u8; 32];
        let random = default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| DevError::Random)?;
        let pki = Arc::new(Pki::new(&seed)?);
        let platform = Platform::new(&pki, &PlatformOptions::default())?;
        let collateral = pki.collateral(&CollateralOptions::at(unix_now()))?;
        let pccs = Pccs::start(PccsResponses::empty().with(platform.collateral_key(), collateral))?;
        let socket = folder.join(AGENT_SOCKET);
        let mut options = AgentOptions {
            seed,
            app_name: "dev".to_owned(),
            ..AgentOptions::new(unix_now)
        };
        options.evidence.envelope = envelope()?;
        let agent = Agent::start(Arc::clone(&pki), AgentListen::Unix(socket), options)?;
        write(&folder.join(TDX_ROOT), pki.root_pem(), 0o644)?;
        write(&folder.join(CA), pki.kms_pem(), 0o644)?;
        let runtime = crate::app::runtime::new_current_thread();
        let runtime = runtime.map_err(system("cannot call the guest agent"))?;
        let superuser_password = runtime.block_on(request_keys(&agent, folder))?;
        Ok(Self {
            agent,
            pccs,
            superuser_password,
            read_secret: random_hex()?,
            readwrite_secret: random_hex()?,
            folder: folder.to_owned(),
            default_ports,
        })
    }

    /// The path of the mock guest agent's socket, without `unix:`, which no SDK of dstack takes.
    pub(super) fn agent_socket(&self) -> PathBuf {
        self.file(AGENT_SOCKET)
    }

    /// The app id of the mock guest, in hex.
    pub(super) fn app_id(&self) -> String {
        hex::encode(&attest::mock::Evidence::default().app_id)
    }

    /// The path of a file in the temporary directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The settings of both sidecars.
    fn settings(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let text = |text: &str| OsString::from(text.to_owned());
        BTreeMap::from([
            ("TEESQL_POSTGRES", text(&postgres.address())),
            ("TEESQL_READ_SECRET", text(&self.read_secret)),
            ("TEESQL_READWRITE_SECRET", text(&self.readwrite_secret)),
            ("TEESQL_PROVISION", text("true")),
            ("TEESQL_CERTIFICATE_ALT_NAMES", text(&alt_names())),
            // The user who stops the cluster no longer needs the open sessions.
            ("TEESQL_DRAIN_TIMEOUT", text("1s")),
        ])
    }

    /// The settings of the sidecar in production mode, under the mock root.
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
                "TEESQL_CONTROL_SOCKET",
                self.file(CONTROL_SOCKET).into_os_string(),
            ),
            (
                "TEESQL_DANGEROUS_TDX_ROOT_CA",
                self.file(TDX_ROOT).into_os_string(),
            ),
            ("TEESQL_PCCS", self.pccs.url().into()),
        ]);
        settings
    }

    /// An address from the environment, or else `default` or a free port.
    fn address(&self, name: &str, default: &str) -> OsString {
        let default = if self.default_ports {
            default
        } else {
            ANY_PORT
        };
        std::env::var_os(name).unwrap_or(default.into())
    }

    /// The settings of the sidecar in simulator mode.
    pub(super) fn simulator(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let agent = self.agent.endpoint().to_string();
        // The fixed port is used only if the other sidecar uses its own.
        let is_fixed = self.default_ports && std::env::var_os("TEESQL_LISTEN").is_none();
        let listen = if is_fixed { SIMULATOR_LISTEN } else { ANY_PORT };
        let mut settings = self.settings(postgres);
        settings.extend([
            ("TEESQL_LISTEN", listen.into()),
            ("TEESQL_ADMIN_LISTEN", "off".into()),
            ("TEESQL_CONTROL_SOCKET", "off".into()),
            ("TEESQL_SHARDS", "1".into()),
            ("DSTACK_SIMULATOR_ENDPOINT", agent.into()),
        ]);
        settings
    }
}

/// The form of the evidence in certificates. dstack's guest agent writes V0 unless it is asked otherwise, and V0 is
/// what public clients read.
pub(super) fn envelope() -> Result<Envelope, DevError> {
    match std::env::var("TEESQL_DEV_EVIDENCE").as_deref() {
        Err(_) | Ok("v0") => Ok(Envelope::V0),
        Ok("v1") => Ok(Envelope::V1),
        Ok(_) => Err(DevError::Settings(Errors(vec![
            "environment TEESQL_DEV_EVIDENCE: expected v0 or v1".to_owned(),
        ]))),
    }
}

/// The names of loopback, and the configured listen address.
fn alt_names() -> String {
    let listen = std::env::var("TEESQL_LISTEN").ok();
    let address = listen.and_then(|listen| listen.parse::<SocketAddr>().ok());
    let ip = address.map(|address| address.ip());
    match ip.filter(|ip| !ip.is_unspecified() && !ip.is_loopback()) {
        Some(ip) => format!("localhost,127.0.0.1,::1,{ip}"),
        None => "localhost,127.0.0.1,::1".to_owned(),
    }
}

/// Requests a client certificate from the guest agent and writes it to `folder`. Returns the
/// superuser's password.
pub(super) async fn request_keys(
    agent: &Agent,
    folder: &Path,
) -> Result<Zeroizing<String>, DevError> {
    let addresses = attest::agent::AgentAddresses::only(agent.endpoint());
    let client = attest::agent::Agent::new(addresses, attest::agent::AgentOptions::default())?;
    let request = TlsKeyRequest {
        subject: "dev client".to_owned(),
        usage_ra_tls: true,
        usage_client_auth: true,
        ..TlsKeyRequest::default()
    };
    let identity = client.tls_key(&request).await?;
    write(&folder.join(CLIENT_CERT), &identity.chain_pem(), 0o644)?;
    // libpq refuses a key file that other users can read.
    write(&folder.join(CLIENT_KEY), &identity.key_pem(), 0o600)?;
    Ok(client.key("pg/superuser", "").await?.to_hex())
}

/// Creates a file with the permissions `mode`, which it has from the beginning.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(system(format!("cannot write {}", path.display())))
}
