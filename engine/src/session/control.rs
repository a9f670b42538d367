//! One connection's strings: the watchdog pulls them, the story feels them.
//!
//! Completion I/O must not be dropped half-way, so nothing here cancels a read
//! or a write. To end a connection the watchdog shuts its sockets down
//! (`shutdown(2)`): the read that is waiting returns 0, the write that is
//! waiting fails, and the story finds out why in [`ConnectionControl::terminate_reason`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use attest::AttestedPeer;
use nix::sys::socket::{Shutdown, shutdown};

use crate::sched::busy_poll::{Moved, Way};
use crate::sched::read_delay::Pauses;
use crate::sched::yield_budget::Turns;
use crate::session::activity::ShardActivity;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::shard_metrics::ShardMetrics;

/// How long a peer may take to read our last words and close.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// The idle timeout is checked this often per timeout, so that a session ends
/// between 1 and 1¼ times the configured time after its last byte, and no
/// byte sets a timer.
const IDLE_CHECKS: u32 = 4;

/// What the watchdog watches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Login,
    Relay,
    /// The last bytes are on their way.
    Closing,
}

/// Reasons that come from outside of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TerminateReason {
    LoginTimeout,
    IdleTimeout,
    Shutdown,
    /// The reason code of a denial.
    Denied(&'static str),
}

impl From<TerminateReason> for CloseReason {
    fn from(order: TerminateReason) -> Self {
        match order {
            TerminateReason::LoginTimeout => CloseReason::LoginTimeout,
            TerminateReason::IdleTimeout => CloseReason::IdleTimeout,
            TerminateReason::Shutdown => CloseReason::Shutdown,
            TerminateReason::Denied(code) => CloseReason::Revoked(code),
        }
    }
}

/// Shared between a connection's story, its watchdog and its shard.
pub(crate) struct ConnectionControl {
    phase: Cell<Phase>,
    order: Cell<Option<TerminateReason>>,
    deadline: Instant,
    client: Cell<Option<RawFd>>,
    upstream: Cell<Option<RawFd>>,
    /// Plaintext bytes from the client.
    received: Cell<u64>,
    /// Plaintext bytes to the client.
    sent: Cell<u64>,
    shard_metrics: Rc<ShardMetrics>,
    traffic: Rc<ShardActivity>,
    watchdog: RefCell<Option<Waker>>,
    peer: RefCell<Option<Arc<AttestedPeer>>>,
}

/// Keeps a socket within the watchdog's reach; lets go when dropped, which has
/// to be before the socket is closed and its number used again.
pub(crate) struct FdGuard<'a>(&'a Cell<Option<RawFd>>);

impl Drop for FdGuard<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl ConnectionControl {
    pub(crate) fn new(
        deadline: Instant,
        shard_metrics: Rc<ShardMetrics>,
        traffic: Rc<ShardActivity>,
    ) -> Self {
        Self {
            phase: Cell::new(Phase::Login),
            order: Cell::new(None),
            deadline,
            client: Cell::new(None),
            upstream: Cell::new(None),
            received: Cell::new(0),
            sent: Cell::new(0),
            shard_metrics,
            traffic,
            watchdog: RefCell::new(None),
            peer: RefCell::new(None),
        }
    }

    /// Who the client has shown to be, for looking at it again later.
    pub(crate) fn set_peer(&self, peer: Option<Arc<AttestedPeer>>) {
        *self.peer.borrow_mut() = peer;
    }

    pub(crate) fn peer(&self) -> Option<Arc<AttestedPeer>> {
        self.peer.borrow().clone()
    }

