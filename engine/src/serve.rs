//! The process: shards up, signals heard, shards down.
//!
//! The control thread is this one, with a small runtime of its own for
//! everything that is slow; no connection is ever served on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::{Attestation, Config, Errors};
use crate::driver::{self, Driver};
use crate::gate::{Gate, Guard};
use crate::identity::{IdentityError, tls_config};
use crate::keeper;
use crate::lane::Lane;
use crate::mailbox::{Sender, mailbox};
use crate::net;
use crate::offload::{Tickets, Worker};
use crate::probe;
use crate::roles::Gatekeeper;
use crate::shard::{Limit, Message, Replies, Shard, Times};
use crate::sidecar::Service;
use crate::trust::Trust;
use crate::upstream::{Injector, Knowledge};

/// After the order to end, connections get their last words out in at most
/// twice 2 s; a shard that is still not done then is given up.
const LAST_GRACE: Duration = Duration::from_secs(6);
/// How far the verify thread stands back behind the shards: a third of their
/// weight, so that a crowd of strangers waits rather than those who are inside
/// (docs/decisions/handshake-lane.md).
const VERIFY_NICE: i32 = 5;

/// Why the sidecar does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate or key cannot be used: a mistake in the configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The HTTP client for collateral cannot be set up.
    #[error(transparent)]
    Collateral(#[from] attest::collateral::FetchError),
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

/// Runs the sidecar until it is told to stop.
///
/// On SIGHUP, `reload` reads the configuration again, and its policy is put in
/// force.
///
/// # Errors
/// It could not start, or a shard failed.
pub fn run(config: Config, reload: impl Fn() -> Result<Config, Errors>) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the control thread"))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(system("cannot listen for signals"))?;
        let (endpoint, drain_timeout) = (config.postgres.clone(), config.drain_timeout);
        let mut house = House::build(config)?;
        let knowledge = Arc::clone(&house.knowledge);
        let learner =
            tokio::spawn(async move { probe::keep_learning(&endpoint, &knowledge).await });
        let outcome = house.live(&mut signals, drain_timeout, &reload).await;
        learner.abort();
        outcome
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// To stop.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// The running shards.
struct House {
    shards: Vec<Sender<Message>>,
    running: usize,
    hangup: Signal,
    trust: Option<Arc<Trust>>,
    collateral_changed: mpsc::UnboundedReceiver<()>,
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
    knowledge: Arc<Knowledge>,
}

impl House {
    fn build(mut config: Config) -> Result<Self, Error> {
        let asks = config.attestation.is_some();
        let tls = tls_config(&config.tls_cert, &config.tls_key, asks)?;
        let (driver, refusal) =
            driver::choose(config.driver).map_err(system("io_uring is not available"))?;
        if let Some(error) = refusal {
            tracing::warn!(%error, "io_uring is not available, using epoll");
        }
        let listeners = net::bind(config.listen, config.shards)
            .map_err(system(format!("cannot listen on {}", config.listen)))?;
        let address = listeners
            .first()
            .and_then(|listener| listener.local_addr().ok())
            .unwrap_or(config.listen);
        announce(address, &config, driver);
        let worker =
            Worker::start("worker", 0).map_err(system("cannot start the worker thread"))?;
        let pin = config.pin;
        let (changed, collateral_changed) = mpsc::unbounded_channel();
        let trust = match config.attestation.take() {
            Some(attestation) => Some(trust(attestation, &tls, changed)?),
            None => None,
        };
        let verify = Worker::start("verify", VERIFY_NICE)
            .map_err(system("cannot start the verify thread"))?;
        let plan = Arc::new(Plan {
            trust: trust.clone(),
            verify,
            tls,
            gatekeeper: Arc::new(Gatekeeper::new(config.secrets)),
            knowledge: Arc::default(),
            worker,
            driver,
            limit: Limit::new(config.max_connections),
            endpoint: config.postgres,
            plaintext_cancel: config.plaintext_cancel,
            require_alpn: config.require_alpn,
            proxy_protocol_from: config.proxy_protocol_from,
            times: Times {
                login: config.login_timeout,
                idle: config.idle_timeout,
                revocation: config.revocation_grace,
            },
        });
        let cores = if pin {
            core_affinity::get_core_ids().unwrap_or_default()
        } else {
            Vec::new()
        };
        let (report, ended) = mpsc::unbounded_channel();
        let mut shards = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let core = cores.get(index).copied();
            let sender = plan
                .start(index, core, listener, report.clone())
                .map_err(system("cannot start a shard"))?;
            shards.push(sender);
        }
        Ok(Self {
            running: shards.len(),
            hangup: signal(SignalKind::hangup()).map_err(system("cannot listen for signals"))?,
            trust,
            collateral_changed,
            shards,
            ended,
            knowledge: Arc::clone(&plan.knowledge),
        })
    }

    async fn live(
        &mut self,
        signals: &mut Signals,
        drain_timeout: Duration,
        reload: &impl Fn() -> Result<Config, Errors>,
    ) -> Result<Outcome, Error> {
        let signal = loop {
            tokio::select! {
                _ = self.hangup.recv() => self.reload(reload()),
                Some(()) = self.collateral_changed.recv() => self.tell(|| Message::Recheck),
                signal = signals.next() => break signal,
                end = self.ended.recv() => return Err(shard_error(end)),
            }
        };
        tracing::info!(signal = signal.as_raw_value(), ?drain_timeout, "draining");
        self.tell(|| Message::Drain);
        let grace = tokio::time::sleep(drain_timeout);
        if let Some(outcome) = self.wait(signals, grace).await? {
            return Ok(outcome);
        }
        tracing::info!("grace time over, ending the sessions that are left");
        self.tell(|| Message::EndAll);
        let grace = tokio::time::sleep(LAST_GRACE);
        match self.wait(signals, grace).await? {
            Some(outcome) => Ok(outcome),
            None => Err(Error::Shard("sessions left after the last grace".into())),
        }
    }

    /// Puts a new policy in force. Everything else needs a restart.
    fn reload(&self, config: Result<Config, Errors>) {
        let attestation = match config {
            Ok(config) => config.attestation,
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(error, "configuration not reloaded");
                }
                return;
            }
        };
        let (Some(trust), Some(attestation)) = (&self.trust, attestation) else {
            tracing::warn!("whether clients are attested changes with a restart only");
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
        self.tell(|| Message::Recheck);
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for shard in &self.shards {
            shard.send(message());
        }
    }

    /// Until every shard has ended, `grace` is over (`None`), or a signal.
    async fn wait(
        &mut self,
        signals: &mut Signals,
        grace: impl Future<Output = ()>,
    ) -> Result<Option<Outcome>, Error> {
        let mut grace = std::pin::pin!(grace);
        while self.running > 0 {
            tokio::select! {
                signal = signals.next() => {
                    return Ok(Some(Outcome::Interrupted(signal.as_raw_value())));
                }
                end = self.ended.recv() => match end {
                    Some(Ok(())) => self.running -= 1,
                    end => return Err(shard_error(end)),
                },
                () = &mut grace => return Ok(None),
            }
        }
        Ok(Some(Outcome::Drained))
    }
}

