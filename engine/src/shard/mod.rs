//! One thread, one runtime, one listener: a shard owns its connections from
//! accept to close and shares nothing that is written on the data path.

mod balancer;
pub(crate) mod context;
pub(crate) mod live_config;
pub(crate) mod pool;
mod revalidation;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use slab::Slab;

use crate::attestation::gate::Gate;
use crate::io::listener::{self, ActiveListener, Listener};
use crate::io::mailbox::{Mailbox, Sender};
use crate::io::offload::{JobResult, PendingJobs};
use crate::io::peer::Peer;
use crate::io::stream::{DetachedStream, Stream};
use crate::sched::handshake_queue::HandshakeQueue;
use crate::session::activity::ShardActivity;
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::shard::balancer::{Balancer, ShardAssignment};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::shard_metrics::ShardMetrics;

/// Connections past the limit that are let in as far as being told so (53300,
/// inside TLS), or to send a CancelRequest. Past these the socket just closes.
const REJECT_HEADROOM: usize = 64;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Another shard may have taken the connection that was meant for this one.
const WAKE_ACCEPT_INTERVAL: Duration = Duration::from_millis(10);

/// What other threads tell a shard.
pub(crate) enum Message {
    /// An offloaded job has completed.
    JobDone(JobResult),
    /// Accept no more; return when the last connection has ended.
    Drain,
    /// The grace time is over.
    TerminateAll,
    /// Policy or collateral has changed: look at every session again.
    Revalidate,
    /// Serve this connection, which another shard has accepted.
    HandOff(HandedOff),
}

/// An accepted connection on its way to the shard that serves it.
pub(crate) struct HandedOff {
    stream: DetachedStream,
    peer: Peer,
    permit: ConnectionPermit,
    assignment: ShardAssignment,
}

/// A shard's view of the others.
pub(crate) struct SiblingShards {
    /// Its own number.
    pub(crate) own: usize,
    pub(crate) balancer: Arc<Balancer>,
    /// Every shard's mailbox, by number.
    pub(crate) mailboxes: Arc<[Sender<Message>]>,
}

/// How long each part of a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) login: Duration,
    pub(crate) idle: Option<Duration>,
    /// From a change of policy or collateral to the end of the sessions that
    /// it refuses.
    pub(crate) revocation: Duration,
}

/// The process-wide connection limit. Touched at accept and at close only.
pub(crate) struct ConnectionLimit {
    most: usize,
    live: AtomicUsize,
}

/// A connection's assignment under the limit, given back when dropped.
pub(crate) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    granted: bool,
}

impl ConnectionLimit {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            live: AtomicUsize::new(0),
        })
    }

    fn enter(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let others = self.live.fetch_add(1, Ordering::Relaxed);
        let permit = ConnectionPermit {
            limit: Arc::clone(self),
            granted: others < self.most,
        };
        (others < self.most.saturating_add(REJECT_HEADROOM)).then_some(permit)
    }
}

impl ConnectionPermit {
    /// Whether this connection may become a session.
    pub(crate) fn is_granted(&self) -> bool {
        self.granted
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limit.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a shard serves its connections with.
pub(crate) trait ConnectionHandler: 'static {
    /// What the shard itself needs of it.
    fn context(&self) -> &HandlerContext;

    /// Serves one accepted connection to its end.
    fn serve(
        &self,
        stream: Stream,
        permit: &ConnectionPermit,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> impl Future<Output = CloseReason>;
}

/// What every kind of service has.
pub(crate) struct HandlerContext {
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) gate: Gate,
    pub(crate) shard_metrics: Rc<ShardMetrics>,
    pub(crate) access_log: Rc<AccessLog>,
}

/// Everything that a shard's tasks share.
pub(crate) struct Shard<S> {
    pub(crate) handler: S,
    pub(crate) jobs: PendingJobs,
    pub(crate) timeouts: Timeouts,
    pub(crate) limit: Arc<ConnectionLimit>,
    siblings: SiblingShards,
    traffic: Rc<ShardActivity>,
    connections: RefCell<Slab<Rc<ConnectionControl>>>,
    draining: Cell<bool>,
    /// Changes of policy or collateral so far.
    revalidations: Cell<u64>,
    listener: Cell<Option<RawFd>>,
    emptied: RefCell<Option<Waker>>,
}

impl<S: ConnectionHandler> Shard<S> {
    pub(crate) fn new(
        handler: S,
        jobs: PendingJobs,
        timeouts: Timeouts,
        limit: Arc<ConnectionLimit>,
        siblings: SiblingShards,
        traffic: Rc<ShardActivity>,
    ) -> Rc<Self> {
        Rc::new(Self {
            handler,
            jobs,
            timeouts,
            limit,
            siblings,
            traffic,
            connections: RefCell::default(),
            draining: Cell::new(false),
            revalidations: Cell::new(0),
            listener: Cell::new(None),
            emptied: RefCell::new(None),
        })
    }

