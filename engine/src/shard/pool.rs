//! The pool of shard threads: spawn, broadcast, join.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::mode::Mode;
use crate::config::{ProcessConfig, UnattestedLimits};
use crate::io::driver::{self, IoDriver};
use crate::io::listener::Listener;
use crate::io::mailbox::mailbox;
use crate::io::offload::PendingJobs;
use crate::io::peer::Peer;
use crate::io::stream::DetachedStream;
use crate::shard::context::{HandlerFactory, ShardContext};

use crate::sched::busy_poll::{BusyPoll, BusyPollMode};
use crate::sched::delay_timer::TimerQueue;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::session::activity::ShardActivity;
use crate::shard::balancer::Balancer;
use crate::shard::connection_limit::ConnectionLimit;
use crate::shard::event_loop::{Shard, SiblingShards, Timeouts};
use crate::shard::message::{HandedOff, LinkRoute, Message};
use crate::shard::sessions::SessionInspector;
use crate::shard::shared_thread::{ShardSender, SharedThread, ThreadContext, catch_panic};
use crate::shard::unattested::UnattestedPool;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shard_metrics::ShardMetrics;

/// What all shards of a process have in common.
pub(crate) struct ShardConfig {
    metrics: Arc<Metrics>,
    driver: IoDriver,
    mode: Mode,
    limit: Arc<ConnectionLimit>,
    /// Of each shard.
    unattested: UnattestedLimits,
    timeouts: Timeouts,
    pin: bool,
    busy_poll: BusyPollMode,
}

impl ShardConfig {
    /// `max_links` is the limit for each direction.
    pub(crate) fn new(
        config: &ProcessConfig,
        unattested: UnattestedLimits,
        max_links: usize,
        metrics: &Arc<Metrics>,
        driver: IoDriver,
        mode: Mode,
    ) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::clone(metrics),
            driver,
            mode,
            limit: ConnectionLimit::new(config.max_connections, unattested.total, max_links),
            unattested: unattested.of_each_shard(config.shards),
            timeouts: Timeouts {
                login: config.login_timeout,
                idle: config.idle_timeout,
                revocation: config.revocation_grace,
                collateral: config.collateral_grace,
            },
            pin: config.pin,
            busy_poll: config.busy_poll,
        })
    }
}

/// The running shards.
pub(crate) struct ShardPool {
    mailboxes: Arc<[ShardSender]>,
    balancer: Arc<Balancer>,
    driver: IoDriver,
    running: usize,
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
    /// The thread goes on without this pool, so that its shard must be told to end.
    is_shared: bool,
}

/// Starts a shard for each element of `listeners`, which accepts from all of that element.
///
/// # Errors
/// The system has no thread or descriptor left.
pub(crate) fn spawn<P: HandlerFactory>(
    factory: &Arc<P>,
    shard_config: &Arc<ShardConfig>,
    listeners: Vec<Vec<Listener>>,
) -> io::Result<ShardPool> {
    let cores = shard_config.pin.then(core_affinity::get_core_ids).flatten();
    let cores = cores.unwrap_or_default();
    let (report, ended) = mpsc::unbounded_channel();
    let (made, all_made) = std::sync::mpsc::channel::<()>();
    let ends = listeners.iter().map(|_| mailbox());
    let ends = ends.collect::<io::Result<Vec<_>>>()?;
    let senders = ends.iter().map(|(sender, _)| sender.clone().into());
    let mailboxes: Arc<[ShardSender]> = senders.collect();
    let balancer = Balancer::new(listeners.len());
    for (index, (listeners, (sender, inbox))) in listeners.into_iter().zip(ends).enumerate() {
        let core = cores.get(index).copied();
        let siblings = SiblingShards {
            own: index,
            balancer: Arc::clone(&balancer),
            mailboxes: Arc::clone(&mailboxes),
        };
        let (factory, shard_config, report) = (
            Arc::clone(factory),
            Arc::clone(shard_config),
            report.clone(),
        );
        let made = made.clone();
        let start = std::thread::Builder::new().name(format!("shard-{index}"));
        start.spawn(move || {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            // Its first use takes 25 ms, which would delay the first handshake.
            let _ = aws_lc_rs::rand::fill(&mut [0]);
            let main = async {
                let own = ThreadParts::new(&shard_config, siblings.own);
                let shard = build_shard(&factory, &shard_config, siblings, sender.into(), &own);
                drop(made);
                own.activity.busy_poll.start();
                let mail = Rc::clone(&shard);
                let take = move |message| {
                    mail.take(message);
                    true
                };
                shard.background.spawn(async {
                    if let Err(error) = inbox.deliver(take).await {
                        tracing::error!(%error, "a shard gets no further messages");
                    }
                });
                let ended = shard.run(listeners).await;
                own.activity.timers.stop();
                ended
            };
            let run = std::panic::AssertUnwindSafe(|| driver::block_on(shard_config.driver, main));
            let end = match std::panic::catch_unwind(run) {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(error)) | Err(error)) => Err(error.to_string()),
                Err(_) => Err("panic".to_owned()),
            };
            // The control thread may be gone already.
            let _ = report.send(end);
        })?;
    }
    drop(made);
    // Ends when each shard has been built or has failed: its metrics exist before the
    // process reports that it runs.
    let _ = all_made.recv();
    Ok(ShardPool {
        running: mailboxes.len(),
        mailboxes,
        balancer,
        driver: shard_config.driver,
        ended,
        is_shared: false,
    })
}

