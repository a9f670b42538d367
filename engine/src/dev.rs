//! `teesql-sidecar dev`: all of a cluster on one machine, without TDX and
//! without dstack. A throw-away Postgres, a guest agent and a PCCS of the
//! project's own under a root of their own, and two sidecars before it: one in
//! production mode under that root, and one in simulator mode.
//!
//! Nothing in it is a shortcut through the product: the sidecars are the ones
//! that `serve` runs, configured as an operator would.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use attest::agent::TlsKeyRequest;
use attest::mock::{
    Agent, AgentListen, AgentOptions, CollateralOptions, Machine, MachineOptions, MockError, Pccs,
    PccsAnswers, Pki,
};
use nix::sys::signal::{Signal, raise};
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::{Config, Errors, Layers, Scope, with_flags};
use crate::serve::{self, Addresses, Outcome, Signals};
use crate::trust::unix_now;

mod postgres;

use postgres::Postgres;

/// Where the simulator's sidecar listens beside the default 5433.
const SIMULATOR_LISTEN: &str = "127.0.0.1:5434";
/// A signal that has come is told at once.
const A_MOMENT: Duration = Duration::from_millis(10);

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file, a process or a socket.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Postgres does not start; its own words.
    #[error("Postgres: {0}")]
    Postgres(String),
    /// The mock TDX cannot be made.
    #[error(transparent)]
    Mock(#[from] MockError),
    /// The guest agent of our own does not answer as it should.
    #[error(transparent)]
    Agent(#[from] attest::agent::AgentError),
    /// The environment has a setting that does not go with this.
    #[error(transparent)]
    Settings(#[from] Errors),
    /// A sidecar does not run.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// The system has no randomness.
    #[error("no randomness")]
    Random,
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DevError {
    let doing = doing.into();
    move |source| DevError::System { doing, source }
}

/// Runs it until a signal comes. `said` gets what a person wants to know.
///
/// # Errors
/// [`DevError`]; nothing is left behind then either.
pub fn run(said: impl Fn(&str)) -> Result<Outcome, DevError> {
    let mut interrupts = Interrupts::new()?;
    let folder = tempfile::tempdir().map_err(system("cannot make a folder"))?;
    let cluster = Cluster::make(folder.path())?;
    let postgres = Postgres::start(folder.path(), &cluster.superuser_password)?;
    let production = Sidecar::start(cluster.production(&postgres))?;
    let simulator = Sidecar::start(cluster.simulator(&postgres))?;
    match (production.addresses(), simulator.addresses()) {
        (Some(production), Some(simulator)) if !interrupts.came() => {
            said(&cluster.guide(folder.path(), production, simulator));
        }
        // A signal came before they listened for it, or one of them has ended,
        // and says why below: the other goes too.
        _ => drop(raise(Signal::SIGTERM)),
    }
    let outcome = production.join();
    let other = simulator.join();
    drop(postgres);
    other.and(outcome)
}

/// Signals from before the sidecars listen for them: their default action would
/// leave Postgres and the folder behind.
struct Interrupts {
    runtime: tokio::runtime::Runtime,
    signals: Signals,
}

impl Interrupts {
    fn new() -> Result<Self, DevError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("cannot listen for signals"))?;
        let signals = runtime.block_on(async { Signals::new() });
        let signals = signals.map_err(system("cannot listen for signals"))?;
        Ok(Self { runtime, signals })
    }

    /// Whether one has come.
    fn came(&mut self) -> bool {
        let Self { runtime, signals } = self;
        let next = async { timeout(A_MOMENT, signals.next()).await };
        runtime.block_on(next).is_ok()
    }
}

/// What stands in for dstack and Intel.
struct Cluster {
    agent: Agent,
    pccs: Pccs,
    root: String,
    superuser_password: Zeroizing<String>,
    read_secret: Zeroizing<String>,
    readwrite_secret: Zeroizing<String>,
}

fn random_hex() -> Result<Zeroizing<String>, DevError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    let random = default_provider().secure_random;
    random.fill(bytes.as_mut()).map_err(|_| DevError::Random)?;
    Ok(Zeroizing::new(hex::encode(bytes.as_slice())))
}

