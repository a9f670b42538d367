//! A running forwarder: in a process of its own, or inside a Rust service.
//!
//! ```no_run
//! use engine::config::Forward;
//! use engine::forward::Forwarder;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Forward::from_settings([("target", "db.example:5433")])?;
//! let forwarder = Forwarder::start(config)?;
//! println!("connect to {}", forwarder.dsn());
//! forwarder.stop()?;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use attest::agent::{Agent, AgentError, AgentOptions};
use hickory_resolver::net::NetError;
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::sync::{mpsc as channel, oneshot};
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};

use crate::attestation::forwarder_gate::ServerGate;
use crate::proxy::outbound::ForwarderState;
use crate::tasks::discovery::{self, TargetResolver};
use crate::tls::client_config::client_config;
pub(crate) mod admin_source;
pub(crate) mod dsn;

use crate::attestation::verifier::{self, QuoteVerifier};
use crate::config::mode::Mode;
use crate::config::{ClientIdentity, Forward, Listen, Verifier};
use crate::io::driver;
use crate::io::listener::{self, Listener};
use crate::shard::Message;
use crate::shard::pool::{self, ShardConfig, ShardPool};
use crate::tasks::certificate_renewal::{CertificateRenewer, InstallFn, RenewalMetrics};
use crate::tasks::collateral_refresh;
use crate::telemetry::metrics::{Metrics, MetricsError};
use crate::tls::certificate::{Identity, IdentityError};
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};
use admin_source::{AdminSource, Health};

/// After the order to end, connections get their last words out in at most
/// twice 2 s.
const LAST_GRACE: Duration = Duration::from_secs(6);
/// Between questions to a guest agent that does not answer at start.
const PAUSE: Duration = Duration::from_millis(500);
/// Histograms keep their samples until they are told to sum them up.
const UPKEEP: Duration = Duration::from_secs(5);
/// libpq's name for a socket is in a folder and has a port number.
const SOCKET_PREFIX: &str = ".s.PGSQL.";

/// Why there is no forwarder.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The client certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The guest agent gives no client certificate.
    #[error("no client certificate: {0}")]
    Agent(#[from] AgentError),
    /// It is there, and does not answer.
    #[error("no client certificate: the guest agent did not answer within {0:?}")]
    AgentSilent(Duration),
    /// The HTTP client for collateral cannot be set up.
    #[error(transparent)]
    Collateral(#[from] attest::collateral::FetchError),
    /// Trust Authority cannot be asked.
    #[error(transparent)]
    Authority(#[from] attest::ita::ItaError),
    /// Names cannot be resolved on this machine.
    #[error("cannot resolve names: {0}")]
    Resolver(#[from] NetError),
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// rustls' defaults do not go together: a bug.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A shard ended that should not have.
    #[error("a shard ended: {0}")]
    Shard(String),
    /// A socket or a thread.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.into();
    move |source| StartError::System { doing, source }
}

/// A forwarder that accepts connections until it is stopped or dropped.
pub struct Forwarder {
    local: Listen,
    orders: channel::UnboundedSender<()>,
    /// Its sender is dropped at the end.
    ended: oneshot::Receiver<()>,
    thread: Option<JoinHandle<Result<(), StartError>>>,
}

impl Forwarder {
    /// Starts its threads, and waits until drivers can connect.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Forward) -> Result<Self, StartError> {
        let (orders, inbox) = channel::unbounded_channel();
        let (alive, ended) = oneshot::channel();
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(move || {
                let _alive: oneshot::Sender<()> = alive;
                control(config, inbox, &started)
            })
            .map_err(system("cannot start a thread"))?;
        match start.recv() {
            Ok(local) => Ok(Self {
                local,
                orders,
                ended,
                thread: Some(thread),
            }),
            // It has ended, and says why.
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(StartError::Shard("before it started".to_owned())),
            },
        }
    }

    /// Where drivers connect.
    #[must_use]
    pub fn local(&self) -> &Listen {
        &self.local
    }

    /// Host and port as libpq's variables have them: for a Unix socket the
    /// folder that it is in.
    #[must_use]
    pub fn host_and_port(&self) -> (String, u16) {
        match &self.local {
            Listen::Tcp(address) => (address.ip().to_string(), address.port()),
            Listen::Unix(path) => {
                let folder = path.parent().unwrap_or(Path::new("/"));
                (folder.display().to_string(), socket_port(path))
            }
        }
    }

    /// A DSN without role, database and password: those are the driver's.
    #[must_use]
    pub fn dsn(&self) -> String {
        match (&self.local, self.host_and_port()) {
            (Listen::Tcp(address), _) => format!("postgresql://{address}/?sslmode=disable"),
            (Listen::Unix(_), (folder, port)) => {
                let folder = dsn::encode_query_value(&folder);
                format!("postgresql:///?host={folder}&port={port}&sslmode=disable")
            }
        }
    }

    /// Accepts no more, lets sessions finish for `drain_timeout`, then ends them.
    ///
    /// # Errors
    /// A shard has failed.
    pub fn stop(mut self) -> Result<(), StartError> {
        let _ = self.orders.send(());
        self.join()
    }

    /// The first time: accept no more, and let sessions finish. The second time:
    /// end them.
    pub(crate) fn order(&self) {
        let _ = self.orders.send(());
    }

    /// Until it has ended, by order or because a shard failed.
    pub(crate) async fn ended(&mut self) {
        // Nothing is ever sent; one that has been waited for has ended too.
        if !self.ended.is_terminated() {
            let _ = (&mut self.ended).await;
        }
    }

    fn join(&mut self) -> Result<(), StartError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(StartError::Shard("panic".to_owned())),
            None => Ok(()),
        }
    }
}

