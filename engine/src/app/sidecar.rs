//! The process, from its configuration to its end: identity, passwords,
//! shards, signals, drain.
//!
//! The control thread is this one, with a small runtime of its own for
//! everything that is slow; no connection is ever served on it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use attest::agent::{Agent, AgentError, AgentOptions};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::app::readiness::Health;
use crate::app::runtime;
use crate::app::sidecar::admin_source::{AdminSource, Running};
use crate::app::signals::{ProcessSignals, SignalSource};
use crate::app::systemd;
use crate::attestation::verifier::QuoteVerifier;
use crate::auth::cluster_secrets::{AuthSecrets, Authenticator, Rotation};
use crate::auth::postgres_passwords::{DerivedPasswords, MissingPassword};
use crate::config::{Config, Errors};
use crate::io::driver::{self, IoDriver};
use crate::io::listener::{self, Listener};
use crate::postgres::provision::ProvisionError;
use crate::shard::Message;
use crate::shard::live_config::LiveConfig;
use crate::shard::pool::{self, ShardConfig, ShardPool};
use crate::tasks::certificate_renewal::{CertificateRenewer, InstallFn};
use crate::tasks::collateral_refresh;
use crate::tasks::upstream_probe;
use crate::telemetry::metrics::{Metrics, MetricsError};
use crate::tls::certificate::{Identity, IdentityError};
use crate::tls::certificate_source::CertificateSource;

pub(crate) mod admin_source;
mod service;
mod startup;

use service::{InboundHandlerFactory, SharedState};
use startup::{derive, obtain, set_up_roles};

/// After the order to end, connections get their last words out in at most
/// twice 2 s; a shard that is still not done then is given up.
const LAST_GRACE: Duration = Duration::from_secs(6);
/// Histograms are emptied this often where nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(15);

/// Why the sidecar does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate or key cannot be used: a mistake in the configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A role has no password.
    #[error(transparent)]
    Password(#[from] MissingPassword),
    /// The guest agent can never be asked, or refuses.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The roles cannot be set up.
    #[error("cannot provision: {0}")]
    Provision(#[from] ProvisionError),
    /// The HTTP client for collateral cannot be set up.
    #[error(transparent)]
    Collateral(#[from] attest::collateral::FetchError),
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Nothing to do with the configuration as such.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A shard ended that should not have.
    #[error("a shard ended: {0}")]
    Shard(String),
}

/// How it ended when it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every session has ended, in time or told so.
    Drained,
    /// A second signal came; its number.
    Interrupted(i32),
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let doing = doing.into();
    move |source| Error::System { doing, source }
}

/// Where it can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// By clients.
    pub listen: SocketAddr,
    /// By HTTP, unless that is off.
    pub admin: Option<SocketAddr>,
}

/// Runs the sidecar until a signal tells it to stop.
///
/// On SIGHUP, `reload` reads the configuration again, and its policy and
/// secrets are put in force.
///
/// # Errors
/// It could not start, or a shard failed.
pub fn run(config: Config, reload: impl Fn() -> Result<Config, Errors>) -> Result<Outcome, Error> {
    control(async {
        let mut signals = ProcessSignals::new().map_err(system("cannot listen for signals"))?;
        run_by(config, reload, |_| {}, &mut signals).await
    })
}

/// Runs it as a part of a larger program, which has the signals: `orders` says
/// what that got. Tells `started` once clients can connect.
///
/// # Errors
/// As [`run`].
#[cfg(feature = "mock")]
pub(crate) fn run_under(
    config: Config,
    started: impl FnOnce(Addresses),
    mut orders: mpsc::UnboundedReceiver<SignalKind>,
) -> Result<Outcome, Error> {
    let reload = || Err(Errors(vec!["nothing to read again".to_owned()]));
    control(run_by(config, reload, started, &mut orders))
}

/// Makes this thread the control thread.
fn control<T>(main: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    runtime::of_this_thread()
        .map_err(system("cannot start the control thread"))?
        .block_on(main)
}

async fn run_by(
    config: Config,
    reload: impl Fn() -> Result<Config, Errors>,
    started: impl FnOnce(Addresses),
    orders: &mut impl SignalSource,
) -> Result<Outcome, Error> {
    let drain_timeout = config.process.drain_timeout;
    let sidecar = tokio::select! {
        sidecar = Sidecar::start(config) => sidecar?,
        // Nobody has been let in yet.
        _ = orders.stop() => return Ok(Outcome::Drained),
    };
    started(sidecar.addresses);
    sidecar.live(orders, drain_timeout, &reload).await
}

/// The running sidecar.
struct Sidecar {
    addresses: Addresses,
    shards: ShardPool,
    shared: SharedState,
    health: Health,
    derived: Option<DerivedPasswords>,
    collateral_changed: mpsc::UnboundedReceiver<()>,
    secret_overlap: Duration,
    /// When the cluster secrets before the present ones stop being good.
    previous_secrets_expire: Option<Instant>,
    /// Ends with it.
    _admin: Option<admin::Server>,
}

