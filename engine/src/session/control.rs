//! State shared by a connection's handler, its watchdog and its shard: deadlines, termination
//! requests and byte counts.
//!
//! Completion I/O must never be dropped before it has completed, so nothing here cancels a read
//! or a write. To terminate a connection, the watchdog shuts down its sockets with `shutdown(2)`
//! (docs/adr/0001-end-io-by-shutdown.md): a pending read returns 0, a pending write fails, and the
//! handler learns the reason from [`ConnectionControl::terminate_reason`].

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use attest::AttestedPeer;
use attest::collateral::FamilySession;
use nix::sys::socket::{Shutdown, shutdown};

use crate::auth::grants::{EntryPermit, NotGranted, RequestedSession};
use crate::io::clock::unix_now;
use crate::io::stream::reset;
use crate::io::target::Endpoint;
use crate::io::tcp_info::{LastTransfer, last_transfer};
use crate::sched::busy_poll::{Direction, Transfer};
use crate::sched::delay_timer::TimerQueue;
use crate::session::activity::ShardActivity;
use crate::telemetry::close_reason::{CloseReason, Revocation};
use crate::telemetry::link_metrics::LinkBytes;
use crate::telemetry::shard_metrics::ShardMetrics;

/// How long a peer may take to read the final message and close the connection.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// How long a link may transfer nothing after one of its directions has ended: the timeout of Linux for a connection
/// that only its peer has not closed. [tcp(7), tcp_fin_timeout]
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(60);
/// The number of checks per idle timeout. A session ends between 1 and 1.25 times the configured
/// time after its last byte, and transferring a byte sets no timer.
const IDLE_CHECKS: u32 = 4;

/// A session that has transferred a byte within this time is shown as active.
const ACTIVE: Duration = Duration::from_secs(1);

/// The shortest sleep until the login deadline is looked at again.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Which side has to act before the client is attested, and since when.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    ForClient(Instant),
    ForThisProcess(Instant),
}

/// The phase of a connection, which decides what the watchdog enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The login deadline.
    Login,
    /// The idle timeout.
    Relay,
    /// [`HALF_CLOSED_TIMEOUT`]: one direction of a link has ended.
    HalfClosed,
    /// [`CLOSE_GRACE`], while the final bytes are sent.
    Closing,
}

/// Why the watchdog or the shard terminates a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TerminateReason {
    LoginTimeout,
    IdleTimeout,
    Shutdown,
    /// The policy or the collateral refuses the peer by now.
    Denied(Revocation),
    /// Its place is given to a newer connection: the client is not attested yet.
    Displaced,
    /// An operator has ended it.
    Killed,
    /// This member of the cluster may not take writes any more.
    Fenced,
    /// The leader that the session was carried to leads no more, or a forwarder that follows the leader has the session
    /// with the old one.
    LeaderChanged,
}

impl From<TerminateReason> for CloseReason {
    fn from(reason: TerminateReason) -> Self {
        match reason {
            TerminateReason::LoginTimeout => CloseReason::LoginTimeout,
            TerminateReason::IdleTimeout => CloseReason::IdleTimeout,
            TerminateReason::Shutdown => CloseReason::Shutdown,
            TerminateReason::Denied(revocation) => CloseReason::Revoked(revocation),
            TerminateReason::Displaced => CloseReason::TooManyUnattested,
            TerminateReason::Killed => CloseReason::Killed,
            TerminateReason::Fenced => CloseReason::Fenced,
            TerminateReason::LeaderChanged => CloseReason::LeaderChanged,
        }
    }
}

/// What a connection does, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It is not a session or an open link yet.
    Login,
    /// Bytes are transferred, or the client waits for an answer. Holds the time since the last byte.
    Active(Duration),
    /// Neither. Holds the time since the last byte.
    Idle(Duration),
    /// It ends.
    Closing,
}

/// Where the writes of a session in a cluster go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WritePath {
    /// To the own Postgres.
    Local,
    /// To the leader of this term.
    Carried { term: u64 },
}