    /// Serves until drained.
    ///
    /// # Errors
    /// The listener or the mailbox cannot be used.
    pub(crate) async fn run(
        self: Rc<Self>,
        listener: Listener,
        mailbox: Mailbox<Message>,
    ) -> io::Result<()> {
        let listener = listener.on_this_thread()?;
        self.listener.set(Some(listener.raw_fd()));
        let mail = Rc::clone(&self);
        let delivery = monoio::spawn(mailbox.deliver(move |message| mail.take(message)));
        self.traffic.busy_poll.start();
        self.accept_all(&listener).await;
        self.listener.set(None);
        drop(listener);
        self.all_ended().await;
        self.traffic.timers.stop();
        drop(delivery);
        Ok(())
    }

    fn take(self: &Rc<Self>, message: Message) -> bool {
        match message {
            Message::JobDone(result) => self.jobs.complete(result),
            Message::Drain => {
                self.draining.set(true);
                if let Some(fd) = self.listener.get() {
                    self.end_accept(fd);
                }
            }
            Message::TerminateAll => {
                for control in self.controls() {
                    control.terminate(TerminateReason::Shutdown);
                }
            }
            Message::Revalidate => drop(monoio::spawn(Rc::clone(self).revalidate())),
            Message::HandOff(handed_off) => self.accept_handoff(handed_off),
        }
        true
    }

    /// Ends the accept that is waiting, which must not be cancelled: monoio 0.2.4
    /// would leak the accepted socket.
    fn end_accept(self: &Rc<Self>, fd: RawFd) {
        match listener::unix_path(fd) {
            None => {
                let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
            }
            Some(path) => drop(monoio::spawn(Rc::clone(self).wake_accept(path))),
        }
    }

    /// Linux wakes nobody who waits for a Unix socket that is shut down: a
    /// connection does. ShardPool share the socket, and each needs one.
    async fn wake_accept(self: Rc<Self>, path: PathBuf) {
        while self.listener.get().is_some() {
            listener::wake_accept(&path);
            monoio::time::sleep(WAKE_ACCEPT_INTERVAL).await;
        }
    }

    fn controls(&self) -> Vec<Rc<ConnectionControl>> {
        let connections = self.connections.borrow();
        connections
            .iter()
            .map(|(_, control)| Rc::clone(control))
            .collect()
    }

