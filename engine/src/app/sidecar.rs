//! The sidecar process: from its configuration to running shards, and its reload.
//!
//! The control thread runs everything that may wait: start-up, renewal of the certificate
//! and of collateral, SIGHUP, the drain (see [`lifecycle`]). No connection is served on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::Latch;
use attest::agent::{Agent, AgentOptions};
#[cfg(feature = "mock")]
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::app::descriptors;
use crate::app::error::{StartError, system};
use crate::app::lifecycle::{self, Lifecycle, Outcome, Process, SecondStop};
use crate::app::readiness::ReadinessChecks;
use crate::app::sidecar::admin_source::{AdminSource, RunningState};
use crate::app::signals::{self, ProcessSignals, SignalSource};
use crate::attestation::verifier::QuoteVerifier;
use crate::auth::cluster_secrets::{AuthSecrets, Authenticator, ClusterSecrets, Rotation};
use crate::auth::postgres_passwords::{DerivedPasswords, MissingPassword};
use crate::auth::random::random_bytes;
use crate::cluster::state::ClusterState;
use crate::config::{Config, Errors};
use crate::io::driver::IoDriver;
use crate::io::listener::{self, BoundListener, Listener};
use crate::postgres::provision::ProvisionTarget;
use crate::postgres::provision::blockers::BlockerWatch;
use crate::postgres::session_address::SessionAddress;
use crate::postgres::session_settings::SessionSettings;
use crate::shard::live_config::{LiveConfig, LiveTls};
use crate::shard::message::{ClusterChange, Message};
use crate::shard::pool::{self, ShardConfig, ShardPool};
use crate::tasks::certificate_renewal::{CertificateRenewer, InstallFn};
use crate::tasks::etcd_leader::EtcdLeader;
use crate::tasks::manifest_publisher::{self, InstanceSource, ManifestPublisher};
use crate::tasks::role_repair::{self, Lead, RepairTrigger, RoleRepair};
use crate::tasks::role_watch::{RoleMetrics, RoleWatch};
use crate::tasks::socket_choice::SocketChoice;
use crate::tasks::{audit_watch, clock_watch, collateral_refresh, own_evidence, upstream_probe};
use crate::telemetry::audit::AuditLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shard_metrics;
use crate::tls::certificate::{Identity, IdentityError};
use crate::tls::certificate_source::CertificateSource;
use crate::tls::client_config::link_config;
use crate::tls::record_layer::RecordLayer;
use control_socket::OpenControlSocket;
use links::LinkPorts;
use service::{InboundHandlerFactory, SharedState};

pub(crate) mod admin_source;
mod cluster_report;
pub(crate) mod control_socket;
mod links;
mod report;
mod service;
mod startup;

/// How long a reload waits for the guest agent. Keys are derived in milliseconds.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What `/ready` says after a reload that failed.
const RELOAD_FAILED: &str =
    "the configuration was not reloaded, the previous one is in use: the log says why";

/// The addresses of a running sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For PostgreSQL clients.
    pub listen: SocketAddr,
    /// For HTTP, unless that is off.
    pub admin: Option<SocketAddr>,
}

/// Runs the sidecar until a signal stops it.
///
/// On SIGHUP, `reload` reads the configuration again; its policy, cluster secrets and
/// passwords take effect.
///
/// # Errors
/// It could not start, or a shard failed.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, Errors>,
) -> Result<Outcome, StartError> {
    lifecycle::run_control_thread(async {
        let mut signals = ProcessSignals::new().map_err(system("cannot handle signals"))?;
        run_until_stopped(config, reload, |_| {}, &mut signals).await
    })
}

/// Runs a sidecar as a part of a larger program, which handles the signals and passes them
/// on in `signals`. Calls `started` as soon as clients can connect.
///
/// # Errors
/// As [`run`].
#[cfg(feature = "mock")]
pub(crate) fn run_embedded(
    config: Config,
    started: impl FnOnce(Addresses),
    mut signals: mpsc::UnboundedReceiver<SignalKind>,
) -> Result<Outcome, StartError> {
    let reload = || Err(Errors(vec!["an embedded sidecar cannot reload".to_owned()]));
    lifecycle::run_control_thread(run_until_stopped(config, reload, started, &mut signals))
}