/// What clients are judged with. The keeper runs on this thread from here on.
fn trust(
    mut attestation: Attestation,
    tls: &ServerConfig,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Arc<Trust>, Error> {
    let random = tls.crypto_provider().secure_random;
    let collateral = keeper::start(&mut attestation, random, changed)?;
    let control = tokio::runtime::Handle::current();
    Ok(Trust::new(
        attestation.policy,
        attestation.root,
        collateral,
        control,
    ))
}

fn shard_error(end: Option<Result<(), String>>) -> Error {
    Error::Shard(match end {
        Some(Err(reason)) => reason,
        Some(Ok(())) => "it stopped accepting".to_owned(),
        None => "all of them".to_owned(),
    })
}

fn announce(address: SocketAddr, config: &Config, driver: Driver) {
    tracing::info!(
        %address,
        postgres = %config.postgres,
        shards = config.shards,
        %driver,
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// What every shard is built from.
struct Plan {
    trust: Option<Arc<Trust>>,
    verify: Worker,
    tls: Arc<ServerConfig>,
    gatekeeper: Arc<Gatekeeper>,
    knowledge: Arc<Knowledge>,
    worker: Worker,
    driver: Driver,
    limit: Arc<Limit>,
    endpoint: net::Endpoint,
    plaintext_cancel: bool,
    require_alpn: bool,
    proxy_protocol_from: Vec<ipnet::IpNet>,
    times: Times,
}

impl Plan {
    fn start(
        self: &Arc<Self>,
        index: usize,
        core: Option<core_affinity::CoreId>,
        listener: std::net::TcpListener,
        report: mpsc::UnboundedSender<Result<(), String>>,
    ) -> io::Result<Sender<Message>> {
        let (sender, mailbox) = mailbox()?;
        let (plan, replies) = (Arc::clone(self), sender.clone());
        std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                let main = async {
                    let shard = plan.shard(replies);
                    shard.run(listener, mailbox).await
                };
                let run = std::panic::AssertUnwindSafe(|| driver::block_on(plan.driver, main));
                let end = match std::panic::catch_unwind(run) {
                    Ok(Ok(Ok(()))) => Ok(()),
                    Ok(Ok(Err(error)) | Err(error)) => Err(error.to_string()),
                    Err(_) => Err("panic".to_owned()),
                };
                // The control thread may be gone already.
                let _ = report.send(end);
            })?;
        Ok(sender)
    }

    /// A shard's own things; made on its thread, where they stay.
    fn shard(&self, sender: Sender<Message>) -> std::rc::Rc<Shard> {
        let tickets = Tickets::default();
        let replies = Replies(sender);
        let gate = match &self.trust {
            None => Gate::Open,
            Some(trust) => Gate::Guarded(Box::new(Guard::new(
                Arc::clone(trust),
                self.verify.clone(),
                tickets.clone(),
                replies.clone(),
            ))),
        };
        let service = Service {
            tls: Arc::clone(&self.tls),
            lane: Lane::default(),
            gate,
            gatekeeper: Arc::clone(&self.gatekeeper),
            injector: Injector {
                endpoint: self.endpoint.clone(),
                knowledge: Arc::clone(&self.knowledge),
                worker: self.worker.clone(),
                tickets: tickets.clone(),
                replies,
                keys: std::cell::RefCell::default(),
                random: self.tls.crypto_provider().secure_random,
            },
            plaintext_cancel: self.plaintext_cancel,
            require_alpn: self.require_alpn,
            proxy_protocol_from: self.proxy_protocol_from.clone(),
        };
        Shard::new(service, tickets, self.times, Arc::clone(&self.limit))
    }
}
