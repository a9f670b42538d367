//! The process: shards up, signals heard, shards down.
//!
//! The control thread is this one, with a small runtime of its own for
//! everything that is slow; no connection is ever served on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::driver::{self, Driver};
use crate::mailbox::{Sender, mailbox};
use crate::net;
use crate::offload::{Tickets, Worker};
use crate::probe;
use crate::roles::Gatekeeper;
use crate::shard::{Limit, Message, Shard, Times};
use crate::sidecar::Service;
use crate::upstream::{Injector, Knowledge};

/// After the order to end, connections get their last words out in at most
/// twice 2 s; a shard that is still not done then is given up.
const LAST_GRACE: Duration = Duration::from_secs(6);

/// Why the sidecar does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate or key cannot be used: a mistake in the configuration.
    #[error("{0}")]
    Identity(String),
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

/// The TLS side of the identity.
///
/// # Errors
/// A file that cannot be read or parsed, or a key of another certificate.
pub fn tls_config(config: &Config) -> Result<Arc<ServerConfig>, Error> {
    let identity = |path: &std::path::Path, what: &str, error: &dyn std::fmt::Display| {
        Error::Identity(format!("{}: {what}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(&config.tls_cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| identity(&config.tls_cert, "not a PEM certificate", &error))?;
    if chain.is_empty() {
        return Err(identity(
            &config.tls_cert,
            "not a PEM certificate",
            &"none in it",
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&config.tls_key)
        .map_err(|error| identity(&config.tls_key, "not a PEM private key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Identity(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| identity(&config.tls_cert, "does not go with tls_key", &error))?;
    // libpq 17 and later insist on it for direct TLS (IANA: postgresql).
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    // No resumption: the gate has to see the peer's certificate every time.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(tls))
}

/// Runs the sidecar until it is told to stop.
///
/// # Errors
/// It could not start, or a shard failed.
pub fn run(config: Config) -> Result<Outcome, Error> {
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
        let outcome = house.live(&mut signals, drain_timeout).await;
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
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
    knowledge: Arc<Knowledge>,
}

impl House {
    fn build(config: Config) -> Result<Self, Error> {
        let tls = tls_config(&config)?;
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
        let worker = Worker::start("worker").map_err(system("cannot start the worker thread"))?;
        let pin = config.pin;
        let plan = Arc::new(Plan {
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
            shards,
            ended,
            knowledge: Arc::clone(&plan.knowledge),
        })
    }

    async fn live(
        &mut self,
        signals: &mut Signals,
        drain_timeout: Duration,
    ) -> Result<Outcome, Error> {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            end = self.ended.recv() => return Err(shard_error(end)),
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
    fn shard(&self, replies: Sender<Message>) -> std::rc::Rc<Shard> {
        let tickets = Tickets::default();
        let service = Service {
            tls: Arc::clone(&self.tls),
            gatekeeper: Arc::clone(&self.gatekeeper),
            injector: Injector {
                endpoint: self.endpoint.clone(),
                knowledge: Arc::clone(&self.knowledge),
                worker: self.worker.clone(),
                tickets: tickets.clone(),
                reply: Box::new(move || {
                    let replies = replies.clone();
                    Box::new(move |done| replies.send(Message::Done(done)))
                }),
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