impl Sidecar {
    /// Everything in the order in which one thing needs the other. What may
    /// take long, an agent or a Postgres that is not up yet, is waited for with
    /// `:8080` already telling why.
    async fn start(mut config: Config) -> Result<Self, Error> {
        let (driver, refusal) =
            driver::choose(config.process.driver).map_err(system("io_uring is not available"))?;
        if let Some(error) = refusal {
            tracing::warn!(%error, "io_uring is not available, using epoll");
        }
        // Nobody can connect before there is a certificate to show.
        let listening = format!("cannot listen on {}", config.listen);
        let door = listener::bind(config.listen, config.process.shards)
            .map_err(system(listening.as_str()))?;
        let metrics = Arc::new(Metrics::new()?);
        metrics.register_all(config.process.shards);
        metrics.set_info(driver, &config);
        let agent = Agent::new(config.process.guest_agent.clone(), AgentOptions::default())?;
        let health = Health::new();
        let admin_source = AdminSource::new(&config, &agent, &metrics, &health);
        let admin = serve_admin(&config, &admin_source, &health)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }

        let certificate_source = config.certificate_source(agent.clone());
        let identity = obtain(&certificate_source, &health).await?;
        let derived = derive(&config, &agent, &health).await;
        // What was complained of until here has come.
        health.identity.ready();
        let passwords = std::mem::take(&mut config.passwords).resolve(derived.as_ref())?;
        if config.provision {
            set_up_roles(&config, &passwords, &health).await?;
        }
        let asks_clients = config.attestation.is_some();
        let authenticator = Authenticator::new(AuthSecrets {
            cluster: config.secrets.clone(),
            passwords,
        });
        let live = LiveConfig::new(identity.server(asks_clients)?, authenticator);

        let (changed, collateral_changed) = mpsc::unbounded_channel();
        let quote_verifier = quote_verifier(&mut config, &live, &metrics, &health, changed)?;
        let shared = SharedState {
            live,
            metrics,
            quote_verifier,
            upstream_version: Arc::default(),
        };
        let factory = InboundHandlerFactory::new(&config, &shared)
            .map_err(system("cannot start the worker threads"))?;
        let shard_config = ShardConfig::new(&config.process, &shared.metrics, driver, config.mode);
        let addresses = Addresses {
            listen: door.address(),
            admin: admin.as_ref().map(admin::Server::address),
        };
        let listeners = door.open().map_err(system(listening))?;
        let listeners = listeners.into_iter().map(Listener::Tcp).collect();
        let shards = pool::spawn(&factory, &shard_config, listeners)
            .map_err(system("cannot start a shard"))?;
        announce(addresses, &config, driver);
        admin_source.set_running(Running {
            live: Arc::clone(&shared.live),
            quote_verifier: shared.quote_verifier.clone(),
        });
        let sidecar = Self {
            addresses,
            shards,
            shared,
            health,
            derived,
            collateral_changed,
            secret_overlap: config.secret_overlap,
            previous_secrets_expire: None,
            _admin: admin,
        };
        sidecar.spawn_keepers(&config, certificate_source, identity, &admin_source);
        sidecar.health.accepting.ready();
        Ok(sidecar)
    }

    /// What goes on beside the shards for as long as the process lives.
    fn spawn_keepers(
        &self,
        config: &Config,
        certificate_source: CertificateSource,
        identity: Identity,
        admin_source: &AdminSource,
    ) {
        let renewer = CertificateRenewer {
            certificate_source,
            // The configuration's own has been taken out.
            install: install(&self.shared.live, self.shared.quote_verifier.is_some()),
            latch: self.health.identity.clone(),
            renewal_metrics: admin_source.renewal_metrics(),
        };
        if let Some(quote_verifier) = &self.shared.quote_verifier {
            let (quote_verifier, own) = (Arc::clone(quote_verifier), identity.clone());
            let latch = self.health.collateral.clone();
            tokio::spawn(async move {
                collateral_refresh::refresh_own_platform(&quote_verifier, &own, &latch).await
            });
        }
        tokio::spawn(renewer.run(identity));
        let (endpoint, latch) = (config.postgres.clone(), self.health.postgres.clone());
        let upstream_version = Arc::clone(&self.shared.upstream_version);
        tokio::spawn(
            async move { upstream_probe::run(&endpoint, &upstream_version, &latch).await },
        );
        let metrics = Arc::clone(&self.shared.metrics);
        tokio::spawn(async move {
            loop {
                sleep(UPKEEP).await;
                metrics.upkeep();
            }
        });
    }

    async fn live(
        mut self,
        orders: &mut impl SignalSource,
        drain_timeout: Duration,
        reload: &impl Fn() -> Result<Config, Errors>,
    ) -> Result<Outcome, Error> {
        systemd::tell_ready();
        let signal = loop {
            tokio::select! {
                Some(()) = self.collateral_changed.recv() => self.shards.broadcast(|| Message::Revalidate),
                () = until(self.previous_secrets_expire) => self.drop_previous_secrets(),
                reason = self.shards.failure() => return Err(Error::Shard(reason)),
                order = orders.next() => {
                    if order != SignalKind::hangup() {
                        break order;
                    }
                    systemd::tell_reloading();
                    self.reload(reload());
                    systemd::tell_ready();
                }
            }
        };
        tracing::info!(signal = signal.as_raw_value(), ?drain_timeout, "draining");
        systemd::tell_stopping();
        self.health.accepting.not_ready("draining");
        self.shards.broadcast(|| Message::Drain);
        if let Some(outcome) = self.wait(orders, drain_timeout).await? {
            return Ok(outcome);
        }
        tracing::info!("grace time over, ending the sessions that are left");
        self.shards.broadcast(|| Message::TerminateAll);
        match self.wait(orders, LAST_GRACE).await? {
            Some(outcome) => Ok(outcome),
            None => Err(Error::Shard("sessions left after the last grace".into())),
        }
    }

    /// Until every shard has ended, `grace` is over (`None`), or a signal.
    async fn wait(
        &mut self,
        orders: &mut impl SignalSource,
        grace: Duration,
    ) -> Result<Option<Outcome>, Error> {
        let mut ended = pin!(timeout_at(Instant::now() + grace, self.shards.all_ended()));
        tokio::select! {
            signal = orders.stop() => Ok(Some(Outcome::Interrupted(signal.as_raw_value()))),
            ended = &mut ended => match ended {
                Ok(Ok(())) => Ok(Some(Outcome::Drained)),
                Ok(Err(reason)) => Err(Error::Shard(reason)),
                Err(_) => Ok(None),
            },
        }
    }

    /// Puts a new policy and new secrets in force. Everything else needs a
    /// restart.
    fn reload(&mut self, config: Result<Config, Errors>) {
        let mut config = match config {
            Ok(config) => config,
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(error, "configuration not reloaded");
                }
                return;
            }
        };
        if let Err(error) = self.rotate(&mut config) {
            tracing::error!(%error, "configuration not reloaded");
            return;
        }
        let (Some(quote_verifier), Some(attestation)) =
            (&self.shared.quote_verifier, config.attestation)
        else {
            tracing::info!("configuration reloaded");
            return;
        };
        let epoch = attestation.policy.epoch();
        let warnings = attestation.warnings();
        if !quote_verifier.set_policy(attestation.policy) {
            tracing::info!(policy = %epoch, "configuration reloaded, same policy");
            return;
        }
        tracing::info!(policy = %epoch, "configuration reloaded, new policy");
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.shards.broadcast(|| Message::Revalidate);
    }

    /// New cluster secrets are good at once, those before them for a while.
    ///
    /// # Errors
    /// A password is in neither place; nothing has changed then.
    fn rotate(&mut self, config: &mut Config) -> Result<(), MissingPassword> {
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
                "new cluster secrets in use, the old ones still good"
            );
            self.previous_secrets_expire = Some(Instant::now() + overlap);
        }
        Ok(())
    }

    fn drop_previous_secrets(&mut self) {
        self.previous_secrets_expire = None;
        let authenticator = Arc::clone(&self.shared.live.read().authenticator);
        self.shared
            .live
            .set_authenticator(authenticator.without_previous());
        tracing::info!("the old cluster secrets are no longer good");
    }
}

