//! The forwarder: accepts plaintext connections on this machine, and forwards them over mutually
//! attested TLS. It runs as a process, or embedded in another Rust program:
//!
//! ```no_run
//! use engine::Forwarder;
//! use engine::config::ForwarderConfig;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = ForwarderConfig::from_settings([("target", "db.example:5433")])?;
//! let forwarder = Forwarder::start(config)?;
//! println!("connect to {}", forwarder.dsn());
//! forwarder.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! It must never listen beyond this machine, because its clients are not authenticated.

pub(crate) mod admin_source;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use attest::agent::{Agent, AgentOptions};
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc as channel, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::descriptors;
use crate::app::error::{StartError, system};
use crate::app::lifecycle::{self, Lifecycle, Process, SecondStop, start_backoff};
use crate::attestation::forwarder_gate::ServerGate;
use crate::attestation::verifier::{self, QuoteVerifier};
use crate::config::connection_uri;
use crate::config::mode::Mode;
use crate::config::{Errors, ForwarderConfig, Listen, UnattestedLimits, Verifier};
use crate::io::listener::{self, Listener};
use crate::io::target::Target;
use crate::proxy::outbound::{ForwarderState, Penalties};
use crate::shard::message::Message;
use crate::shard::pool::{self, ShardConfig};
use crate::tasks::certificate_renewal::{CertificateRenewer, InstallFn, RenewalMetrics};
use crate::tasks::collateral_refresh;
use crate::tasks::discovery::{DnsClient, TargetResolver};
use crate::tasks::leader_watch::LeaderWatch;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::target_metrics::TargetMetrics;
use crate::tls::certificate::Identity;
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};
use crate::tls::client_config::client_config;
use crate::tls::record_layer::RecordLayer;
use admin_source::{AdminSource, ReadinessChecks};

/// libpq's name for a Unix socket is this prefix and the port number, in a directory.
const SOCKET_PREFIX: &str = ".s.PGSQL.";

/// A forwarder that accepts connections until it is stopped or dropped.
pub struct Forwarder {
    local: Listen,
    /// Each message is a stop request, or with SIGHUP a request to reload.
    stop_requests: channel::UnboundedSender<SignalKind>,
    /// Closed when the control thread ends.
    ended: oneshot::Receiver<()>,
    control_thread: Option<JoinHandle<Result<(), StartError>>>,
}

impl Forwarder {
    /// Starts the threads, and waits until drivers can connect.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: ForwarderConfig) -> Result<Self, StartError> {
        Self::start_with_reload(config, || {
            Err(Errors(vec![
                "this forwarder has no configuration to reload".to_owned(),
            ]))
        })
    }

    /// As [`Self::start`]. [`Self::request_reload`] reads the configuration again with `read_config`; its policy
    /// takes effect.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start_with_reload(
        config: ForwarderConfig,
        read_config: impl Fn() -> Result<ForwarderConfig, Errors> + Send + 'static,
    ) -> Result<Self, StartError> {
        let (stop_requests, requests) = channel::unbounded_channel();
        let (alive, ended) = oneshot::channel();
        let (address_sender, address_receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(move || {
                let _alive: oneshot::Sender<()> = alive;
                run_control_thread(config, read_config, requests, &address_sender)
            })
            .map_err(system("cannot start a thread"))?;
        match address_receiver.recv() {
            Ok(local) => Ok(Self {
                local,
                stop_requests,
                ended,
                control_thread: Some(thread),
            }),
            // The thread has ended, with an error.
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(StartError::Shard(
                    "the control thread ended before the forwarder started".to_owned(),
                )),
            },
        }
    }

    /// The address that drivers connect to.
    #[must_use]
    pub fn local(&self) -> &Listen {
        &self.local
    }

    /// Host and port in the form of `PGHOST` and `PGPORT`: for a Unix socket, the host is
    /// the directory of the socket.
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

    /// A DSN without role, database and password, which the driver adds.
    #[must_use]
    pub fn dsn(&self) -> String {
        match (&self.local, self.host_and_port()) {
            (Listen::Tcp(address), _) => format!("postgresql://{address}/?sslmode=disable"),
            (Listen::Unix(_), (folder, port)) => {
                let folder = connection_uri::encode(&folder);
                format!("postgresql:///?host={folder}&port={port}&sslmode=disable")
            }
        }
    }

    /// Stops accepting, lets sessions finish for `drain_timeout`, then terminates them.
    ///
    /// # Errors
    /// A shard has failed.
    pub fn stop(mut self) -> Result<(), StartError> {
        self.request_stop();
        self.join()
    }

    /// Requests a reload of the configuration.
    pub(crate) fn request_reload(&self) {
        let _ = self.stop_requests.send(SignalKind::hangup());
    }

    /// Requests a stop. The first request starts the drain; the second one terminates the
    /// sessions.
    pub(crate) fn request_stop(&self) {
        let _ = self.stop_requests.send(SignalKind::terminate());
    }

    /// Waits until the forwarder has ended, after a stop request or because a shard failed.
    pub(crate) async fn ended(&mut self) {
        // No message is ever sent. A receiver that has completed must not be polled again.
        if !self.ended.is_terminated() {
            let _ = (&mut self.ended).await;
        }
    }

    fn join(&mut self) -> Result<(), StartError> {
        match self.control_thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(StartError::Shard("panic".to_owned())),
            None => Ok(()),
        }
    }
}