    async fn accept_all(self: &Rc<Self>, listener: &ActiveListener) {
        loop {
            match listener.accept().await {
                Ok(_) if self.draining.get() => return,
                Ok((stream, peer)) => {
                    if let Some(permit) = self.limit.enter() {
                        self.dispatch(stream, peer, permit);
                    } else {
                        self.handler.context().shard_metrics.dropped();
                        let access_log = &self.handler.context().access_log;
                        access_log.dropped_over_limit(peer);
                    }
                }
                Err(_) if self.draining.get() => return,
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    monoio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Serves a connection here, or hands it to the shard that has fewer.
    fn dispatch(self: &Rc<Self>, stream: Stream, peer: Peer, permit: ConnectionPermit) {
        let SiblingShards {
            own,
            balancer,
            mailboxes,
        } = &self.siblings;
        let assignment = balancer.assign(*own);
        if assignment.shard() != *own
            && let Some(mailbox) = mailboxes.get(assignment.shard())
            // Without a descriptor left it is served here after all.
            && let Ok(moving) = stream.detach()
        {
            mailbox.send(Message::HandOff(HandedOff {
                stream: moving,
                peer,
                permit,
                assignment,
            }));
        } else {
            monoio::spawn(Rc::clone(self).connection(stream, peer, permit, assignment));
        }
    }

    fn accept_handoff(self: &Rc<Self>, handed_off: HandedOff) {
        let HandedOff {
            stream,
            peer,
            permit,
            assignment,
        } = handed_off;
        if self.draining.get() {
            return;
        }
        match stream.on_this_thread() {
            Ok(stream) => {
                monoio::spawn(Rc::clone(self).connection(stream, peer, permit, assignment));
            }
            Err(error) => tracing::error!(%error, "accept failed"),
        }
    }

    /// One connection from accept to its log line.
    async fn connection(
        self: Rc<Self>,
        stream: Stream,
        peer: Peer,
        permit: ConnectionPermit,
        assignment: ShardAssignment,
    ) {
        let shard_metrics = &self.handler.context().shard_metrics;
        shard_metrics.accepted();
        let info = RefCell::new(ConnectionInfo::new(peer));
        let started = info.borrow().accepted;
        let deadline = started + self.timeouts.login;
        let control = Rc::new(ConnectionControl::new(
            deadline,
            Rc::clone(shard_metrics),
            Rc::clone(&self.traffic),
        ));
        let key = self.connections.borrow_mut().insert(Rc::clone(&control));
        let end = {
            // Boxed or pinned: a future that is handed on by value is there twice.
            let handler = Box::pin(self.handler.serve(stream, &permit, &control, &info));
            let with_watchdog = pin!(with_watchdog(handler, &control, self.timeouts.idle));
            catch_panic(with_watchdog).await
        };
        self.connections.borrow_mut().remove(key);
        drop((permit, assignment));
        let info = info.into_inner();
        shard_metrics.ended(info.role, info.is_session, &end);
        if !info.logged {
            let access_log = &self.handler.context().access_log;
            access_log.ended(&info, control.bytes(), &end);
        }
        if self.connections.borrow().is_empty()
            && let Some(waker) = self.emptied.take()
        {
            waker.wake();
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

/// Runs a handler beside its watchdog. The watchdog only wins when the handler did
/// not end although its sockets are shut: the handler is dropped then.
async fn with_watchdog(
    mut handler: Pin<Box<impl Future<Output = CloseReason>>>,
    control: &ConnectionControl,
    idle: Option<Duration>,
) -> CloseReason {
    let mut watchdog = pin!(control.watchdog(idle));
    poll_fn(|cx| {
        // The handler first: the watchdog then sees its change of phase.
        if let Poll::Ready(end) = handler.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        watchdog
            .as_mut()
            .poll(cx)
            .map(|order| order.map_or(CloseReason::PeerStuck, CloseReason::from))
    })
    .await
}

/// A panic ends the connection that it happened in, and no other.
async fn catch_panic(handler: Pin<&mut impl Future<Output = CloseReason>>) -> CloseReason {
    AssertUnwindSafe(handler)
        .catch_unwind()
        .await
        .unwrap_or(CloseReason::Panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_one_connection_as_such() {
        let handler = pin!(async { std::hint::black_box(None::<CloseReason>).expect("a bug") });
        let end = catch_panic(handler).now_or_never();
        assert!(matches!(end, Some(CloseReason::Panic)));
    }

    #[test]
    fn the_limit_tells_some_and_drops_the_rest() {
        let limit = ConnectionLimit::new(2);
        let mut inside: Vec<_> = (0..2).map(|_| limit.enter().unwrap()).collect();
        assert!(inside.iter().all(ConnectionPermit::is_granted));
        let told: Vec<_> = (0..REJECT_HEADROOM)
            .map(|_| limit.enter().unwrap())
            .collect();
        assert!(!told.iter().any(ConnectionPermit::is_granted));
        assert!(limit.enter().is_none());
        assert_eq!(limit.live.load(Ordering::Relaxed), 2 + REJECT_HEADROOM);
        drop(told);
        inside.pop();
        assert!(limit.enter().unwrap().is_granted());
    }
}