async fn run_until_stopped<R: Fn() -> Result<Config, Errors>>(
    config: Config,
    read_config: R,
    started: impl FnOnce(Addresses),
    signals: &mut impl SignalSource,
) -> Result<Outcome, StartError> {
    let (mut sidecar, mut lifecycle) = tokio::select! {
        running = start(config, read_config) => running?,
        // No connection has been accepted yet.
        _ = signals.next_stop() => return Ok(Outcome::Drained),
    };
    started(sidecar.addresses);
    lifecycle.run(&mut sidecar, signals).await
}

/// The state of a running sidecar that the control thread owns.
struct Sidecar<R> {
    addresses: Addresses,
    shared: SharedState,
    derived: Option<DerivedPasswords>,
    agent: Agent,
    secret_overlap: Duration,
    /// When the previous cluster secrets stop being accepted.
    previous_secrets_expire: Option<Instant>,
    read_config: R,
    /// Names a reload that failed.
    accepting: Latch,
    /// Writes its last line when dropped: the shards have ended then.
    audit: Option<AuditLog>,
    /// Stops serving HTTP when dropped.
    _admin: Option<admin::Server>,
    /// Removes the socket when dropped.
    _control_socket: Option<OpenControlSocket>,
}

/// What start-up creates before the first step that may wait for the guest agent or Postgres.
struct StartupContext {
    driver: IoDriver,
    listener: BoundListener,
    link_ports: LinkPorts,
    metrics: Arc<Metrics>,
    agent: Agent,
    checks: ReadinessChecks,
    admin_source: Arc<AdminSource>,
    admin: Option<admin::Server>,
}

/// The certificate, and where the next one comes from.
struct Certificate {
    source: CertificateSource,
    identity: Identity,
}

