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
use crate::app::sidecar::admin_source::{Running, Surface};
use crate::app::signals::{Orders, Signals};
use crate::app::systemd;
use crate::attestation::verifier::Trust;
use crate::auth::cluster_secrets::{Gatekeeper, Rotated, Secrets};
use crate::auth::postgres_passwords::{Derived, Missing};
use crate::config::{Config, Errors};
use crate::io::driver::{self, Driver};
use crate::io::listener::{self, Listener};
use crate::postgres::provision::ProvisionError;
use crate::shard::Message;
use crate::shard::live_config::Live;
use crate::shard::pool::{self, Shards, Site};
use crate::tasks::certificate_renewal::{Install, Steward};
use crate::tasks::collateral_refresh;
use crate::tasks::upstream_probe;
use crate::telemetry::metrics::{Metrics, MetricsError};
use crate::tls::certificate::{Identity, IdentityError};
use crate::tls::certificate_source::Origin;

pub(crate) mod admin_source;
mod service;
mod startup;

use service::{Shared, SidecarPlan};
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
    Password(#[from] Missing),
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
        let mut signals = Signals::new().map_err(system("cannot listen for signals"))?;
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
    orders: &mut impl Orders,
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
    shards: Shards,
    shared: Shared,
    health: Health,
    derived: Option<Derived>,
    collateral_changed: mpsc::UnboundedReceiver<()>,
    secret_overlap: Duration,
    /// When the cluster secrets before the present ones stop being good.
    settle_at: Option<Instant>,
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
        metrics.announce(config.process.shards);
        metrics.set_facts(driver, &config);
        let agent = Agent::new(config.process.guest_agent.clone(), AgentOptions::default())?;
        let health = Health::new();
        let surface = Surface::new(&config, &agent, &metrics, &health);
        let admin = serve_admin(&config, &surface, &health)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }

        let origin = config.origin(agent.clone());
        let identity = obtain(&origin, &health).await?;
        let derived = derive(&config, &agent, &health).await;
        // What was complained of until here has come.
        health.identity.ready();
        let passwords = std::mem::take(&mut config.passwords).resolve(derived.as_ref())?;
        if config.provision {
            set_up_roles(&config, &passwords, &health).await?;
        }
        let asks_clients = config.attestation.is_some();
        let gatekeeper = Gatekeeper::new(Secrets {
            cluster: config.secrets.clone(),
            passwords,
        });
        let live = Live::new(identity.server(asks_clients)?, gatekeeper);

        let (changed, collateral_changed) = mpsc::unbounded_channel();
        let trust = trust(&mut config, &live, &metrics, &health, changed)?;
        let shared = Shared {
            live,
            metrics,
            trust,
            knowledge: Arc::default(),
        };
        let plan = SidecarPlan::new(&config, &shared)
            .map_err(system("cannot start the worker threads"))?;
        let site = Site::new(&config.process, &shared.metrics, driver, config.mode);
        let addresses = Addresses {
            listen: door.address(),
            admin: admin.as_ref().map(admin::Server::address),
        };
        let listeners = door.open().map_err(system(listening))?;
        let listeners = listeners.into_iter().map(Listener::Tcp).collect();
        let shards =
            pool::start(&plan, &site, listeners).map_err(system("cannot start a shard"))?;
        announce(addresses, &config, driver);
        surface.runs(Running {
            live: Arc::clone(&shared.live),
            trust: shared.trust.clone(),
        });
        let sidecar = Self {
            addresses,
            shards,
            shared,
            health,
            derived,
            collateral_changed,
            secret_overlap: config.secret_overlap,
            settle_at: None,
            _admin: admin,
        };
        sidecar.spawn_keepers(&config, origin, identity, &surface);
        sidecar.health.accepting.ready();
        Ok(sidecar)
    }

    /// What goes on beside the shards for as long as the process lives.
    fn spawn_keepers(
        &self,
        config: &Config,
        origin: Origin,
        identity: Identity,
        surface: &Surface,
    ) {
        let steward = Steward {
            origin,
            // The configuration's own has been taken out.
            install: install(&self.shared.live, self.shared.trust.is_some()),
            latch: self.health.identity.clone(),
            tally: surface.tally(),
        };
        if let Some(trust) = &self.shared.trust {
            let (trust, own) = (Arc::clone(trust), identity.clone());
            let latch = self.health.collateral.clone();
            tokio::spawn(async move { collateral_refresh::keep_own(&trust, &own, &latch).await });
        }
        tokio::spawn(steward.run(identity));
        let (endpoint, latch) = (config.postgres.clone(), self.health.postgres.clone());
        let knowledge = Arc::clone(&self.shared.knowledge);
        tokio::spawn(
            async move { upstream_probe::keep_learning(&endpoint, &knowledge, &latch).await },
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
        orders: &mut impl Orders,
        drain_timeout: Duration,
        reload: &impl Fn() -> Result<Config, Errors>,
    ) -> Result<Outcome, Error> {
        systemd::tell_ready();
        let signal = loop {
            tokio::select! {
                Some(()) = self.collateral_changed.recv() => self.shards.tell(|| Message::Recheck),
                () = until(self.settle_at) => self.settle(),
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
        self.shards.tell(|| Message::Drain);
        if let Some(outcome) = self.wait(orders, drain_timeout).await? {
            return Ok(outcome);
        }
        tracing::info!("grace time over, ending the sessions that are left");
        self.shards.tell(|| Message::EndAll);
        match self.wait(orders, LAST_GRACE).await? {
            Some(outcome) => Ok(outcome),
            None => Err(Error::Shard("sessions left after the last grace".into())),
        }
    }

    /// Until every shard has ended, `grace` is over (`None`), or a signal.
    async fn wait(
        &mut self,
        orders: &mut impl Orders,
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
        let (Some(trust), Some(attestation)) = (&self.shared.trust, config.attestation) else {
            tracing::info!("configuration reloaded");
            return;
        };
        let epoch = attestation.policy.epoch();
        let warnings = attestation.warnings();
        if !trust.set_policy(attestation.policy) {
            tracing::info!(policy = %epoch, "configuration reloaded, same policy");
            return;
        }
        tracing::info!(policy = %epoch, "configuration reloaded, new policy");
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.shards.tell(|| Message::Recheck);
    }

    /// New cluster secrets are good at once, those before them for a while.
    ///
    /// # Errors
    /// A password is in neither place; nothing has changed then.
    fn rotate(&mut self, config: &mut Config) -> Result<(), Missing> {
        let passwords = std::mem::take(&mut config.passwords);
        let passwords = passwords.resolve(self.derived.as_ref())?;
        self.secret_overlap = config.secret_overlap;
        let next = Secrets {
            cluster: config.secrets.clone(),
            passwords,
        };
        let gatekeeper = Arc::clone(&self.shared.live.read().gatekeeper);
        let (gatekeeper, changed) = gatekeeper.rotated(next);
        if changed == Rotated::default() {
            return Ok(());
        }
        self.shared.live.set_gatekeeper(gatekeeper);
        if changed.passwords {
            tracing::info!("new passwords for Postgres in use");
        }
        if changed.secrets {
            let overlap = self.secret_overlap;
            tracing::info!(
                ?overlap,
                "new cluster secrets in use, the old ones still good"
            );
            self.settle_at = Some(Instant::now() + overlap);
        }
        Ok(())
    }

    fn settle(&mut self) {
        self.settle_at = None;
        let gatekeeper = Arc::clone(&self.shared.live.read().gatekeeper);
        self.shared.live.set_gatekeeper(gatekeeper.settled());
        tracing::info!("the old cluster secrets are no longer good");
    }
}

fn install(live: &Arc<Live>, asks_clients: bool) -> Install {
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
fn trust(
    config: &mut Config,
    live: &Live,
    metrics: &Metrics,
    health: &Health,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Option<Arc<Trust>>, Error> {
    let Some(mut attestation) = config.attestation.take() else {
        health.collateral.ready();
        return Ok(None);
    };
    let random = live.read().tls.crypto_provider().secure_random;
    let collateral = collateral_refresh::start(&mut attestation, random, metrics, changed)?;
    let control = tokio::runtime::Handle::current();
    let verification = metrics.histogram("teesql_verification_seconds");
    Ok(Some(Trust::new(
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
    surface: &Arc<Surface>,
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
        admin::start(listener, readiness, Arc::clone(surface), settings)
    };
    let server = std::net::TcpListener::bind(address).and_then(start);
    server
        .map(Some)
        .map_err(system(format!("cannot serve HTTP on {address}")))
}

fn announce(addresses: Addresses, config: &Config, driver: Driver) {
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