impl Drop for Forwarder {
    /// Terminates the sessions without a drain.
    fn drop(&mut self) {
        self.request_stop();
        self.request_stop();
        let _ = self.join();
    }
}

fn socket_port(path: &Path) -> u16 {
    let name = path.file_name().and_then(|name| name.to_str());
    let port = name.and_then(|name| name.strip_prefix(SOCKET_PREFIX)?.parse().ok());
    port.unwrap_or(5432)
}

/// The control thread, from start to end.
fn run_control_thread(
    config: ForwarderConfig,
    read_config: impl Fn() -> Result<ForwarderConfig, Errors>,
    mut stop_requests: channel::UnboundedReceiver<SignalKind>,
    address_sender: &mpsc::Sender<Listen>,
) -> Result<(), StartError> {
    lifecycle::run_control_thread(async {
        let (mut running, mut lifecycle) = start(config, read_config).await?;
        // The receiver is dropped if `Forwarder::start` has returned.
        let _ = address_sender.send(running.local.clone());
        lifecycle.run(&mut running, &mut stop_requests).await?;
        Ok(())
    })
}

/// The state of a running forwarder that the control thread owns.
struct RunningForwarder<R> {
    state: Arc<ForwarderState>,
    metrics: Arc<Metrics>,
    read_config: R,
    local: Listen,
    _socket: SocketFile,
    /// Stops serving HTTP when dropped.
    _admin: Option<admin::Server>,
}

impl<R: Fn() -> Result<ForwarderConfig, Errors>> Process for RunningForwarder<R> {
    const SECOND_STOP: SecondStop = SecondStop::Terminate;
    const NOTIFY_SYSTEMD: bool = false;

    /// Applies the policy. Every other setting needs a restart.
    async fn reload(&mut self) -> bool {
        let config = match (self.read_config)() {
            Ok(config) => config,
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(error, "configuration not reloaded");
                }
                self.metrics.config_reloaded(false);
                return false;
            }
        };
        self.metrics.config_reloaded(true);
        let Some(verifier) = self.state.server_gate.quote_verifier() else {
            return false;
        };
        let changed = verifier.set_policy(config.attestation.policy);
        let policy = verifier.policy();
        self.metrics.set_policy_info(Some(&policy));
        let kind = if changed { "new policy" } else { "same policy" };
        // The forwarder logs warnings only, unless it is asked for more.
        tracing::warn!(policy = %policy.epoch(), "configuration reloaded, {kind}");
        changed
    }

    async fn timed_work(&mut self) {
        std::future::pending().await
    }
}

/// The path of a Unix socket, which is removed when this is dropped.
struct SocketFile(Option<PathBuf>);

