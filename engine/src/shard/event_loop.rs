//! A shard's event loop: it accepts connections, hands them to less loaded shards, and
//! carries out the messages of other threads.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use slab::Slab;

use crate::io::listener::{self, ActiveListener, Listener};
use crate::io::offload::PendingJobs;
use crate::io::peer::Peer;
use crate::io::stream::Stream;
use crate::io::tcp_info;
use crate::sched::yield_now::yield_now;
use crate::session::activity::ShardActivity;
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::shard::background::BackgroundTasks;
use crate::shard::balancer::Balancer;
use crate::shard::connection::Connection;
use crate::shard::connection_limit::ConnectionLimit;
use crate::shard::handler::ConnectionHandler;
use crate::shard::leader_change::LeaderChange;
use crate::shard::message::{HandedOff, LinkRoute, Message};
use crate::shard::shared_thread::ShardSender;
use crate::shard::unattested::UnattestedPool;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Interval at which expired verdicts are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often a shard logs that accepts fail.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which a shard that leaves connections in its backlog looks whether it may accept again.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(2);
/// Interval of the connections that end an accept: another shard may have taken one.
const WAKE_ACCEPT_INTERVAL: Duration = Duration::from_millis(10);

/// The shards of the process, as one of them sees them.
pub(crate) struct SiblingShards {
    /// This shard's number.
    pub(crate) own: usize,
    pub(crate) balancer: Arc<Balancer>,
    /// Every shard's mailbox, by number.
    pub(crate) mailboxes: Arc<[ShardSender]>,
}

/// How long each part of a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) login: Duration,
    pub(crate) idle: Option<Duration>,
    /// From a change of policy or collateral to the end of the sessions that
    /// it refuses.
    pub(crate) revocation: Duration,
    /// How long sessions may continue without valid collateral. `None` sets no limit.
    pub(crate) collateral: Option<Duration>,
}

/// What a shard's tasks share.
pub(crate) struct Shard<S> {
    pub(crate) handler: S,
    pub(crate) jobs: PendingJobs,
    pub(crate) timeouts: Timeouts,
    pub(crate) limit: Arc<ConnectionLimit>,
    pub(super) unattested: UnattestedPool,
    siblings: SiblingShards,
    pub(super) activity: Rc<ShardActivity>,
    pub(super) connections: RefCell<Slab<Connection>>,
    draining: Cell<bool>,
    /// Changes of policy or collateral so far.
    pub(super) revalidations: Cell<u64>,
    pub(super) leader_change: LeaderChange,
    /// The open listeners.
    listeners: RefCell<Vec<RawFd>>,
    accept_failures: AcceptFailures,
    /// Woken when the last connection has ended.
    pub(super) emptied: RefCell<Option<Waker>>,
    pub(super) background: Rc<BackgroundTasks>,
}

impl<S: ConnectionHandler> Shard<S> {
    pub(crate) fn new(
        handler: S,
        jobs: PendingJobs,
        timeouts: Timeouts,
        limit: Arc<ConnectionLimit>,
        unattested: UnattestedPool,
        siblings: SiblingShards,
        activity: Rc<ShardActivity>,
    ) -> Rc<Self> {
        Rc::new(Self {
            handler,
            jobs,
            timeouts,
            limit,
            unattested,
            siblings,
            activity,
            connections: RefCell::default(),
            draining: Cell::new(false),
            revalidations: Cell::new(0),
            leader_change: LeaderChange::default(),
            listeners: RefCell::default(),
            accept_failures: AcceptFailures::default(),
            emptied: RefCell::new(None),
            background: Rc::default(),
        })
    }

