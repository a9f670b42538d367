//! The start of a forwarder, of a process or of a program that it is part of, and what the control thread owns of it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use attest::agent::{Agent, AgentOptions};
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::sync::mpsc as channel;
use tokio::task::JoinSet;

use super::admin_source::{AdminSource, ReadinessChecks};
use super::identity::{fetch_certificate, install_certificate};
use super::listen::{SocketFile, listen};
use crate::app::descriptors;
use crate::app::error::{StartError, system};
use crate::app::lifecycle::{self, Lifecycle, Process, SecondStop};
use crate::app::status::StatusHistory;
use crate::attestation::custom::CustomVerifier;
use crate::attestation::forwarder_gate::ServerGate;
use crate::attestation::verifier::{self, Appraiser, QuoteVerifier};
use crate::config::mode::Mode;
use crate::config::{Errors, ForwarderConfig, Listen, UnattestedLimits, Verifier};
use crate::io::listener::Listener;
use crate::io::offload::OffloadPool;
use crate::io::target::Target;
use crate::proxy::outbound::{ForwarderState, Penalties};
use crate::shard::message::Message;
use crate::shard::pool::{self, ShardConfig, ShardPool};
use crate::shard::shared_thread::SharedThread;
use crate::tasks::certificate_renewal::{CertificateRenewer, RenewalMetrics};
use crate::tasks::collateral_refresh;
use crate::tasks::discovery::{DnsClient, TargetResolver};
use crate::tasks::leader_watch::LeaderWatch;
use crate::telemetry::failures::Failures;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::target_metrics::TargetMetrics;
use crate::tls::certificate::Identity;
use crate::tls::client_config::client_config;

/// The threads of a forwarder.
pub(crate) enum Threads {
    /// All are its own.
    Own,
    /// Those for connections are its own.
    OwnShards(SharedThreads),
    /// It shares all of them.
    Shared(SharedThreads),
}

/// The threads that the forwarders of a program share, and their metrics. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SharedThreads {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shards: SharedThread,
    pub(crate) verify: OffloadPool,
}

impl Threads {
    fn shared(&self) -> Option<&SharedThreads> {
        match self {
            Self::Own => None,
            Self::OwnShards(shared) | Self::Shared(shared) => Some(shared),
        }
    }
}

/// What a program adds to the configuration.
#[derive(Default)]
pub(crate) struct Additions {
    /// Decides after DCAP and the policy.
    pub(crate) verifier: Option<CustomVerifier>,
    /// Stands for DCAP.
    pub(crate) instead_of_dcap: Option<CustomVerifier>,
    /// Where failures are kept.
    pub(crate) failures: Arc<Failures>,
}

/// The state of a running forwarder that the control thread owns.
pub(crate) struct RunningForwarder<R> {
    state: Arc<ForwarderState>,
    metrics: Arc<Metrics>,
    read_config: R,
    local: Listen,
    _socket: SocketFile,
    /// Stops serving HTTP when dropped.
    _admin: Option<admin::Server>,
    /// Ended when dropped.
    _tasks: JoinSet<()>,
}

impl<R> RunningForwarder<R> {
    /// The address that drivers connect to.
    pub(crate) fn local(&self) -> &Listen {
        &self.local
    }
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

/// Starts a forwarder on the control thread, whose runtime this must run on.
///
/// # Errors
/// [`StartError`].
pub(crate) async fn start<R>(
    mut config: ForwarderConfig,
    read_config: R,
    threads: Threads,
    additions: Additions,
) -> Result<(RunningForwarder<R>, Lifecycle), StartError> {
    let mut unattested = UnattestedLimits::of_drivers(config.process.max_connections);
    descriptors::fit_limits(&mut config.process, &mut unattested, None)?;
    let record_layer = config.process.tls_record_layer;
    let driver = match &threads {
        Threads::Shared(shared) => shared.shards.driver(),
        Threads::Own | Threads::OwnShards(_) => lifecycle::choose_driver(config.process.driver)?,
    };
    let (local, listeners) = listen(&config)?;
    let socket = SocketFile::new(&local);
    let metrics = match threads.shared() {
        Some(shared) => Arc::clone(&shared.metrics),
        None => Arc::new(Metrics::for_forwarder()?),
    };
    let mut tasks = JoinSet::new();
    let checks = ReadinessChecks::new();
    let admin = serve_admin(&config, &metrics, &checks, &mut tasks)?;
    // `fetch_certificate` and the certificate renewal retry requests themselves.
    let single_attempt = AgentOptions {
        attempts: 1,
        ..AgentOptions::default()
    };
    let agent = Agent::new(config.process.guest_agent.clone(), single_attempt)?;
    let certificate_source = config.identity.certificate_source(agent);
    let identity = match &certificate_source {
        Some(source) => {
            fetch_certificate(source, config.start_timeout, config.allow_simulator).await?
        }
        None => None,
    };
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
        server_gate: server_gate(
            &mut config,
            identity.as_ref(),
            &metrics,
            changed.clone(),
            (&threads, additions.instead_of_dcap),
        )?,
        verifier: additions.verifier,
        failures: additions.failures,
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
    let shards = spawn_shards(&threads, &state, &shard_config, listeners)?;
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
        tasks.spawn(watch.run());
    }
    if let (Some(identity), Some(certificate_source)) = (identity, certificate_source) {
        let renewer = CertificateRenewer {
            certificate_source,
            install: install_certificate(&state, changed, record_layer),
            latch: checks.identity.clone(),
            renewal_metrics: RenewalMetrics::new(&metrics),
        };
        tasks.spawn(renewer.run(identity));
    }
    if let Threads::Own = threads {
        lifecycle::spawn_metrics_upkeep(&metrics);
    }
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
        _tasks: tasks,
    };
    Ok((running, lifecycle))
}