fn install(live: &Arc<LiveConfig>, asks_clients: bool) -> InstallFn {
    let live = Arc::clone(live);
    Box::new(move |identity| {
        live.set_tls(identity.server(asks_clients)?);
        Ok(())
    })
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What clients are judged with. The keeper runs on this thread from here on.
fn quote_verifier(
    config: &mut Config,
    live: &LiveConfig,
    metrics: &Metrics,
    health: &Health,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Option<Arc<QuoteVerifier>>, Error> {
    let Some(mut attestation) = config.attestation.take() else {
        health.collateral.ready();
        return Ok(None);
    };
    let random = live.read().tls.crypto_provider().secure_random;
    let collateral = collateral_refresh::start(&mut attestation, random, metrics, changed)?;
    let control = tokio::runtime::Handle::current();
    let verification = metrics.histogram("teesql_verification_seconds");
    Ok(Some(QuoteVerifier::new(
        attestation.policy,
        attestation.root,
        collateral,
        control,
        verification,
        None,
    )))
}

fn serve_admin(
    config: &Config,
    admin_source: &Arc<AdminSource>,
    health: &Health,
) -> Result<Option<admin::Server>, Error> {
    let Some(address) = config.process.admin_listen else {
        return Ok(None);
    };
    let settings = admin::Settings {
        attestation_interval: config.attestation_interval,
        ..admin::Settings::default()
    };
    let start = |listener| {
        let readiness = health.readiness.clone();
        admin::start(listener, readiness, Arc::clone(admin_source), settings)
    };
    let server = std::net::TcpListener::bind(address).and_then(start);
    server
        .map(Some)
        .map_err(system(format!("cannot serve HTTP on {address}")))
}

fn announce(addresses: Addresses, config: &Config, driver: IoDriver) {
    tracing::info!(
        address = %addresses.listen,
        admin = addresses.admin.map(tracing::field::display),
        postgres = %config.postgres,
        shards = config.process.shards,
        %driver,
        mode = config.mode.name(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
}
