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
use crate::io::listener::{self, Accepting, Listener};
use crate::io::mailbox::{Mailbox, Sender};
use crate::io::offload::{JobResult, PendingJobs};
use crate::io::peer::Peer;
use crate::io::stream::{Moving, Stream};
use crate::sched::busy_poll::BusyPoll;
use crate::sched::handshake_queue::Lane;
use crate::sched::yield_budget::Turns;
use crate::session::activity::Traffic;
use crate::session::control::{Control, Order};
use crate::shard::balancer::{Balance, Place};
use crate::telemetry::close_reason::End;
use crate::telemetry::connection_info::Facts;
use crate::telemetry::log::Journal;
use crate::telemetry::metrics::Meters;

/// Connections past the limit that are let in as far as being told so (53300,
/// inside TLS), or to send a CancelRequest. Past these the socket just closes.
const TOLD_OF_THE_LIMIT: usize = 64;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Another shard may have taken the connection that was meant for this one.
const KNOCK_AGAIN: Duration = Duration::from_millis(10);

/// What other threads tell a shard.
pub(crate) enum Message {
    /// An offloaded job has completed.
    JobDone(JobResult),
    /// Accept no more; return when the last connection has ended.
    Drain,
    /// The grace time is over.
    EndAll,
    /// Policy or collateral has changed: look at every session again.
    Recheck,
    /// Serve this connection, which another shard has accepted.
    Adopt(Arrival),
}

/// An accepted connection on its way to the shard that serves it.
pub(crate) struct Arrival {
    stream: Moving,
    peer: Peer,
    admission: Admission,
    place: Place,
}

/// A shard's view of the others.
pub(crate) struct Neighbours {
    /// Its own number.
    pub(crate) own: usize,
    pub(crate) balance: Arc<Balance>,
    /// Every shard's mailbox, by number.
    pub(crate) mailboxes: Arc<[Sender<Message>]>,
}

/// How long each part of a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) login: Duration,
    pub(crate) idle: Option<Duration>,
    /// From a change of policy or collateral to the end of the sessions that
    /// it refuses.
    pub(crate) revocation: Duration,
}

/// The process-wide connection limit. Touched at accept and at close only.
pub(crate) struct Limit {
    most: usize,
    live: AtomicUsize,
}

/// A connection's place under the limit, given back when dropped.
pub(crate) struct Admission {
    limit: Arc<Limit>,
    granted: bool,
}

impl Limit {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            live: AtomicUsize::new(0),
        })
    }

    fn enter(self: &Arc<Self>) -> Option<Admission> {
        let others = self.live.fetch_add(1, Ordering::Relaxed);
        let admission = Admission {
            limit: Arc::clone(self),
            granted: others < self.most,
        };
        (others < self.most.saturating_add(TOLD_OF_THE_LIMIT)).then_some(admission)
    }
}