/// Starts in the order of the dependencies. The guest agent and Postgres may come up later:
/// `/ready` then reports what is missing. The listeners open last, so that no client queues
/// for a sidecar that cannot serve it yet.
async fn start<R>(
    mut config: Config,
    read_config: R,
) -> Result<(Sidecar<R>, Lifecycle), StartError> {
    let cluster = config.cluster.as_ref();
    descriptors::fit_limits(&mut config.process, &mut config.unattested, cluster)?;
    let context = bind(&config)?;
    let certificate = fetch_certificate(&config, &context).await?;
    let (derived, authenticator) = set_up_authentication(&mut config, &context).await?;
    let tls = TlsOptions {
        request_client_certificate: config.attestation.is_some(),
        own_host: own_host_for_links(&config),
        record_layer: config.process.tls_record_layer,
    };
    let live = LiveConfig::new(tls.live(&certificate.identity)?, authenticator);
    let (changed, collateral_changed) = mpsc::unbounded_channel();
    let own = &certificate.identity;
    let quote_verifier = start_verifier(&mut config, own, &live, &context, changed.clone())?;
    let audit = open_audit_log(&config, quote_verifier.as_deref(), &context)?;
    let cluster = cluster_state(&config, &context.metrics);
    let links = cluster
        .as_ref()
        .map(|cluster| links::state(cluster, quote_verifier.as_ref(), &context.metrics))
        .transpose()?;
    let shared = SharedState {
        live,
        metrics: Arc::clone(&context.metrics),
        quote_verifier,
        upstream_version: Arc::default(),
        session_settings: SessionSettings::new(config.roles.sessions.clone()),
        own: SessionAddress::new(
            config.postgres.clone(),
            context.metrics.gauge("teesql_postgres_socket_used", &[]),
        ),
        repair_trigger: Arc::<RepairTrigger>::default(),
        audit: audit.as_ref().map(AuditLog::handle),
        links,
        cluster,
    };
    let role_repair = role_repair_of(&config, derived.as_ref(), &shared, &context.checks);
    role_repair.read_settings().await;
    let (addresses, shards) = spawn_shards(
        &config,
        &shared,
        context.listener,
        context.driver,
        &context.admin,
    )?;
    context.link_ports.open(&shards.link_dispatcher())?;
    context.admin_source.set_running(RunningState {
        live: Arc::clone(&shared.live),
        quote_verifier: shared.quote_verifier.clone(),
        cluster: shared.cluster.clone(),
    });
    if let Some(watch) = role_watch_of(&config, &shared, &shards, &context.checks) {
        tokio::spawn(watch.run());
    }
    let cluster = shared.cluster.as_ref();
    if let Some(etcd) = cluster.and_then(|cluster| EtcdLeader::new(cluster, &shared.metrics)) {
        tokio::spawn(etcd.run());
    }
    let own = spawn_background_tasks(
        &config,
        &shared,
        certificate,
        tls,
        changed,
        &context.checks,
        &context.admin_source,
    );
    let instance = own_instance(&shared, &context.agent, own);
    let publisher = manifest_publisher(
        &mut config,
        &shared,
        &context.agent,
        instance,
        &context.checks,
    )?;
    if let (Some(publisher), Some(cluster)) = (publisher, &shared.cluster) {
        tokio::spawn(publisher.run(cluster.leadership()));
    }
    let control_socket = control_socket::open(
        &config.control_socket,
        shards.inspector(),
        audit.as_ref().map(AuditLog::operators),
    )?;
    role_repair::register(&shared.metrics);
    tokio::spawn(role_repair.run());
    if config.postgres.look_for_socket {
        tokio::spawn(socket_choice_of(&config, &shared).run());
    }
    context.checks.accepting.set_ready();
    let accepting = context.checks.accepting;
    let lifecycle = Lifecycle {
        shards,
        collateral_changed,
        accepting: accepting.clone(),
        drain_timeout: config.process.drain_timeout,
    };
    let sidecar = Sidecar {
        addresses,
        shared,
        derived,
        agent: context.agent,
        secret_overlap: config.secret_overlap,
        previous_secrets_expire: None,
        read_config,
        accepting,
        audit,
        _admin: context.admin,
        _control_socket: control_socket,
    };
    Ok((sidecar, lifecycle))
}