    /// Serves until drained. [`Self::take`] must get its messages meanwhile.
    ///
    /// # Errors
    /// A listener cannot be used.
    pub(crate) async fn run(self: Rc<Self>, listeners: Vec<Listener>) -> io::Result<()> {
        let listeners = listeners.into_iter().map(Listener::on_this_thread);
        let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
        let open = listeners.iter().map(ActiveListener::raw_fd).collect();
        self.listeners.replace(open);
        self.background.spawn(Rc::clone(&self).upkeep());
        self.accept_all(&listeners).await;
        self.listeners.take();
        drop(listeners);
        self.all_ended().await;
        self.background.end().await;
        Ok(())
    }

    /// The work besides the connections.
    async fn upkeep(self: Rc<Self>) {
        let collateral = async {
            if let Some(grace) = self.timeouts.collateral {
                self.watch_collateral(grace).await;
            }
        };
        futures_util::future::join(self.sweep_caches(), collateral).await;
    }

    /// Frees the memory of expired verdicts, also while no client connects.
    async fn sweep_caches(&self) {
        loop {
            monoio::time::sleep(SWEEP_INTERVAL).await;
            let context = self.handler.context();
            context.gate.sweep_cache().await;
            if let Some(members) = context.member_gate() {
                members.sweep_cache().await;
            }
        }
    }

    /// Carries out a message of another thread.
    pub(super) fn take(self: &Rc<Self>, message: Message) {
        match message {
            Message::JobDone(result) => self.jobs.complete(result),
            Message::Drain => {
                self.draining.set(true);
                for fd in self.listeners.borrow().iter() {
                    self.end_accept(*fd);
                }
            }
            Message::TerminateAll => {
                for control in self.controls() {
                    control.terminate(TerminateReason::Shutdown);
                }
            }
            Message::Revalidate => self.background.spawn(Rc::clone(self).revalidate()),
            Message::ClusterChanged(change) => self.cluster_changed(change),
            Message::LeaderChanged(leader) => {
                self.background.spawn(Rc::clone(self).follow(leader));
            }
            Message::Sessions(request) => {
                self.background
                    .spawn(Rc::clone(self).report_sessions(request));
            }
            Message::HandOff(handed_off) => self.accept_handoff(handed_off, None),
            Message::OpenLink(handed_off, route) => self.accept_handoff(handed_off, Some(route)),
        }
    }

    /// Ends the accept that is waiting. It must not be cancelled: monoio 0.2.4 would leak the
    /// accepted socket ([`crate::sched`]).
    fn end_accept(self: &Rc<Self>, fd: RawFd) {
        match listener::unix_path(fd) {
            None => {
                let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
            }
            Some(path) => self.background.spawn(Rc::clone(self).wake_accept(path)),
        }
    }

    /// Shutting a Unix socket down does not end an accept on Linux; a connection does. The
    /// shards share the socket, and each needs one connection.
    async fn wake_accept(self: Rc<Self>, path: PathBuf) {
        while !self.listeners.borrow().is_empty() {
            listener::wake_accept(&path);
            monoio::time::sleep(WAKE_ACCEPT_INTERVAL).await;
        }
    }

    pub(super) fn controls(&self) -> Vec<Rc<ConnectionControl>> {
        let connections = self.connections.borrow();
        connections
            .iter()
            .map(|(_, connection)| Rc::clone(&connection.control))
            .collect()
    }