impl Drop for Forwarder {
    /// Without the grace time: two orders.
    fn drop(&mut self) {
        let _ = self.orders.send(());
        let _ = self.orders.send(());
        let _ = self.join();
    }
}

fn socket_port(path: &Path) -> u16 {
    let name = path.file_name().and_then(|name| name.to_str());
    let port = name.and_then(|name| name.strip_prefix(SOCKET_PREFIX)?.parse().ok());
    port.unwrap_or(5432)
}

/// The forwarder's control thread, from start to end.
fn control(
    config: Forward,
    mut orders: channel::UnboundedReceiver<()>,
    started: &mpsc::Sender<Listen>,
) -> Result<(), StartError> {
    let runtime =
        crate::app::runtime::of_this_thread().map_err(system("cannot start the control thread"))?;
    runtime.block_on(async {
        let drain_timeout = config.process.drain_timeout;
        let mut running = Running::start(config).await?;
        // Who waits for it may have given up.
        let _ = started.send(running.local.clone());
        running.live(&mut orders, drain_timeout).await
    })
}

struct Running {
    local: Listen,
    shards: ShardPool,
    collateral_changed: channel::UnboundedReceiver<()>,
    metrics: Arc<Metrics>,
    accepting: admin::Latch,
    _socket: SocketFile,
    _admin: Option<admin::Server>,
}

/// Where a Unix socket is; removed at the end.
struct SocketFile(Option<PathBuf>);