/// Binds the addresses and serves HTTP. Clients cannot connect yet.
fn bind(config: &Config) -> Result<StartupContext, StartError> {
    let driver = lifecycle::choose_driver(config.process.driver)?;
    let sockets = config.process.shards * listener::sockets_of_a_shard();
    let listener = listener::bind(config.listen, sockets)
        .map_err(system(format!("cannot listen on {}", config.listen)))?;
    let metrics = Arc::new(Metrics::new()?);
    shard_metrics::register_all(&metrics, config.process.shards);
    metrics.set_info(driver, config);
    let link_ports = LinkPorts::bind(config, &metrics)?;
    let agent = Agent::new(config.process.guest_agent.clone(), AgentOptions::default())?;
    let checks = ReadinessChecks::new();
    tokio::spawn(clock_watch::run(checks.clock.clone()));
    let admin_source = AdminSource::new(config, &agent, &metrics, &checks);
    let settings = admin::Settings {
        attestation_interval: config.attestation_interval,
        status_page: config.process.status_page,
        ..admin::Settings::default()
    };
    let admin = lifecycle::serve_admin(config.process.admin_listen, |listener| {
        let readiness = checks.readiness.clone();
        admin::start(listener, readiness, Arc::clone(&admin_source), settings)
    })?;
    if admin.is_some() && config.process.status_page {
        admin_source.spawn_status();
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(StartupContext {
        driver,
        listener,
        link_ports,
        metrics,
        agent,
        checks,
        admin_source,
        admin,
    })
}

async fn fetch_certificate(
    config: &Config,
    context: &StartupContext,
) -> Result<Certificate, StartError> {
    let source = config.identity.certificate_source(context.agent.clone());
    let identity = startup::fetch_certificate(&source, &context.checks).await?;
    Ok(Certificate { source, identity })
}

/// Gets the passwords for Postgres, and sets up its roles if `provision` is set.
async fn set_up_authentication(
    config: &mut Config,
    context: &StartupContext,
) -> Result<(Option<DerivedPasswords>, Authenticator), StartError> {
    let derived = startup::derive_passwords(config, &context.agent, &context.checks).await;
    let cluster = startup::cluster_secrets(config, &context.agent, &context.checks).await;
    // The guest agent has provided the certificate, the passwords and the cluster secrets.
    context.checks.identity.set_ready();
    let passwords = std::mem::take(&mut config.passwords).resolve(derived.as_ref())?;
    match config.roles.provision {
        // The task that repairs them also sets them up: Postgres may need the links of this sidecar to come up.
        true if config.cluster.is_some() => {}
        true => {
            let target = provision_target(config, derived.as_ref());
            startup::set_up_roles(&target, config, &passwords, &context.checks).await?;
        }
        false => context.checks.roles.set_ready(),
    }
    let salt = random_bytes().map_err(system("cannot generate random bytes"))?;
    let authenticator = Authenticator::new(AuthSecrets { cluster, passwords }, salt);
    Ok((derived, authenticator))
}

fn provision_target(config: &Config, derived: Option<&DerivedPasswords>) -> ProvisionTarget {
    ProvisionTarget {
        server: config.postgres.clone(),
        database: config.database.clone(),
        options: config.roles.options,
        replication: derived.and_then(DerivedPasswords::replication).cloned(),
    }
}

/// Starts the refresh of collateral on this thread. `None` if clients are not attested.
fn start_verifier(
    config: &mut Config,
    own: &Identity,
    live: &LiveConfig,
    context: &StartupContext,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Option<Arc<QuoteVerifier>>, StartError> {
    let Some(mut attestation) = config.attestation.take() else {
        context.checks.collateral.set_ready();
        context.checks.evidence.set_ready();
        return Ok(None);
    };
    let random = live.read().tls.crypto_provider().secure_random;
    let collateral =
        collateral_refresh::start(&mut attestation, random, &context.metrics, changed)?;
    let verifier = QuoteVerifier::new(
        attestation.policy,
        attestation.root,
        collateral,
        tokio::runtime::Handle::current(),
        context.metrics.histogram("teesql_verification_seconds"),
        None,
    );
    verifier.set_own_chain(&own.certified().cert);
    Ok(Some(verifier))
}

/// Opens the audit log before the first client can connect, and watches it for `/ready`.
fn open_audit_log(
    config: &Config,
    quote_verifier: Option<&QuoteVerifier>,
    context: &StartupContext,
) -> Result<Option<AuditLog>, StartError> {
    let Some(audit) = &config.audit else {
        return Ok(None);
    };
    signals::ignore_file_size_limit().map_err(system("cannot handle signals"))?;
    let policy = quote_verifier.map(|verifier| verifier.policy().epoch());
    let log = AuditLog::open(audit, policy, &context.metrics)?;
    let latch = context.checks.readiness.latch("audit", "not opened yet");
    tokio::spawn(audit_watch::run(log.handle(), latch));
    Ok(Some(log))
}

/// Opens the listeners and starts a shard for each.
fn spawn_shards(
    config: &Config,
    shared: &SharedState,
    listener: BoundListener,
    driver: IoDriver,
    admin: &Option<admin::Server>,
) -> Result<(Addresses, ShardPool), StartError> {
    let factory = InboundHandlerFactory::new(config, shared)
        .map_err(system("cannot start the offload threads"))?;
    let shard_config = ShardConfig::new(
        &config.process,
        config.unattested,
        config
            .cluster
            .as_ref()
            .map_or(0, |cluster| cluster.max_links),
        &shared.metrics,
        driver,
        config.mode,
    );
    let addresses = Addresses {
        listen: listener.address(),
        admin: admin.as_ref().map(admin::Server::address),
    };
    let sockets = listener
        .open()
        .map_err(system(format!("cannot listen on {}", config.listen)))?;
    let mut sockets = sockets.into_iter().map(Listener::Tcp);
    let of_each = sockets.len() / config.process.shards;
    let listeners = (0..config.process.shards)
        .map(|_| sockets.by_ref().take(of_each).collect())
        .collect();
    let shards =
        pool::spawn(&factory, &shard_config, listeners).map_err(system("cannot start a shard"))?;
    tracing::info!(
        address = %addresses.listen,
        admin = addresses.admin.map(tracing::field::display),
        postgres = %config.postgres,
        shards = config.process.shards,
        %driver,
        tls_record_layer = %config.process.tls_record_layer,
        mode = config.mode.name(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    Ok((addresses, shards))
}

/// The tasks of the control thread that run for as long as the process lives. Returns the own certificate in use.
fn spawn_background_tasks(
    config: &Config,
    shared: &SharedState,
    certificate: Certificate,
    tls: TlsOptions,
    changed: mpsc::UnboundedSender<()>,
    checks: &ReadinessChecks,
    admin_source: &AdminSource,
) -> watch::Receiver<Identity> {
    let Certificate { source, identity } = certificate;
    let (own, own_changes) = watch::channel(identity.clone());
    let in_use = own_changes.clone();
    if let Some(verifier) = &shared.quote_verifier {
        let (own_verifier, latch) = (Arc::clone(verifier), checks.evidence.clone());
        let cluster = shared.cluster.clone();
        tokio::spawn(async move {
            own_evidence::watch(&own_verifier, own_changes, cluster.as_deref(), &latch).await;
        });
        let (verifier, own) = (Arc::clone(verifier), identity.clone());
        let latch = checks.collateral.clone();
        tokio::spawn(async move {
            collateral_refresh::refresh_own_platform(&verifier, &own, &latch).await;
        });
    }
    let renewer = CertificateRenewer {
        certificate_source: source,
        install: install_certificate(shared, changed, own, tls),
        latch: checks.identity.clone(),
        renewal_metrics: admin_source.renewal_metrics(),
    };
    tokio::spawn(renewer.run(identity));
    let (postgres, latch) = (config.postgres.clone(), checks.postgres.clone());
    let version = Arc::clone(&shared.upstream_version);
    tokio::spawn(async move { upstream_probe::run(&postgres, &version, &latch).await });
    lifecycle::spawn_metrics_upkeep(&shared.metrics);
    in_use
}

/// Where the manifest's instance id comes from: what peers would accept, if this sidecar can judge it.
fn own_instance(
    shared: &SharedState,
    agent: &Agent,
    own: watch::Receiver<Identity>,
) -> InstanceSource {
    match &shared.quote_verifier {
        Some(verifier) => InstanceSource::Evidence {
            verifier: Arc::clone(verifier),
            own,
        },
        None => InstanceSource::Agent(agent.clone()),
    }
}

/// The publisher of the leader manifest, if the configuration says where to.
fn manifest_publisher(
    config: &mut Config,
    shared: &SharedState,
    agent: &Agent,
    instance: InstanceSource,
    checks: &ReadinessChecks,
) -> Result<Option<ManifestPublisher>, StartError> {
    manifest_publisher::register(&shared.metrics);
    let Some(manifest) = config.manifest.take() else {
        return Ok(None);
    };
    let latch = checks.readiness.latch("manifest", "not started yet");
    let metrics = Arc::clone(&shared.metrics);
    ManifestPublisher::new(manifest, agent, instance, latch, metrics)
        .map(Some)
        .map_err(system("cannot publish the leader manifest"))
}

/// What the cluster is known by, if there is one.
fn cluster_state(config: &Config, metrics: &Metrics) -> Option<Arc<ClusterState>> {
    let cluster = config.cluster.as_ref()?;
    let max_sessions = config.process.max_connections;
    Some(ClusterState::new(cluster, max_sessions, metrics))
}

/// The watcher of the role of this member, if there is a cluster.
fn role_watch_of(
    config: &Config,
    shared: &SharedState,
    shards: &ShardPool,
    checks: &ReadinessChecks,
) -> Option<RoleWatch> {
    let state = Arc::clone(shared.cluster.as_ref()?);
    let live = Arc::clone(&shared.live);
    let broadcast = shards.broadcaster();
    Some(RoleWatch {
        state,
        postgres: config.postgres.clone(),
        database: config.database.clone(),
        password: Box::new(move || live.read().authenticator.superuser_credential().cloned()),
        broadcast: Box::new(move |view| {
            broadcast(&|| {
                Message::ClusterChanged(ClusterChange {
                    fenced: view.fenced.is_some(),
                    term: view.term,
                })
            });
        }),
        latch: checks
            .readiness
            .latch("cluster", "the role of this member is not known yet"),
        metrics: RoleMetrics::new(&shared.metrics),
    })
}

/// The loop that keeps the roles in Postgres, if `provision` is on, and reads its settings in any case.
fn role_repair_of(
    config: &Config,
    derived: Option<&DerivedPasswords>,
    shared: &SharedState,
    checks: &ReadinessChecks,
) -> RoleRepair {
    let live = Arc::clone(&shared.live);
    let cluster = shared.cluster.as_ref();
    RoleRepair {
        target: provision_target(config, derived),
        interval: config.roles.interval.filter(|_| config.roles.provision),
        set_up: config.provisions_replication(),
        lead: cluster.map_or_else(Lead::default, |cluster| Lead::of(cluster.leadership())),
        watch: BlockerWatch::new(config.roles.blocker_timeout),
        passwords: Box::new(move || live.read().authenticator.postgres_passwords()),
        session_settings: Arc::clone(&shared.session_settings),
        trigger: Arc::clone(&shared.repair_trigger),
        latch: checks.roles.clone(),
        metrics: Arc::clone(&shared.metrics),
    }
}

/// The choice of the socket, with `postgres = auto`.
fn socket_choice_of(config: &Config, shared: &SharedState) -> SocketChoice {
    let live = Arc::clone(&shared.live);
    SocketChoice {
        address: Arc::clone(&shared.own),
        database: config.database.clone(),
        passwords: Box::new(move || live.read().authenticator.postgres_passwords()),
    }
}

/// How TLS is configured with each new certificate.
struct TlsOptions {
    request_client_certificate: bool,
    /// Where other members reach this one. `None` if links are neither accepted nor opened.
    own_host: Option<String>,
    record_layer: RecordLayer,
}

impl TlsOptions {
    /// The configurations that present `identity`.
    fn live(&self, identity: &Identity) -> Result<LiveTls, IdentityError> {
        let own_host = self.own_host.as_deref();
        let own = || Arc::clone(identity.certified());
        let link = own_host.map(|_| link_config(own(), self.record_layer));
        Ok(LiveTls {
            tls: identity.server_config(
                self.request_client_certificate,
                own_host,
                self.record_layer,
            )?,
            link: link.transpose()?,
            channel_binding: identity.channel_binding(),
            tls_key: identity.key_fingerprint(),
        })
    }
}

/// The host in SNI of links to this member. Without attested clients there are none.
fn own_host_for_links(config: &Config) -> Option<String> {
    config.attestation.as_ref()?;
    let own = config.cluster.as_ref()?.own_member();
    Some(own.host.clone())
}

/// Makes new connections use a new certificate. If its chain has another KMS root, sessions are verified again.
fn install_certificate(
    shared: &SharedState,
    changed: mpsc::UnboundedSender<()>,
    own: watch::Sender<Identity>,
    tls: TlsOptions,
) -> InstallFn {
    let live = Arc::clone(&shared.live);
    let quote_verifier = shared.quote_verifier.clone();
    Box::new(move |identity| {
        live.set_tls(tls.live(identity)?);
        own.send_replace(identity.clone());
        let verifier = quote_verifier.as_ref();
        if verifier.is_some_and(|verifier| verifier.set_own_chain(&identity.certified().cert)) {
            // The receiver ends with the process.
            let _ = changed.send(());
        }
        Ok(())
    })
}

impl<R: Fn() -> Result<Config, Errors>> Process for Sidecar<R> {
    const SECOND_STOP: SecondStop = SecondStop::Exit;
    const NOTIFY_SYSTEMD: bool = true;

    /// Applies policy, cluster secrets and passwords. Every other setting needs a restart.
    async fn reload(&mut self) -> bool {
        // Log rotation must not depend on the rest of the configuration.
        if let Some(audit) = &self.audit {
            audit.reopen();
        }
        let loaded = self.load_again().await;
        self.shared.metrics.config_reloaded(loaded.is_ok());
        let config = match loaded {
            Ok(config) => config,
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(error, "configuration not reloaded");
                }
                // The texts may name files and values, which are for the log only.
                self.accepting.set_ready_despite(RELOAD_FAILED);
                return false;
            }
        };
        self.accepting.set_ready();
        let (Some(verifier), Some(attestation)) = (&self.shared.quote_verifier, config.attestation)
        else {
            tracing::info!("configuration reloaded");
            return false;
        };
        let warnings = attestation.warnings();
        let changed = verifier.set_policy(attestation.policy);
        let epoch = verifier.policy().epoch();
        if !changed {
            tracing::info!(policy = %epoch, "configuration reloaded, same policy");
            return false;
        }
        tracing::info!(policy = %epoch, "configuration reloaded, new policy");
        if let Some(audit) = &self.audit {
            audit.policy_changed(epoch);
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        true
    }

    /// Expires the previous cluster secrets.
    async fn timed_work(&mut self) {
        match self.previous_secrets_expire {
            Some(moment) => sleep_until(moment).await,
            None => std::future::pending().await,
        }
        self.previous_secrets_expire = None;
        let authenticator = Arc::clone(&self.shared.live.read().authenticator);
        self.shared
            .live
            .set_authenticator(authenticator.without_previous());
        tracing::info!("the previous cluster secrets are no longer accepted");
    }
}

impl<R: Fn() -> Result<Config, Errors>> Sidecar<R> {
    /// Reads the configuration, and applies its cluster secrets and passwords.
    ///
    /// # Errors
    /// Nothing has changed.
    async fn load_again(&mut self) -> Result<Config, Errors> {
        let mut config = (self.read_config)()?;
        if config.derive_secrets {
            let derived = derive_again(&self.agent).await;
            config.secrets = derived.map_err(|error| Errors(vec![error]))?;
        }
        let rotated = self.rotate_secrets(&mut config);
        rotated.map_err(|error| Errors(vec![error.to_string()]))?;
        Ok(config)
    }

    /// Accepts the new cluster secrets from now on, and the previous ones for the overlap.
    ///
    /// # Errors
    /// A role has no password. Nothing has changed then.
    fn rotate_secrets(&mut self, config: &mut Config) -> Result<(), MissingPassword> {
        let passwords = std::mem::take(&mut config.passwords);
        let passwords = passwords.resolve(self.derived.as_ref())?;
        self.secret_overlap = config.secret_overlap;
        let next = AuthSecrets {
            cluster: config.secrets.clone(),
            passwords,
        };
        let authenticator = Arc::clone(&self.shared.live.read().authenticator);
        let (authenticator, changed) = authenticator.rotated(next);
        if changed == Rotation::default() {
            return Ok(());
        }
        self.shared.live.set_authenticator(authenticator);
        if changed.passwords {
            tracing::info!("new passwords for Postgres in use");
        }
        if changed.secrets {
            let overlap = self.secret_overlap;
            tracing::info!(
                ?overlap,
                "new cluster secrets in use, the previous ones are accepted until the overlap ends"
            );
            self.previous_secrets_expire = Some(Instant::now() + overlap);
        }
        Ok(())
    }
}

/// Derives the cluster secrets for a reload, which must not keep the control thread from its signals for long.
async fn derive_again(agent: &Agent) -> Result<ClusterSecrets, String> {
    match timeout(RELOAD_TIMEOUT, ClusterSecrets::derive(agent)).await {
        Ok(Ok(derived)) => Ok(derived),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "no answer from the guest agent within {RELOAD_TIMEOUT:?}"
        )),
    }
}