impl SocketFile {
    fn new(local: &Listen) -> Self {
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

async fn start<R>(
    mut config: ForwarderConfig,
    read_config: R,
) -> Result<(RunningForwarder<R>, Lifecycle), StartError> {
    let mut unattested = UnattestedLimits::of_drivers(config.process.max_connections);
    descriptors::fit_limits(&mut config.process, &mut unattested, None)?;
    let record_layer = config.process.tls_record_layer;
    let driver = lifecycle::choose_driver(config.process.driver)?;
    let (local, listeners) = listen(&config)?;
    let socket = SocketFile::new(&local);
    let metrics = Arc::new(Metrics::for_forwarder()?);
    let checks = ReadinessChecks::new();
    let admin = serve_admin(&config, &metrics, &checks)?;
    // `fetch_certificate` and the certificate renewal retry requests themselves.
    let single_attempt = AgentOptions {
        attempts: 1,
        ..AgentOptions::default()
    };
    let agent = Agent::new(config.process.guest_agent.clone(), single_attempt)?;
    let certificate_source = config.identity.certificate_source(agent);
    let identity = fetch_certificate(&certificate_source, &config).await?;
    let own = identity.as_ref().map(|own| Arc::clone(own.certified()));
    let (changed, collateral_changed) = channel::unbounded_channel();
    let state = Arc::new(ForwarderState {
        resolvers: resolvers(&config)?,
        host_order: config.host_order,
        random: default_provider().secure_random,
        penalties: Penalties::default(),
        target_metrics: TargetMetrics::new(&metrics, config.targets.len()),
        endpoints: Arc::default(),
        tls: ArcSwap::new(client_config(own, record_layer)?),
        server_gate: server_gate(&mut config, identity.as_ref(), &metrics, changed.clone())?,
        connect_timeout: config.connect_timeout,
    });
    let shard_config = ShardConfig::new(
        &config.process,
        unattested,
        0,
        &metrics,
        driver,
        Mode::Production,
    );
    let shards =
        pool::spawn(&state, &shard_config, listeners).map_err(system("cannot start a shard"))?;
    if config.follow
        && let Some(resolver) = state.resolvers.first()
    {
        let broadcast = shards.broadcaster();
        let watch = LeaderWatch {
            resolver: Arc::clone(resolver),
            endpoints: Arc::clone(&state.endpoints),
            announce: move |leader: &Arc<Target>| {
                broadcast(&|| Message::LeaderChanged(Arc::clone(leader)));
            },
        };
        tokio::spawn(watch.run());
    }
    if let Some(identity) = identity {
        let renewer = CertificateRenewer {
            certificate_source,
            install: install_certificate(&state, changed, record_layer),
            latch: checks.identity.clone(),
            renewal_metrics: RenewalMetrics::new(&metrics),
        };
        tokio::spawn(renewer.run(identity));
    }
    lifecycle::spawn_metrics_upkeep(&metrics);
    checks.identity.set_ready();
    checks.accepting.set_ready();
    let lifecycle = Lifecycle {
        shards,
        collateral_changed,
        accepting: checks.accepting,
        drain_timeout: config.process.drain_timeout,
    };
    let running = RunningForwarder {
        state,
        metrics,
        read_config,
        local,
        _socket: socket,
        _admin: admin,
    };
    Ok((running, lifecycle))
}

fn serve_admin(
    config: &ForwarderConfig,
    metrics: &Arc<Metrics>,
    checks: &ReadinessChecks,
) -> Result<Option<admin::Server>, StartError> {
    let source = Arc::new(AdminSource {
        metrics: Arc::clone(metrics),
    });
    let server = lifecycle::serve_admin(config.process.admin_listen, |listener| {
        let settings = admin::Settings::default();
        admin::start(listener, checks.readiness.clone(), source, settings)
    })?;
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "serving HTTP");
    }
    Ok(server)
}