/// The shared state of one connection.
pub(crate) struct ConnectionControl {
    phase: Cell<Phase>,
    terminate_reason: Cell<Option<TerminateReason>>,
    login_deadline: Cell<Instant>,
    waiting: Cell<Waiting>,
    /// Whether a handshake has begun.
    begun: Cell<bool>,
    client_fd: Cell<Option<RawFd>>,
    upstream_fd: Cell<Option<RawFd>>,
    /// Plaintext bytes from the client.
    received: Cell<u64>,
    /// Plaintext bytes to the client.
    sent: Cell<u64>,
    shard_metrics: Rc<ShardMetrics>,
    activity: Rc<ShardActivity>,
    watchdog_waker: RefCell<Option<Waker>>,
    peer: RefCell<Option<Arc<AttestedPeer>>>,
    /// When the peer was attested first, in Unix seconds.
    attested_at: Cell<Option<u64>>,
    /// Keeps the collateral of the peer's platform family in use.
    family: RefCell<Option<FamilySession>>,
    requested: RefCell<Option<RequestedSession>>,
    /// The session's place among those of its policy entry.
    entry_permit: RefCell<Option<EntryPermit>>,
    /// Whether this is a link between members, and no client's connection.
    is_link: Cell<bool>,
    /// The byte counters of an open link, which are not those of clients.
    link_bytes: OnceCell<Rc<LinkBytes>>,
    /// In a forwarder: the server of the session.
    endpoint: RefCell<Option<Arc<Endpoint>>>,
    /// Of a session that may write, in a cluster.
    write_path: Cell<Option<WritePath>>,
}

impl Activity {
    /// A client that has sent something after the last byte that it was sent waits for an answer.
    fn of(times: LastTransfer) -> Self {
        let last = times.received.min(times.sent);
        match times.received < times.sent || last < ACTIVE {
            true => Self::Active(last),
            false => Self::Idle(last),
        }
    }
}

/// Gives the place among the sessions of a policy entry back when dropped, although others may still hold the
/// [`ConnectionControl`].
pub(crate) struct EntryGuard<'a>(&'a RefCell<Option<EntryPermit>>);

impl Drop for EntryGuard<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// Registers a socket for `shutdown(2)` by the watchdog. It must be dropped before the socket is
/// closed, because the kernel may then use its number again.
pub(crate) struct FdGuard<'a>(&'a Cell<Option<RawFd>>);

/// The client waits for this process while this exists. The login deadline moves by that time.
pub(crate) struct WorkGuard<'a> {
    control: &'a ConnectionControl,
    since: Instant,
    /// How long this process had waited for the client since its handshake began.
    waited: Duration,
}

impl Drop for WorkGuard<'_> {
    fn drop(&mut self) {
        let (now, deadline) = (Instant::now(), &self.control.login_deadline);
        deadline.set(deadline.get() + now.saturating_duration_since(self.since));
        let waiting_since = now.checked_sub(self.waited).unwrap_or(now);
        self.control.waiting.set(Waiting::ForClient(waiting_since));
    }
}

impl Drop for FdGuard<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl ConnectionControl {
    pub(crate) fn new(
        login_deadline: Instant,
        shard_metrics: Rc<ShardMetrics>,
        activity: Rc<ShardActivity>,
    ) -> Self {
        Self {
            phase: Cell::new(Phase::Login),
            terminate_reason: Cell::new(None),
            login_deadline: Cell::new(login_deadline),
            waiting: Cell::new(Waiting::ForClient(Instant::now())),
            begun: Cell::new(false),
            client_fd: Cell::new(None),
            upstream_fd: Cell::new(None),
            received: Cell::new(0),
            sent: Cell::new(0),
            shard_metrics,
            activity,
            watchdog_waker: RefCell::new(None),
            peer: RefCell::new(None),
            attested_at: Cell::new(None),
            family: RefCell::new(None),
            requested: RefCell::new(None),
            entry_permit: RefCell::new(None),
            is_link: Cell::new(false),
            link_bytes: OnceCell::new(),
            endpoint: RefCell::new(None),
            write_path: Cell::new(None),
        }
    }

    /// This is a link between members: its ends speak another protocol than PostgreSQL's.
    pub(crate) fn set_link(&self) {
        self.is_link.set(true);
    }

    pub(crate) fn is_link(&self) -> bool {
        self.is_link.get()
    }

    /// The link is open: its bytes count here from now on.
    pub(crate) fn link_opened(&self, bytes: Rc<LinkBytes>) {
        let _ = self.link_bytes.set(bytes);
    }

    /// The plain side of a link must not take what it has received for complete.
    pub(crate) fn reset_plain(&self, plain_is_client: bool) {
        let fd = match plain_is_client {
            true => self.client_fd.get(),
            false => self.upstream_fd.get(),
        };
        if let Some(fd) = fd {
            reset(fd);
        }
    }