    /// Accepts from each listener in turn, until drained.
    async fn accept_all(self: &Rc<Self>, listeners: &[ActiveListener]) {
        let mut accepts = FuturesUnordered::new();
        // The message may have come before the listeners were there to be ended.
        if !self.draining.get() {
            accepts.extend(listeners.iter().map(accept_from));
        }
        // Each accept has to end, also after the drain has begun.
        while let Some((accepted, listener)) = accepts.next().await {
            if self.draining.get() {
                continue;
            }
            match accepted {
                Ok((stream, peer)) => {
                    self.dispatch(stream, peer);
                    // It is served before the next accept: what it has sent may be a whole ClientHello.
                    yield_now().await;
                }
                Err(error) => {
                    self.accept_failed(&error);
                    monoio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
            self.wait_for_place().await;
            if !self.draining.get() {
                accepts.push(accept_from(listener));
            }
        }
    }

    /// Waits until a connection can be accepted. Those in the backlog count for the pace of the handshakes.
    async fn wait_for_place(&self) {
        let handshake_queue = &self.activity.handshake_queue;
        while self.unattested.is_full(Instant::now()) && !self.draining.get() {
            handshake_queue.set_backlog(self.backlog_len());
            monoio::time::sleep(BACKLOG_INTERVAL).await;
        }
        handshake_queue.set_backlog(0);
    }

    /// Connections that the kernel has completed for this shard and that are not accepted yet.
    fn backlog_len(&self) -> u32 {
        let listeners = self.listeners.borrow();
        listeners.iter().copied().map(tcp_info::backlog_len).sum()
    }

    /// Serves a connection on this shard, or hands it to the one with the fewest.
    fn dispatch(self: &Rc<Self>, stream: Stream, peer: Peer) {
        let SiblingShards {
            own,
            balancer,
            mailboxes,
        } = &self.siblings;
        let assignment = balancer.assign(*own);
        if assignment.shard() != *own
            && let Some(mailbox) = mailboxes.get(assignment.shard())
            // Without descriptors it is served here.
            && let Ok(moving) = stream.detach()
        {
            mailbox.send(Message::HandOff(HandedOff {
                stream: moving,
                peer,
                assignment,
            }));
        } else {
            monoio::spawn(Rc::clone(self).connection(stream, peer, assignment));
        }
    }

    /// Serves a connection of another thread; with a route one for which a link is opened.
    fn accept_handoff(self: &Rc<Self>, handed_off: HandedOff, route: Option<LinkRoute>) {
        let HandedOff {
            stream,
            peer,
            assignment,
        } = handed_off;
        if self.draining.get() {
            return;
        }
        match (stream.on_this_thread(), route) {
            (Ok(stream), None) => {
                monoio::spawn(Rc::clone(self).connection(stream, peer, assignment));
            }
            (Ok(stream), Some(route)) => {
                monoio::spawn(Rc::clone(self).link(stream, peer, assignment, route));
            }
            (Err(error), _) => self.accept_failed(&error),
        }
    }

    /// Counts a failure, and logs the first one in each interval.
    fn accept_failed(&self, error: &io::Error) {
        self.handler.context().shard_metrics.accept_failed();
        if let Some(failures) = self.accept_failures.count(Instant::now()) {
            tracing::error!(%error, failures, "accept failed");
        }
    }

    async fn all_ended(&self) {
        poll_fn(|cx| {
            if self.connections.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.emptied.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The next connection of a listener, and the listener.
async fn accept_from(listener: &ActiveListener) -> (io::Result<(Stream, Peer)>, &ActiveListener) {
    (listener.accept().await, listener)
}

/// Failed accepts that are not logged yet.
#[derive(Default)]
struct AcceptFailures {
    count: Cell<u64>,
    last_line: Cell<Option<Instant>>,
}

impl AcceptFailures {
    /// Counts a failure. Returns the number of failures since the last line if a line is due.
    fn count(&self, now: Instant) -> Option<u64> {
        self.count.set(self.count.get() + 1);
        let last_line = self.last_line.get();
        if last_line.is_some_and(|last| now.duration_since(last) < FAILURE_LOG_INTERVAL) {
            return None;
        }
        self.last_line.set(Some(now));
        Some(self.count.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_accept_are_logged_once_in_an_interval() {
        let (failures, start) = (AcceptFailures::default(), Instant::now());
        assert_eq!(failures.count(start), Some(1));
        for _ in 0..40 {
            assert_eq!(failures.count(start + FAILURE_LOG_INTERVAL / 2), None);
        }
        assert_eq!(failures.count(start + FAILURE_LOG_INTERVAL), Some(41));
    }
}