fn listen(config: &ForwarderConfig) -> Result<(Listen, Vec<Listener>), StartError> {
    match &config.listen {
        Listen::Tcp(address) => {
            let failed = system(format!("cannot listen on {address}"));
            let bound = listener::bind(*address, config.process.shards).and_then(|listener| {
                let address = listener.address();
                Ok((address, listener.open()?))
            });
            let (bound, listeners) = bound.map_err(failed)?;
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((Listen::Tcp(bound), listeners))
        }
        Listen::Unix(path) => {
            let failed = || system(format!("cannot listen on {}", path.display()));
            let first = listener::bind_unix(path).map_err(failed())?;
            // All shards accept from the queue of one listening socket.
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

/// Gets the first client certificate, within `start_timeout`. With `allow_simulator` the
/// forwarder also starts without one: a simulator does not request it.
///
/// # Errors
/// The guest agent refuses or does not answer in time, or PEM files cannot be used.
async fn fetch_certificate(
    source: &CertificateSource,
    config: &ForwarderConfig,
) -> Result<Option<Identity>, StartError> {
    let deadline = Instant::now() + config.start_timeout;
    let mut backoff = start_backoff();
    let mut last = None;
    loop {
        let error = match timeout_at(deadline, source.obtain()).await {
            Ok(Ok(identity)) => return Ok(Some(identity)),
            Ok(Err(CertificateSourceError::Identity(error))) => return Err(error.into()),
            Ok(Err(CertificateSourceError::Agent(error))) => error,
            Err(_) => return Err(last.unwrap_or(StartError::AgentTimeout(config.start_timeout))),
        };
        if config.allow_simulator {
            tracing::info!(%error, "no client certificate: none will be presented");
            return Ok(None);
        }
        let retry_in = backoff.next_delay();
        if !error.is_transient() || Instant::now() + retry_in >= deadline {
            return Err(StartError::ClientCertificate(error));
        }
        tracing::warn!(%error, ?retry_in, "no client certificate from the guest agent yet");
        last = Some(StartError::ClientCertificate(error));
        sleep(retry_in).await;
    }
}

/// Makes new connections use a new certificate.
fn install_certificate(
    state: &Arc<ForwarderState>,
    changed: channel::UnboundedSender<()>,
    record_layer: RecordLayer,
) -> InstallFn {
    let state = Arc::clone(state);
    Box::new(move |identity| {
        let own = Some(Arc::clone(identity.certified()));
        state.tls.store(client_config(own, record_layer)?);
        let verifier = state.server_gate.quote_verifier();
        if verifier.is_some_and(|verifier| verifier.set_own_chain(&identity.certified().cert)) {
            // The receiver ends with the process.
            let _ = changed.send(());
        }
        Ok(())
    })
}

fn resolvers(config: &ForwarderConfig) -> Result<Vec<Arc<TargetResolver>>, StartError> {
    let dns = Arc::new(DnsClient::new(config.dns_server)?);
    let control = tokio::runtime::Handle::current();
    let targets = config.targets.iter().cloned();
    let resolver = |target| TargetResolver::new(target, Arc::clone(&dns), control.clone());
    Ok(targets.map(resolver).collect())
}

fn server_gate(
    config: &mut ForwarderConfig,
    own: Option<&Identity>,
    metrics: &Metrics,
    changed: channel::UnboundedSender<()>,
) -> Result<ServerGate, StartError> {
    let authority = match std::mem::replace(&mut config.verifier, Verifier::None) {
        Verifier::None => return Ok(ServerGate::AllowAny),
        Verifier::Dcap => None,
        Verifier::Ita { base, key } => {
            // Intel Trust Authority verifies the quotes, so this process needs no collateral.
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
    if let Some(own) = own {
        quote_verifier.set_own_chain(&own.certified().cert);
    }
    metrics.set_policy_info(Some(&quote_verifier.policy()));
    let any_server = f64::from(u8::from(config.allow_any_server));
    metrics
        .gauge("teesql_any_server_allowed", &[])
        .set(any_server);
    let verify_thread =
        verifier::start_verify_thread().map_err(system("cannot start the verify thread"))?;
    Ok(ServerGate::Verify {
        quote_verifier,
        verify_thread,
        allow_simulator: config.allow_simulator,
    })
}