impl Admission {
    /// Whether this connection may become a session.
    pub(crate) fn is_granted(&self) -> bool {
        self.granted
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.limit.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a shard serves its connections with.
pub(crate) trait Service: 'static {
    /// What the shard itself needs of it.
    fn common(&self) -> &Common;

    /// Serves one accepted connection to its end.
    fn serve(
        &self,
        stream: Stream,
        admission: &Admission,
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> impl Future<Output = End>;
}

/// What every kind of service has.
pub(crate) struct Common {
    pub(crate) lane: Lane,
    pub(crate) gate: Gate,
    pub(crate) meters: Rc<Meters>,
    pub(crate) journal: Rc<Journal>,
}

/// Everything that a shard's tasks share.
pub(crate) struct Shard<S> {
    pub(crate) service: S,
    pub(crate) jobs: PendingJobs,
    pub(crate) times: Times,
    pub(crate) limit: Arc<Limit>,
    neighbours: Neighbours,
    traffic: Rc<Traffic>,
    connections: RefCell<Slab<Rc<Control>>>,
    draining: Cell<bool>,
    /// Changes of policy or collateral so far.
    rechecks: Cell<u64>,
    listener: Cell<Option<RawFd>>,
    emptied: RefCell<Option<Waker>>,
}

impl<S: Service> Shard<S> {
    pub(crate) fn new(
        service: S,
        jobs: PendingJobs,
        times: Times,
        limit: Arc<Limit>,
        neighbours: Neighbours,
        busy_poll: Rc<BusyPoll>,
        turns: Turns,
    ) -> Rc<Self> {
        let lane = service.common().lane.clone();
        Rc::new(Self {
            service,
            jobs,
            times,
            limit,
            neighbours,
            traffic: Rc::new(Traffic {
                busy_poll,
                lane,
                pauses: Rc::default(),
                turns,
            }),
            connections: RefCell::default(),
            draining: Cell::new(false),
            rechecks: Cell::new(0),
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
        let usher = monoio::spawn(self.traffic.lane.clone().usher());
        self.traffic.busy_poll.start();
        self.accept_all(&listener).await;
        self.listener.set(None);
        drop(listener);
        self.all_ended().await;
        self.traffic.pauses.stop();
        drop((delivery, usher));
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
            Message::EndAll => {
                for control in self.controls() {
                    control.end(Order::Shutdown);
                }
            }
            Message::Recheck => drop(monoio::spawn(Rc::clone(self).recheck())),
            Message::Adopt(arrival) => self.adopt(arrival),
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
            Some(path) => drop(monoio::spawn(Rc::clone(self).knock(path))),
        }
    }

    /// Linux wakes nobody who waits for a Unix socket that is shut down: a
    /// connection does. Shards share the socket, and each needs one.
    async fn knock(self: Rc<Self>, path: PathBuf) {
        while self.listener.get().is_some() {
            listener::knock(&path);
            monoio::time::sleep(KNOCK_AGAIN).await;
        }
    }

    fn controls(&self) -> Vec<Rc<Control>> {
        let connections = self.connections.borrow();
        connections
            .iter()
            .map(|(_, control)| Rc::clone(control))
            .collect()
    }

    async fn accept_all(self: &Rc<Self>, listener: &Accepting) {
        loop {
            match listener.accept().await {
                Ok(_) if self.draining.get() => return,
                Ok((stream, peer)) => {
                    if let Some(admission) = self.limit.enter() {
                        self.seat(stream, peer, admission);
                    } else {
                        self.service.common().meters.dropped();
                        let journal = &self.service.common().journal;
                        journal.dropped_at_the_limit(peer);
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
    fn seat(self: &Rc<Self>, stream: Stream, peer: Peer, admission: Admission) {
        let Neighbours {
            own,
            balance,
            mailboxes,
        } = &self.neighbours;
        let place = balance.place(*own);
        if place.shard() != *own
            && let Some(mailbox) = mailboxes.get(place.shard())
            // Without a descriptor left it is served here after all.
            && let Ok(moving) = stream.moving()
        {
            mailbox.send(Message::Adopt(Arrival {
                stream: moving,
                peer,
                admission,
                place,
            }));
        } else {
            monoio::spawn(Rc::clone(self).connection(stream, peer, admission, place));
        }
    }

    fn adopt(self: &Rc<Self>, arrival: Arrival) {
        let Arrival {
            stream,
            peer,
            admission,
            place,
        } = arrival;
        if self.draining.get() {
            return;
        }
        match stream.on_this_thread() {
            Ok(stream) => {
                monoio::spawn(Rc::clone(self).connection(stream, peer, admission, place));
            }
            Err(error) => tracing::error!(%error, "accept failed"),
        }
    }

    /// One connection from accept to its log line.
    async fn connection(
        self: Rc<Self>,
        stream: Stream,
        peer: Peer,
        admission: Admission,
        place: Place,
    ) {
        let meters = &self.service.common().meters;
        meters.accepted();
        let facts = RefCell::new(Facts::new(peer));
        let started = facts.borrow().accepted;
        let deadline = started + self.times.login;
        let control = Rc::new(Control::new(
            deadline,
            Rc::clone(meters),
            Rc::clone(&self.traffic),
        ));
        let key = self.connections.borrow_mut().insert(Rc::clone(&control));
        let end = {
            // Boxed or pinned: a future that is handed on by value is there twice.
            let story = Box::pin(self.service.serve(stream, &admission, &control, &facts));
            let watched = pin!(watched(story, &control, self.times.idle));
            guarded(watched).await
        };
        self.connections.borrow_mut().remove(key);
        drop((admission, place));
        let facts = facts.into_inner();
        meters.ended(facts.role, facts.entered, &end);
        if !facts.written {
            let journal = &self.service.common().journal;
            journal.ended(&facts, control.bytes(), &end);
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

/// Runs a story beside its watchdog. The watchdog only wins when the story did
/// not end although its sockets are shut: the story is dropped then.
async fn watched(
    mut story: Pin<Box<impl Future<Output = End>>>,
    control: &Control,
    idle: Option<Duration>,
) -> End {
    let mut watchdog = pin!(control.watchdog(idle));
    poll_fn(|cx| {
        // The story first: the watchdog then sees its change of phase.
        if let Poll::Ready(end) = story.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        watchdog
            .as_mut()
            .poll(cx)
            .map(|order| order.map_or(End::Stuck, End::from))
    })
    .await
}

/// A panic ends the connection that it happened in, and no other.
async fn guarded(story: Pin<&mut impl Future<Output = End>>) -> End {
    AssertUnwindSafe(story)
        .catch_unwind()
        .await
        .unwrap_or(End::Panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_one_connection_as_such() {
        let story = pin!(async { std::hint::black_box(None::<End>).expect("a bug") });
        let end = guarded(story).now_or_never();
        assert!(matches!(end, Some(End::Panic)));
    }

    #[test]
    fn the_limit_tells_some_and_drops_the_rest() {
        let limit = Limit::new(2);
        let mut inside: Vec<_> = (0..2).map(|_| limit.enter().unwrap()).collect();
        assert!(inside.iter().all(Admission::is_granted));
        let told: Vec<_> = (0..TOLD_OF_THE_LIMIT)
            .map(|_| limit.enter().unwrap())
            .collect();
        assert!(!told.iter().any(Admission::is_granted));
        assert!(limit.enter().is_none());
        assert_eq!(limit.live.load(Ordering::Relaxed), 2 + TOLD_OF_THE_LIMIT);
        drop(told);
        inside.pop();
        assert!(limit.enter().unwrap().is_granted());
    }
}