    /// The end of the login, and of everything that happens before it.
    pub(crate) fn login_deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn register_client_fd(&self, fd: RawFd) -> FdGuard<'_> {
        self.client.set(Some(fd));
        FdGuard(&self.client)
    }

    pub(crate) fn register_upstream_fd(&self, fd: RawFd) -> FdGuard<'_> {
        self.upstream.set(Some(fd));
        if self.order.get().is_some() {
            self.cut(&self.upstream, Shutdown::Both);
        }
        FdGuard(&self.upstream)
    }

    /// The reason, once the watchdog or the shard wants this connection ended.
    pub(crate) fn terminate_reason(&self) -> Option<TerminateReason> {
        self.order.get()
    }

    /// What a failed or ended read means: the order where there is one.
    pub(crate) fn or_terminated(&self, otherwise: CloseReason) -> CloseReason {
        self.order.get().map_or(otherwise, CloseReason::from)
    }

    /// `wait` to its end, or the order that comes first. Only for what is no I/O
    /// of this connection: it is dropped.
    pub(crate) async fn race_terminated<T>(
        &self,
        wait: impl Future<Output = T>,
    ) -> Result<T, CloseReason> {
        let mut wait = pin!(wait);
        poll_fn(|cx| match self.order.get() {
            // The watchdog's own task is this one, and is woken by an order.
            Some(order) => Poll::Ready(Err(order.into())),
            None => wait.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    pub(crate) fn login_done(&self) {
        if self.phase.get() == Phase::Login {
            self.phase.set(Phase::Relay);
        }
    }

    /// From here on there is only [`CLOSE_GRACE`] of time.
    pub(crate) fn closing(&self) {
        self.phase.set(Phase::Closing);
    }

    /// The turns of this session's shard.
    pub(crate) fn turns(&self) -> &Turns {
        &self.traffic.turns
    }

    /// The pauses of this session's shard.
    pub(crate) fn pauses(&self) -> &Rc<Pauses> {
        &self.traffic.pauses
    }

    /// Plaintext bytes from the client so far, as they are counted.
    pub(crate) fn questions(&self) -> &Cell<u64> {
        &self.received
    }

    pub(crate) fn count_received(&self, n: usize) {
        self.received
            .set(self.received.get().wrapping_add(n as u64));
        self.shard_metrics.received.increment(n as u64);
        self.saw(Way::ToServer, n);
    }

    pub(crate) fn count_sent(&self, n: usize) {
        self.sent.set(self.sent.get().wrapping_add(n as u64));
        self.shard_metrics.sent.increment(n as u64);
        self.saw(Way::ToClient, n);
    }

    fn saw(&self, way: Way, bytes: usize) {
        self.traffic.seen(Moved {
            session: std::ptr::from_ref(self).addr(),
            way,
            bytes,
        });
    }

    /// Plaintext bytes from and to the client so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    /// Asks the connection to end; the first order stands.
    pub(crate) fn end(&self, order: TerminateReason) {
        if self.phase.get() == Phase::Closing || self.order.get().is_some() {
            return;
        }
        self.order.set(Some(order));
        self.phase.set(Phase::Closing);
        // The client can still be written to, and is told why.
        self.cut(&self.client, Shutdown::Read);
        self.cut(&self.upstream, Shutdown::Both);
        if let Some(waker) = self.watchdog.take() {
            waker.wake();
        }
    }

    fn cut(&self, fd: &Cell<Option<RawFd>>, how: Shutdown) {
        if let Some(fd) = fd.get() {
            // ENOTCONN: the peer was faster.
            let _ = shutdown(fd, how);
        }
    }

    /// Enforces the deadlines. Returns when there is nothing left to wait for
    /// and the story has to be dropped.
    pub(crate) async fn watchdog(&self, idle_timeout: Option<Duration>) -> Option<TerminateReason> {
        if self
            .elapsed_in(
                Phase::Login,
                self.deadline.saturating_duration_since(Instant::now()),
            )
            .await
        {
            self.end(TerminateReason::LoginTimeout);
        }
        while self.phase.get() == Phase::Relay {
            let Some(timeout) = idle_timeout else {
                self.leaves(Phase::Relay).await;
                break;
            };
            self.await_idle(timeout).await;
        }
        let _ = self.elapsed_in(Phase::Closing, CLOSE_GRACE).await;
        self.cut(&self.client, Shutdown::Both);
        self.cut(&self.upstream, Shutdown::Both);
        let _ = self.elapsed_in(Phase::Closing, CLOSE_GRACE).await;
        self.order.get()
    }

    async fn await_idle(&self, timeout: Duration) {
        let mut last = self.bytes();
        let mut quiet = 0;
        while quiet < IDLE_CHECKS {
            if !self.elapsed_in(Phase::Relay, timeout / IDLE_CHECKS).await {
                return;
            }
            let now = self.bytes();
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
        self.end(TerminateReason::IdleTimeout);
    }

    /// Waits for `time`, or until the phase changes: `true` if the time passed.
    async fn elapsed_in(&self, phase: Phase, time: Duration) -> bool {
        // Boxed: it has 640 bytes, and a session without an idle timeout waits for
        // days without one.
        let mut sleep = Box::pin(monoio::time::sleep(time));
        let mut left = pin!(self.leaves(phase));
        poll_fn(|cx| {
            if left.as_mut().poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            sleep.as_mut().poll(cx).map(|()| true)
        })
        .await
    }

    /// The story's own changes need no waker: it is polled just before the
    /// watchdog, by the same task.
    async fn leaves(&self, phase: Phase) {
        poll_fn(|cx| {
            if self.phase.get() != phase {
                return Poll::Ready(());
            }
            let mut waker = self.watchdog.borrow_mut();
            if !waker
                .as_ref()
                .is_some_and(|known| known.will_wake(cx.waker()))
            {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