impl SocketFile {
    fn of(local: &Listen) -> Self {
        match local {
            Listen::Unix(path) => Self(Some(path.clone())),
            Listen::Tcp(_) => Self(None),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Running {
    async fn start(mut config: Forward) -> Result<Self, StartError> {
        let (driver, _) =
            driver::choose(config.process.driver).map_err(system("io_uring is not available"))?;
        let (local, listeners) = listen(&config)?;
        let socket = SocketFile::of(&local);
        let metrics = Arc::new(Metrics::for_forwarder()?);
        let health = Health::new();
        let admin = serve_admin(&config, &metrics, &health)?;
        // Who asks it asks again by itself.
        let once = AgentOptions {
            attempts: 1,
            ..AgentOptions::default()
        };
        let agent = Agent::new(config.process.guest_agent.clone(), once)?;
        let certificate_source = certificate_source(&config.identity, agent);
        let identity = obtain(&certificate_source, &config).await?;
        let own = identity.as_ref().map(|own| Arc::clone(own.certified()));
        let (changed, collateral_changed) = channel::unbounded_channel();
        let state = Arc::new(ForwarderState {
            resolver: resolver(&config)?,
            tls: ArcSwap::new(client_config(own)?),
            server_gate: server_gate(&mut config, &metrics, changed)?,
            connect_timeout: config.connect_timeout,
        });
        let shard_config = ShardConfig::new(&config.process, &metrics, driver, Mode::Production);
        let shards = pool::spawn(&state, &shard_config, listeners)
            .map_err(system("cannot start a shard"))?;
        if let Some(identity) = identity {
            let renewer = CertificateRenewer {
                certificate_source,
                install: install(&state),
                latch: health.identity.clone(),
                renewal_metrics: RenewalMetrics::new(&metrics),
            };
            tokio::spawn(renewer.run(identity));
        }
        health.identity.ready();
        health.accepting.ready();
        Ok(Self {
            local,
            shards,
            collateral_changed,
            metrics,
            accepting: health.accepting,
            _socket: socket,
            _admin: admin,
        })
    }

    async fn live(
        &mut self,
        orders: &mut channel::UnboundedReceiver<()>,
        drain_timeout: Duration,
    ) -> Result<(), StartError> {
        let mut upkeep = interval(UPKEEP);
        loop {
            tokio::select! {
                _ = upkeep.tick() => self.metrics.upkeep(),
                Some(()) = self.collateral_changed.recv() => {
                    self.shards.broadcast(|| Message::Revalidate);
                }
                _ = orders.recv() => break,
                reason = self.shards.failure() => return Err(StartError::Shard(reason)),
            }
        }
        self.accepting.not_ready("draining");
        self.shards.broadcast(|| Message::Drain);
        tokio::select! {
            ended = self.shards.all_ended() => return ended.map_err(StartError::Shard),
            () = sleep(drain_timeout) => {}
            // The second order.
            _ = orders.recv() => {}
        }
        self.shards.broadcast(|| Message::TerminateAll);
        match timeout(LAST_GRACE, self.shards.all_ended()).await {
            Ok(ended) => ended.map_err(StartError::Shard),
            Err(_) => Err(StartError::Shard(
                "sessions left after the last grace".into(),
            )),
        }
    }
}

fn serve_admin(
    config: &Forward,
    metrics: &Arc<Metrics>,
    health: &Health,
) -> Result<Option<admin::Server>, StartError> {
    let Some(address) = config.process.admin_listen else {
        return Ok(None);
    };
    let admin_source = Arc::new(AdminSource {
        metrics: Arc::clone(metrics),
    });
    let readiness = health.readiness.clone();
    let start = |listener| {
        admin::start(
            listener,
            readiness,
            admin_source,
            admin::Settings::default(),
        )
    };
    let server = std::net::TcpListener::bind(address)
        .and_then(start)
        .map_err(system(format!("cannot serve HTTP on {address}")))?;
    tracing::info!(address = %server.address(), "serving HTTP");
    Ok(Some(server))
}

fn listen(config: &Forward) -> Result<(Listen, Vec<Listener>), StartError> {
    match &config.listen {
        Listen::Tcp(address) => {
            let failed = system(format!("cannot listen on {address}"));
            let bound = listener::bind(*address, config.process.shards).and_then(|door| {
                let address = door.address();
                Ok((address, door.open()?))
            });
            let (bound, listeners) = bound.map_err(failed)?;
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((Listen::Tcp(bound), listeners))
        }
        Listen::Unix(path) => {
            let failed = || system(format!("cannot listen on {}", path.display()));
            let first = listener::bind_unix(path).map_err(failed())?;
            // One queue, from which every shard takes.
            let mut listeners = Vec::new();
            for _ in 1..config.process.shards {
                let copy = first.try_clone().map_err(failed())?;
                listeners.push(Listener::Unix(copy));
            }
            listeners.push(Listener::Unix(first));
            Ok((Listen::Unix(path.clone()), listeners))
        }
    }
}

fn certificate_source(identity: &ClientIdentity, agent: Agent) -> CertificateSource {
    match identity.clone() {
        ClientIdentity::Files { cert, key } => CertificateSource::Files { cert, key },
        ClientIdentity::Agent(subject) => CertificateSource::Agent { agent, subject },
    }
}

/// The first certificate. A server that may be a simulator asks for none, so
/// none need be had.
async fn obtain(
    certificate_source: &CertificateSource,
    config: &Forward,
) -> Result<Option<Identity>, StartError> {
    let deadline = Instant::now() + config.start_timeout;
    let mut last = None;
    loop {
        let error = match timeout_at(deadline, certificate_source.obtain()).await {
            Ok(Ok(identity)) => return Ok(Some(identity)),
            Ok(Err(CertificateSourceError::Identity(error))) => return Err(error.into()),
            Ok(Err(CertificateSourceError::Agent(error))) => error,
            Err(_) => return Err(last.unwrap_or(StartError::AgentSilent(config.start_timeout))),
        };
        if config.allow_simulator {
            tracing::info!(%error, "no client certificate is shown");
            return Ok(None);
        }
        if !error.is_transient() || Instant::now() + PAUSE >= deadline {
            return Err(error.into());
        }
        tracing::warn!(%error, "no client certificate yet");
        last = Some(error.into());
        sleep(PAUSE).await;
    }
}

fn install(state: &Arc<ForwarderState>) -> InstallFn {
    let state = Arc::clone(state);
    Box::new(move |identity| {
        let own = Some(Arc::clone(identity.certified()));
        state.tls.store(client_config(own)?);
        Ok(())
    })
}

fn resolver(config: &Forward) -> Result<Arc<TargetResolver>, StartError> {
    let resolver = discovery::resolver(config.dns_server)?;
    let control = tokio::runtime::Handle::current();
    Ok(TargetResolver::new(config.place.clone(), resolver, control))
}

fn server_gate(
    config: &mut Forward,
    metrics: &Metrics,
    changed: channel::UnboundedSender<()>,
) -> Result<ServerGate, StartError> {
    let authority = match std::mem::replace(&mut config.verifier, Verifier::None) {
        Verifier::None => return Ok(ServerGate::AllowAny),
        Verifier::Dcap => None,
        Verifier::Ita { base, key } => {
            // Nothing of Intel's is verified here: no collateral is needed.
            config.attestation.source = None;
            let options = attest::ita::Options::default();
            Some(attest::ita::Client::new(&base, key, options)?)
        }
    };
    let attestation = &mut config.attestation;
    let random = default_provider().secure_random;
    let collateral = collateral_refresh::start(attestation, random, metrics, changed)?;
    let quote_verifier = QuoteVerifier::new(
        attestation.policy.clone(),
        attestation.root.clone(),
        collateral,
        tokio::runtime::Handle::current(),
        metrics.histogram("teesql_verification_seconds"),
        authority,
    );
    let verify = verifier::verify_thread().map_err(system("cannot start the verify thread"))?;
    Ok(ServerGate::Verify {
        quote_verifier,
        verify,
        allow_simulator: config.allow_simulator,
    })
}