    /// One direction of a link has ended. The other one may go on for as long as it has bytes.
    pub(crate) fn half_closed(&self) {
        if self.phase.get() == Phase::Relay {
            self.phase.set(Phase::HalfClosed);
        }
    }

    /// Stores the attested identity of the peer, which may be revalidated later.
    pub(crate) fn set_peer(&self, peer: Option<Arc<AttestedPeer>>) {
        let first = self.attested_at.get().unwrap_or_else(unix_now);
        self.attested_at.set(Some(first));
        let family = peer
            .as_ref()
            .and_then(|peer| peer.begin_session(unix_now()));
        *self.family.borrow_mut() = family;
        *self.peer.borrow_mut() = peer;
    }

    /// When the peer was attested first, in Unix seconds.
    pub(crate) fn attested_at(&self) -> u64 {
        self.attested_at.get().unwrap_or_default()
    }

    pub(crate) fn peer(&self) -> Option<Arc<AttestedPeer>> {
        self.peer.borrow().clone()
    }

    /// Stores the server that a forwarder's session is with, until the connection ends.
    pub(crate) fn set_endpoint(&self, endpoint: Arc<Endpoint>) {
        *self.endpoint.borrow_mut() = Some(endpoint);
    }

    /// The server that a forwarder's session is with.
    pub(crate) fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.endpoint.borrow().clone()
    }

    /// Where the writes of this session go, if it may write and belongs to a member of a cluster.
    pub(crate) fn write_path(&self) -> Option<WritePath> {
        self.write_path.get()
    }

    /// Must be set in the same step in which the view of the cluster allows it: the message of the next change then
    /// finds it.
    pub(crate) fn set_write_path(&self, path: WritePath) {
        self.write_path.set(Some(path));
    }

    /// Lets the handler look again at what it waits for. The watchdog runs in the same task.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.watchdog_waker.take() {
            waker.wake();
        }
    }

    /// Stores what the client asks for, and compares it with what the peer's policy entry grants.
    ///
    /// # Errors
    /// [`NotGranted`].
    pub(crate) fn set_requested(&self, requested: RequestedSession) -> Result<(), NotGranted> {
        *self.requested.borrow_mut() = Some(requested);
        self.check_grants()
    }

    /// Compares what the client asked for with what the peer's policy entry grants now.
    ///
    /// # Errors
    /// [`NotGranted`].
    pub(crate) fn check_grants(&self) -> Result<(), NotGranted> {
        match (&*self.requested.borrow(), &*self.peer.borrow()) {
            (Some(requested), Some(peer)) => requested.check(&peer.entry().grants),
            // Nothing is requested yet, or the configuration admits clients without evidence.
            (None, _) | (_, None) => Ok(()),
        }
    }

    /// The session's place among those of its policy entry, until the guard is dropped.
    pub(crate) fn entry_guard(&self) -> EntryGuard<'_> {
        EntryGuard(&self.entry_permit)
    }

    pub(crate) fn set_entry_permit(&self, permit: Option<EntryPermit>) {
        self.entry_permit.replace(permit);
    }

    /// Calls `with` with the place among the sessions of the policy entry, if there is a session.
    pub(crate) fn with_entry_permit(&self, with: impl FnOnce(&mut EntryPermit)) {
        if let Some(permit) = &mut *self.entry_permit.borrow_mut() {
            with(permit);
        }
    }

    /// When the login must be complete, including everything before it. Time in which the client waits for
    /// this process does not count.
    pub(crate) fn login_deadline(&self) -> Instant {
        self.login_deadline.get()
    }

    /// The client has sent a whole handshake message, and waits for this process until the guard is
    /// dropped.
    pub(crate) fn begin_work(&self) -> WorkGuard<'_> {
        let since = Instant::now();
        // From the first message on the waits for the client add up. A client could otherwise keep its place by
        // sending the next message in many small records.
        let waited = match self.begun.replace(true) {
            true => self.silent_for(since).unwrap_or_default(),
            false => Duration::ZERO,
        };
        self.waiting.set(Waiting::ForThisProcess(since));
        WorkGuard {
            control: self,
            since,
            waited,
        }
    }

    /// Whether the client has sent a whole handshake message.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// How long this process has been waiting for the client, since the accept or, in all, since its handshake
    /// began; `None` while the client waits for this process.
    pub(crate) fn silent_for(&self, now: Instant) -> Option<Duration> {
        match self.waiting.get() {
            Waiting::ForClient(since) => Some(now.saturating_duration_since(since)),
            Waiting::ForThisProcess(_) => None,
        }
    }

    /// The time that is left of the login deadline. It does not pass while the client waits for this
    /// process.
    fn login_time_left(&self) -> Duration {
        let now = match self.waiting.get() {
            Waiting::ForClient(_) => Instant::now(),
            Waiting::ForThisProcess(since) => since,
        };
        self.login_deadline.get().saturating_duration_since(now)
    }

    pub(crate) fn register_client_fd(&self, fd: RawFd) -> FdGuard<'_> {
        self.client_fd.set(Some(fd));
        FdGuard(&self.client_fd)
    }

    pub(crate) fn register_upstream_fd(&self, fd: RawFd) -> FdGuard<'_> {
        self.upstream_fd.set(Some(fd));
        if self.terminate_reason.get().is_some() {
            shutdown_fd(&self.upstream_fd, Shutdown::Both);
        }
        FdGuard(&self.upstream_fd)
    }

    /// Why this connection was terminated; `None` if it was not.
    pub(crate) fn terminate_reason(&self) -> Option<TerminateReason> {
        self.terminate_reason.get()
    }

    /// The meaning of I/O that failed or ended: the reason of the termination if there was one,
    /// `otherwise` if not.
    pub(crate) fn or_terminated(&self, otherwise: CloseReason) -> CloseReason {
        self.terminate_reason
            .get()
            .map_or(otherwise, CloseReason::from)
    }

    /// Waits for `wait`, or for a termination if that comes first. `wait` is then dropped, so it
    /// must not do I/O of this connection.
    pub(crate) async fn race_terminated<T>(
        &self,
        wait: impl Future<Output = T>,
    ) -> Result<T, CloseReason> {
        let mut wait = pin!(wait);
        poll_fn(|cx| match self.terminate_reason.get() {
            // A termination wakes the watchdog, which runs in the same task as this.
            Some(reason) => Poll::Ready(Err(reason.into())),
            None => wait.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    pub(crate) fn login_done(&self) {
        if self.phase.get() == Phase::Login {
            self.phase.set(Phase::Relay);
        }
    }

    /// Starts the last phase, in which the peer has [`CLOSE_GRACE`] to read and to close.
    pub(crate) fn start_closing(&self) {
        self.phase.set(Phase::Closing);
    }

    /// The sub-millisecond timers of this session's shard.
    pub(crate) fn timers(&self) -> &Rc<TimerQueue> {
        &self.activity.timers
    }

    /// Plaintext bytes from the client so far, as they are counted.
    pub(crate) fn client_bytes(&self) -> &Cell<u64> {
        &self.received
    }

    pub(crate) fn count_received(&self, n: usize) {
        self.received
            .set(self.received.get().wrapping_add(n as u64));
        match self.link_bytes.get() {
            None => self.shard_metrics.received.increment(n as u64),
            Some(link) => link.received.increment(n as u64),
        }
        self.record(Direction::ToServer, n);
    }

    pub(crate) fn count_sent(&self, n: usize) {
        self.sent.set(self.sent.get().wrapping_add(n as u64));
        match self.link_bytes.get() {
            None => self.shard_metrics.sent.increment(n as u64),
            Some(link) => link.sent.increment(n as u64),
        }
        self.record(Direction::ToClient, n);
    }

    fn record(&self, direction: Direction, bytes: usize) {
        self.activity.record(Transfer {
            session: std::ptr::from_ref(self).addr(),
            direction,
            bytes,
        });
    }

    /// What the connection does. Asks the kernel, so that nothing has to be noted when bytes are transferred.
    pub(crate) fn activity(&self) -> Activity {
        match self.phase.get() {
            Phase::Login => Activity::Login,
            Phase::Closing => Activity::Closing,
            Phase::Relay | Phase::HalfClosed => {
                let times = self.client_fd.get().and_then(last_transfer);
                times.map_or(Activity::Active(Duration::ZERO), Activity::of)
            }
        }
    }

    /// What the client asks for; `None` if it has not asked yet.
    pub(crate) fn requested(&self) -> Option<RequestedSession> {
        self.requested.borrow().clone()
    }

    /// The number of plaintext bytes received from and sent to the client.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    /// Whether the connection ends already.
    pub(crate) fn is_closing(&self) -> bool {
        self.phase.get() == Phase::Closing || self.terminate_reason.get().is_some()
    }

    /// Terminates the connection, unless it is closing already. The first reason is kept.
    pub(crate) fn terminate(&self, reason: TerminateReason) {
        if self.is_closing() {
            if reason == TerminateReason::Displaced {
                // Its place is taken: it may not wait for its client to close.
                shutdown_fd(&self.client_fd, Shutdown::Both);
            }
            return;
        }
        self.terminate_reason.set(Some(reason));
        self.phase.set(Phase::Closing);
        // The direction to the client stays open, so that the handler can send the reason. A displaced
        // connection ends immediately.
        shutdown_fd(
            &self.client_fd,
            match reason {
                TerminateReason::Displaced => Shutdown::Both,
                _ => Shutdown::Read,
            },
        );
        shutdown_fd(&self.upstream_fd, Shutdown::Both);
        self.wake();
    }

    /// Enforces the deadlines. Returns when the last one has passed: the handler must then be
    /// dropped.
    pub(crate) async fn watchdog(&self, idle_timeout: Option<Duration>) -> Option<TerminateReason> {
        self.enforce_login_deadline().await;
        loop {
            let phase = self.phase.get();
            let timeout = match phase {
                // A link is as idle as its service, which has its own timeouts.
                Phase::Relay => idle_timeout.filter(|_| !self.is_link()),
                Phase::HalfClosed => Some(HALF_CLOSED_TIMEOUT),
                Phase::Login | Phase::Closing => break,
            };
            match timeout {
                Some(timeout) => self.enforce_idle_timeout(phase, timeout).await,
                None => self.phase_ended(phase).await,
            }
        }
        let _ = self.sleep_in_phase(Phase::Closing, CLOSE_GRACE).await;
        shutdown_fd(&self.client_fd, Shutdown::Both);
        shutdown_fd(&self.upstream_fd, Shutdown::Both);
        let _ = self.sleep_in_phase(Phase::Closing, CLOSE_GRACE).await;
        self.terminate_reason.get()
    }

    /// Terminates the connection at the login deadline. Returns also when the phase changes.
    async fn enforce_login_deadline(&self) {
        loop {
            let left = self.login_time_left();
            if left.is_zero() {
                return self.terminate(TerminateReason::LoginTimeout);
            }
            // The deadline may have moved by then.
            if !self
                .sleep_in_phase(Phase::Login, left.max(DEADLINE_CHECK_INTERVAL))
                .await
            {
                return;
            }
        }
    }

    /// Terminates the session after `timeout` without a byte. Returns also when the phase changes.
    async fn enforce_idle_timeout(&self, phase: Phase, timeout: Duration) {
        let mut last = self.bytes();
        let mut checks_without_bytes = 0;
        while checks_without_bytes < IDLE_CHECKS {
            if !self.sleep_in_phase(phase, timeout / IDLE_CHECKS).await {
                return;
            }
            let now = self.bytes();
            checks_without_bytes = if now == last {
                checks_without_bytes + 1
            } else {
                0
            };
            last = now;
        }
        self.terminate(TerminateReason::IdleTimeout);
    }

    /// Sleeps for `time`, and returns `true`; or returns `false` as soon as the phase changes.
    async fn sleep_in_phase(&self, phase: Phase, time: Duration) -> bool {
        // Boxed, because it takes 640 bytes, and a session without an idle timeout may last for
        // days and never sleeps here.
        let mut sleep = Box::pin(monoio::time::sleep(time));
        let mut phase_ended = pin!(self.phase_ended(phase));
        poll_fn(|cx| {
            if phase_ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            sleep.as_mut().poll(cx).map(|()| true)
        })
        .await
    }

    /// Waits until the phase changes. A change by the handler needs no waker: the same task polls
    /// the handler just before the watchdog.
    async fn phase_ended(&self, phase: Phase) {
        poll_fn(|cx| {
            if self.phase.get() != phase {
                return Poll::Ready(());
            }
            let mut waker = self.watchdog_waker.borrow_mut();
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

fn shutdown_fd(fd: &Cell<Option<RawFd>>, how: Shutdown) {
    if let Some(fd) = fd.get() {
        // It fails with ENOTCONN if the peer has closed the connection already.
        let _ = shutdown(fd, how);
    }
}