impl Cluster {
    fn make(folder: &Path) -> Result<Self, DevError> {
        let mut seed = [0_u8; 32];
        let random = default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| DevError::Random)?;
        let pki = Arc::new(Pki::new(&seed)?);
        let machine = Machine::new(&pki, &MachineOptions::default())?;
        let collateral = pki.collateral(&CollateralOptions::at(unix_now()))?;
        let pccs = Pccs::start(PccsAnswers::none().with(machine.key(), collateral))?;
        let socket = folder.join("dstack.sock");
        let options = AgentOptions {
            seed,
            app_name: "dev".to_owned(),
            ..AgentOptions::new(unix_now)
        };
        let agent = Agent::start(Arc::clone(&pki), AgentListen::Unix(socket), options)?;
        write(folder, "tdx-root.pem", pki.root_pem(), 0o644)?;
        write(folder, "ca.pem", pki.kms_pem(), 0o644)?;
        let superuser_password = ask(&agent, folder)?;
        Ok(Self {
            agent,
            pccs,
            root: path(folder, "tdx-root.pem"),
            superuser_password,
            read_secret: random_hex()?,
            readwrite_secret: random_hex()?,
        })
    }

    /// What both sidecars are told.
    fn settings(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let text = |text: &str| OsString::from(text.to_owned());
        BTreeMap::from([
            ("TEESQL_POSTGRES", text(&postgres.address())),
            ("TEESQL_READ_SECRET", text(&self.read_secret)),
            ("TEESQL_READWRITE_SECRET", text(&self.readwrite_secret)),
            ("TEESQL_PROVISION", text("true")),
            ("TEESQL_CERTIFICATE_ALT_NAMES", text("localhost,127.0.0.1")),
        ])
    }

    /// Production mode, under the mock root; `TEESQL_LISTEN` and
    /// `TEESQL_ADMIN_LISTEN` are obeyed.
    fn production(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let mut settings = self.settings(postgres);
        let or = |name: &str, default: &str| std::env::var_os(name).unwrap_or(default.into());
        settings.extend([
            ("TEESQL_LISTEN", or("TEESQL_LISTEN", "127.0.0.1:5433")),
            (
                "TEESQL_ADMIN_LISTEN",
                or("TEESQL_ADMIN_LISTEN", "127.0.0.1:8080"),
            ),
            (
                "TEESQL_GUEST_AGENT",
                self.agent.endpoint().to_string().into(),
            ),
            ("TEESQL_DANGEROUS_TDX_ROOT_CA", self.root.clone().into()),
            ("TEESQL_PCCS", self.pccs.url().into()),
        ]);
        settings
    }

    fn simulator(&self, postgres: &Postgres) -> BTreeMap<&'static str, OsString> {
        let mut settings = self.settings(postgres);
        // Beside the usual port a usual port, beside a free one a free one.
        let listen = match std::env::var_os("TEESQL_LISTEN") {
            None => SIMULATOR_LISTEN,
            Some(_) => "127.0.0.1:0",
        };
        settings.extend([
            ("TEESQL_LISTEN", listen.into()),
            ("TEESQL_ADMIN_LISTEN", "off".into()),
            ("TEESQL_SHARDS", "1".into()),
            (
                "DSTACK_SIMULATOR_ENDPOINT",
                self.agent.endpoint().to_string().into(),
            ),
        ]);
        settings
    }

    fn guide(&self, folder: &Path, production: &Addresses, simulator: &Addresses) -> String {
        let file = |name| path(folder, name);
        let (host, port) = (production.listen.ip(), production.listen.port());
        let admin = production.admin.map_or_else(String::new, |admin| {
            format!("\nInside:       curl http://{admin}/ready\n              curl http://{admin}/attestation\n")
        });
        let base = format!(
            "host={host} port={port} dbname=postgres sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            file("ca.pem"),
            file("client.pem"),
            file("client.key"),
        );
        format!(
            "\nA cluster of its own, under a TDX root of its own; Ctrl-C ends it and removes everything.\n\n\
             Mode B, attested client, teesql_read:\n\n  \
             PGPASSWORD={} psql \"{base} user=teesql_read\"\n\n\
             Mode B, attested client, teesql_readwrite:\n\n  \
             PGPASSWORD={} psql \"{base} user=teesql_readwrite\"\n\n\
             Mode D, simulator, this machine only, superuser:\n\n  \
             psql \"host=localhost port={} user=postgres sslmode=require dbname=postgres\"\n\n\
             The server:   teesql-sidecar verify {host}:{port} --dangerous-tdx-root-ca {} --pccs {}\n{admin}",
            *self.read_secret,
            *self.readwrite_secret,
            simulator.listen.port(),
            self.root,
            self.pccs.url(),
        )
    }
}

/// A client's certificate, and the superuser's password, from the guest agent.
fn ask(agent: &Agent, folder: &Path) -> Result<Zeroizing<String>, DevError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot ask the guest agent"))?;
    let places = attest::agent::Places::only(agent.endpoint());
    let asked = attest::agent::Agent::new(places, attest::agent::AgentOptions::default())?;
    let request = TlsKeyRequest {
        subject: "dev client".to_owned(),
        usage_ra_tls: true,
        usage_client_auth: true,
        ..TlsKeyRequest::default()
    };
    let client = runtime.block_on(asked.tls_key(&request))?;
    write(folder, "client.pem", &client.chain_pem(), 0o644)?;
    // libpq refuses a key that others can read.
    write(folder, "client.key", &client.key_pem(), 0o600)?;
    Ok(runtime.block_on(asked.key("pg/superuser", ""))?.to_hex())
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Result<(), DevError> {
    let path = folder.join(name);
    let written = fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
    written.map_err(system(format!("cannot write {}", path.display())))
}

/// A sidecar on a thread of its own.
struct Sidecar {
    thread: JoinHandle<Result<Outcome, DevError>>,
    addresses: Option<Addresses>,
}

impl Sidecar {
    /// Waits until it listens, or has failed.
    fn start(settings: BTreeMap<&'static str, OsString>) -> Result<Self, DevError> {
        let (started, address) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let read = || {
                    let command = with_flags(clap::Command::new("serve"), Scope::Serve);
                    let flags = command.get_matches_from(["serve"]);
                    let (said, names) =
                        (|name: &str| settings.get(name).cloned(), std::iter::empty());
                    let layers = Layers::gather(Scope::Serve, &flags, said, names);
                    Config::from_layers(&layers)
                };
                let tell = |addresses: Addresses| {
                    // Who waits for it may have given up.
                    let _ = started.send(addresses);
                };
                Ok(serve::run_and_tell(read()?, read, tell)?)
            })
            .map_err(system("cannot start a thread"))?;
        Ok(Self {
            addresses: address.recv().ok(),
            thread,
        })
    }

    fn addresses(&self) -> Option<&Addresses> {
        self.addresses.as_ref()
    }

    fn join(self) -> Result<Outcome, DevError> {
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(_) => Err(serve::Error::Shard("panic".to_owned()).into()),
        }
    }
}