fn spawn_shards(
    threads: &Threads,
    state: &Arc<ForwarderState>,
    shard_config: &Arc<ShardConfig>,
    listeners: Vec<Listener>,
) -> Result<ShardPool, StartError> {
    let failed = || system("cannot start a shard");
    match (threads, listeners) {
        (Threads::Shared(shared), listeners) => {
            let listener = listeners.into_iter().next();
            let listener = listener.ok_or(std::io::ErrorKind::NotFound.into());
            let listener = listener.map_err(failed())?;
            let thread = &shared.shards;
            Ok(pool::spawn_shared(state, shard_config, listener, thread))
        }
        (Threads::Own | Threads::OwnShards(_), listeners) => {
            let listeners = listeners.into_iter().map(|listener| vec![listener]);
            pool::spawn(state, shard_config, listeners.collect()).map_err(failed())
        }
    }
}

fn serve_admin(
    config: &ForwarderConfig,
    metrics: &Arc<Metrics>,
    checks: &ReadinessChecks,
    tasks: &mut JoinSet<()>,
) -> Result<Option<admin::Server>, StartError> {
    let source = Arc::new(AdminSource {
        metrics: Arc::clone(metrics),
        status: StatusHistory::new("teesql-forward"),
    });
    let status = Arc::clone(&source.status);
    let server = lifecycle::serve_admin(config.process.admin_listen, |listener| {
        let settings = admin::Settings {
            status_page: config.process.status_page,
            ..admin::Settings::default()
        };
        admin::start(listener, checks.readiness.clone(), source, settings)
    })?;
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "serving HTTP");
        if config.process.status_page {
            tasks.spawn(status.sample(Arc::clone(metrics)));
        }
    }
    Ok(server)
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
    (threads, instead_of_dcap): (&Threads, Option<CustomVerifier>),
) -> Result<ServerGate, StartError> {
    let configured = std::mem::replace(&mut config.verifier, Verifier::None);
    let appraiser = match (configured, instead_of_dcap) {
        (_, Some(verifier)) => Some(Appraiser::Custom(verifier)),
        (Verifier::None, None) => return Ok(ServerGate::AllowAny),
        (Verifier::Dcap, None) => None,
        (Verifier::Ita { base, key }, None) => {
            let options = attest::ita::Options::default();
            let client = attest::ita::Client::new(&base, key, options)?;
            Some(Appraiser::TrustAuthority(Box::new(client)))
        }
    };
    if appraiser.is_some() {
        // Another verifies the quotes, so this process needs no collateral.
        config.attestation.source = None;
    }
    let attestation = &mut config.attestation;
    let random = default_provider().secure_random;
    let collateral = collateral_refresh::start(attestation, random, metrics, changed)?;
    let quote_verifier = QuoteVerifier::new(
        attestation.policy.clone(),
        attestation.root.clone(),
        collateral,
        tokio::runtime::Handle::current(),
        metrics.histogram("teesql_verification_seconds"),
        appraiser,
    );
    if let Some(own) = own {
        quote_verifier.set_own_chain(&own.certified().cert);
    }
    metrics.set_policy_info(Some(&quote_verifier.policy()));
    let any_server = f64::from(u8::from(config.allow_any_server));
    metrics
        .gauge("teesql_any_server_allowed", &[])
        .set(any_server);
    let verify_pool = match threads.shared() {
        Some(shared) => shared.verify.clone(),
        None => verifier::start_verify_pool().map_err(system("cannot start the verify thread"))?,
    };
    Ok(ServerGate::Verify {
        quote_verifier,
        verify_pool,
        allow_simulator: config.allow_simulator,
    })
}