/// Starts one shard on a thread that it shares with others.
pub(crate) fn spawn_shared<P: HandlerFactory>(
    factory: &Arc<P>,
    shard_config: &Arc<ShardConfig>,
    listener: Listener,
    thread: &SharedThread,
) -> ShardPool {
    let (report, ended) = mpsc::unbounded_channel();
    let (factory, shard_config) = (Arc::clone(factory), Arc::clone(shard_config));
    let balancer = Balancer::new(1);
    let siblings = SiblingShards {
        own: 0,
        balancer: Arc::clone(&balancer),
        // A connection is never handed to another shard.
        mailboxes: Arc::new([]),
    };
    let sender = thread.add(move |sender, context, slot| {
        let parts = ThreadParts::of(context);
        let shard = build_shard(&factory, &shard_config, siblings, sender, &parts);
        let mail = Rc::clone(&shard);
        slot.receive(move |message| mail.take(message));
        drop(monoio::spawn(async move {
            let end = catch_panic(shard.run(vec![listener])).await;
            drop(slot);
            // The control thread may be gone already.
            let _ = report.send(end);
        }));
    });
    ShardPool {
        mailboxes: Arc::new([sender]),
        balancer,
        driver: thread.driver(),
        running: 1,
        ended,
        is_shared: true,
    }
}

/// What a shard has in common with the others of its thread.
struct ThreadParts {
    activity: Rc<ShardActivity>,
    shard_metrics: Rc<ShardMetrics>,
}

impl ThreadParts {
    /// Of a thread with one shard.
    fn new(shard_config: &ShardConfig, shard: usize) -> Self {
        let timers = Rc::<TimerQueue>::default();
        let login_timeout = shard_config.timeouts.login;
        let activity = ShardActivity {
            busy_poll: BusyPoll::new(shard_config.busy_poll),
            handshake_queue: HandshakeQueue::new(login_timeout, Rc::clone(&timers)),
            timers,
        };
        Self {
            activity: Rc::new(activity),
            shard_metrics: Rc::new(ShardMetrics::new(&shard_config.metrics, shard)),
        }
    }

    fn of(thread: &ThreadContext) -> Self {
        Self {
            activity: Rc::clone(&thread.activity),
            shard_metrics: Rc::clone(&thread.shard_metrics),
        }
    }
}

fn build_shard<P: HandlerFactory>(
    factory: &Arc<P>,
    shard_config: &ShardConfig,
    siblings: SiblingShards,
    sender: ShardSender,
    thread: &ThreadParts,
) -> Rc<Shard<P::Handler>> {
    let jobs = PendingJobs::new(Arc::new(move |result| {
        sender.send(Message::JobDone(result))
    }));
    let shard_metrics = Rc::clone(&thread.shard_metrics);
    let full_flag = siblings.balancer.full_flag(siblings.own);
    let unattested = UnattestedPool::new(
        shard_config.unattested,
        Rc::clone(&shard_metrics),
        full_flag,
    );
    let handler = factory.handler(ShardContext {
        shard: siblings.own,
        jobs: jobs.clone(),
        handshake_queue: thread.activity.handshake_queue.clone(),
        shard_metrics,
        access_log: Rc::new(AccessLog::new(shard_config.mode)),
    });
    Shard::new(
        handler,
        jobs,
        shard_config.timeouts,
        Arc::clone(&shard_config.limit),
        unattested,
        siblings,
        Rc::clone(&thread.activity),
    )
}

/// Gives the shards local connections for which links are opened.
#[derive(Clone)]
pub(crate) struct LinkDispatcher {
    mailboxes: Arc<[ShardSender]>,
    balancer: Arc<Balancer>,
    driver: IoDriver,
}

impl LinkDispatcher {
    /// Hands a connection to the shard with the fewest.
    ///
    /// # Errors
    /// The socket cannot be used any more.
    pub(crate) fn open(
        &self,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        route: LinkRoute,
    ) -> io::Result<()> {
        // io_uring completes with EAGAIN on a non-blocking socket instead of waiting.
        stream.set_nonblocking(self.driver == IoDriver::Epoll)?;
        let assignment = self.balancer.assign(0);
        if let Some(shard) = self.mailboxes.get(assignment.shard()) {
            let handed_off = HandedOff {
                stream: DetachedStream::Tcp(stream),
                peer: Peer::Tcp(peer),
                assignment,
            };
            shard.send(Message::OpenLink(handed_off, route));
        }
        Ok(())
    }
}

impl ShardPool {
    /// What gives the shards local connections for which links are opened.
    pub(crate) fn link_dispatcher(&self) -> LinkDispatcher {
        LinkDispatcher {
            mailboxes: Arc::clone(&self.mailboxes),
            balancer: Arc::clone(&self.balancer),
            driver: self.driver,
        }
    }

    /// What asks the shards about their connections.
    pub(crate) fn inspector(&self) -> SessionInspector {
        SessionInspector {
            mailboxes: Arc::clone(&self.mailboxes),
        }
    }

    pub(crate) fn broadcast(&self, message: impl Fn() -> Message) {
        for shard in self.mailboxes.iter() {
            shard.send(message());
        }
    }

    /// Sends a message to every shard, from a task that does not own the pool.
    pub(crate) fn broadcaster(&self) -> impl Fn(&dyn Fn() -> Message) + Send + 'static {
        let mailboxes = Arc::clone(&self.mailboxes);
        move |message| {
            for shard in mailboxes.iter() {
                shard.send(message());
            }
        }
    }

    /// Waits until a shard ends unexpectedly. Returns why.
    pub(crate) async fn failure(&mut self) -> String {
        match self.ended.recv().await {
            Some(Err(reason)) => reason,
            Some(Ok(())) => "it stopped accepting".to_owned(),
            None => "all of them".to_owned(),
        }
    }

    /// Waits until every shard has ended after a drain.
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

impl Drop for ShardPool {
    fn drop(&mut self) {
        if self.is_shared {
            self.broadcast(|| Message::Drain);
            self.broadcast(|| Message::TerminateAll);
        }
    }
}
