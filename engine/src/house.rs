//! The threads: shards, workers, and what they are built from.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::driver::{self, Driver};
use crate::gate::{Gate, Guard};
use crate::lane::Lane;
use crate::live::Live;
use crate::log::Journal;
use crate::mailbox::{Sender, mailbox};
use crate::metrics::{Meters, Metrics};
use crate::mode::Mode;
use crate::net;
use crate::offload::{Tickets, Worker};
use crate::shard::{Limit, Message, Replies, Shard, Times};
use crate::sidecar::Service;
use crate::trust::Trust;
use crate::upstream::{Injector, Knowledge};

/// How far the verify thread stands back behind the shards: a third of their
/// weight, so that a crowd of strangers waits rather than those who are inside
/// (docs/decisions/handshake-lane.md).
const VERIFY_NICE: i32 = 5;

/// What every shard is built from.
pub(crate) struct Plan {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    trust: Option<Arc<Trust>>,
    knowledge: Arc<Knowledge>,
    verify: Worker,
    worker: Worker,
    limit: Arc<Limit>,
    driver: Driver,
    mode: Mode,
    endpoint: net::Endpoint,
    plaintext_cancel: bool,
    require_alpn: bool,
    proxy_protocol_from: Vec<ipnet::IpNet>,
    times: Times,
}

/// What shards share with the control thread.
pub(crate) struct Shared {
    pub(crate) live: Arc<Live>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) trust: Option<Arc<Trust>>,
    pub(crate) knowledge: Arc<Knowledge>,
}

/// The running shards.
pub(crate) struct Shards {
    mailboxes: Vec<Sender<Message>>,
    running: usize,
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
}

impl Plan {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn new(config: &Config, driver: Driver, shared: &Shared) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            live: Arc::clone(&shared.live),
            metrics: Arc::clone(&shared.metrics),
            trust: shared.trust.clone(),
            knowledge: Arc::clone(&shared.knowledge),
            verify: Worker::start("verify", VERIFY_NICE)?,
            worker: Worker::start("worker", 0)?,
            limit: Limit::new(config.max_connections),
            driver,
            mode: config.mode,
            endpoint: config.postgres.clone(),
            plaintext_cancel: config.plaintext_cancel,
            require_alpn: config.require_alpn,
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            times: Times {
                login: config.login_timeout,
                idle: config.idle_timeout,
                revocation: config.revocation_grace,
            },
        }))
    }

    /// Starts a shard for each listener; `pin` ties each to a core.
    ///
    /// # Errors
    /// The system has no thread or descriptor left.
    pub(crate) fn start(
        self: &Arc<Self>,
        listeners: Vec<TcpListener>,
        pin: bool,
    ) -> io::Result<Shards> {
        let cores = pin.then(core_affinity::get_core_ids).flatten();
        let cores = cores.unwrap_or_default();
        let (report, ended) = mpsc::unbounded_channel();
        let (made, all_made) = std::sync::mpsc::channel();
        let mut mailboxes = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let core = cores.get(index).copied();
            let (report, made) = (report.clone(), made.clone());
            mailboxes.push(self.start_one(index, core, listener, report, made)?);
        }
        drop(made);
        // Ends when each shard has made its things or has failed: its series are
        // there before anybody is told that it runs.
        let _ = all_made.recv();
        Ok(Shards {
            running: mailboxes.len(),
            mailboxes,
            ended,
        })
    }

    fn start_one(
        self: &Arc<Self>,
        index: usize,
        core: Option<core_affinity::CoreId>,
        listener: TcpListener,
        report: mpsc::UnboundedSender<Result<(), String>>,
        made: std::sync::mpsc::Sender<()>,
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
                    let shard = plan.shard(index, replies);
                    drop(made);
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
    fn shard(&self, index: usize, sender: Sender<Message>) -> Rc<Shard> {
        let meters = Rc::new(Meters::new(&self.metrics, index));
        let tickets = Tickets::default();
        let replies = Replies(sender);
        let gate = match &self.trust {
            None => Gate::Open,
            Some(trust) => Gate::Guarded(Box::new(Guard::new(
                Arc::clone(trust),
                self.verify.clone(),
                tickets.clone(),
                replies.clone(),
                Rc::clone(&meters),
            ))),
        };
        let service = Service {
            live: Arc::clone(&self.live),
            lane: Lane::default(),
            gate,
            meters,
            injector: Injector {
                endpoint: self.endpoint.clone(),
                knowledge: Arc::clone(&self.knowledge),
                worker: self.worker.clone(),
                tickets: tickets.clone(),
                replies,
                keys: std::cell::RefCell::default(),
                random: self.live.read().tls.crypto_provider().secure_random,
            },
            plaintext_cancel: self.plaintext_cancel,
            trust_loopback: self.mode == Mode::Simulator,
            require_alpn: self.require_alpn,
            proxy_protocol_from: self.proxy_protocol_from.clone(),
        };
        let journal = Journal::new(self.mode);
        Shard::new(
            service,
            tickets,
            self.times,
            Arc::clone(&self.limit),
            journal,
        )
    }
}

impl Shards {
    pub(crate) fn tell(&self, message: impl Fn() -> Message) {
        for shard in &self.mailboxes {
            shard.send(message());
        }
    }

    /// Why a shard ended that should not have.
    pub(crate) async fn failure(&mut self) -> String {
        match self.ended.recv().await {
            Some(Err(reason)) => reason,
            Some(Ok(())) => "it stopped accepting".to_owned(),
            None => "all of them".to_owned(),
        }
    }

    /// Until every one has ended after a drain.
    ///
    /// # Errors
    /// One of them failed.
    pub(crate) async fn all_ended(&mut self) -> Result<(), String> {
        while self.running > 0 {
            match self.ended.recv().await {
                Some(Ok(())) => self.running -= 1,
                Some(Err(reason)) => return Err(reason),
                None => return Err("all of them".to_owned()),
            }
        }
        Ok(())
    }
}
