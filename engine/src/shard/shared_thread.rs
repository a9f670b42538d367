//! One thread with one monoio runtime for the shards of many forwarders, which are part of one program.
//!
//! A forwarder that waits for work needs a listener and some kilobytes. A separate thread with its ring would cost it a
//! hundred times that, and a program may have a thousand forwarders. Everything that belongs to a thread and not to a
//! forwarder exists once: I/O driver, mailbox, timer, handshake queue.
//!
//! A shard that fails must never end the others: its panic is caught. The thread must outlive its shards.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::io::driver::{self, IoDriver};
use crate::io::mailbox::{Sender, mailbox};
use crate::io::worker::Worker;
use crate::sched::busy_poll::{BusyPoll, BusyPollMode};
use crate::sched::delay_timer::TimerQueue;
use crate::sched::handshake_queue::HandshakeQueue;
use crate::session::activity::ShardActivity;
use crate::shard::message::Message;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shard_metrics::ShardMetrics;

/// The default of `login_timeout`, which bounds the pauses between handshakes of all forwarders.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of a shard on the thread. Numbers are not used again.
type ShardId = u64;

type TakeFn = Box<dyn Fn(Message)>;
type StartFn = Box<dyn FnOnce(&Rc<ThreadContext>) + Send>;

/// An order from another thread.
enum Order {
    /// Build a shard and run it.
    Start(StartFn),
    /// A message for a shard.
    Message(ShardId, Message),
    /// End the thread, with all that is left on it.
    End,
}

/// Sends messages to one shard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ShardSender(Route);

#[derive(Clone)]
enum Route {
    /// The shard has its own thread.
    Own(Sender<Message>),
    /// It shares one.
    Shared(Sender<Order>, ShardId),
}

impl From<Sender<Message>> for ShardSender {
    fn from(sender: Sender<Message>) -> Self {
        Self(Route::Own(sender))
    }
}

impl ShardSender {
    /// Queues a message and wakes the shard. The message is lost if the shard has ended.
    pub(crate) fn send(&self, message: Message) {
        match &self.0 {
            Route::Own(sender) => sender.send(message),
            Route::Shared(sender, shard) => sender.send(Order::Message(*shard, message)),
        }
    }
}

/// A handle to the thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SharedThread {
    orders: Sender<Order>,
    driver: IoDriver,
    next: Arc<AtomicU64>,
    /// Upgradable while the thread runs.
    alive: Weak<()>,
}

/// Ends the thread when dropped.
pub(crate) struct SharedThreadGuard {
    orders: Sender<Order>,
    worker: Worker,
}

/// What the shards of the thread have in common.
pub(crate) struct ThreadContext {
    pub(crate) activity: Rc<ShardActivity>,
    pub(crate) shard_metrics: Rc<ShardMetrics>,
    shards: RefCell<HashMap<ShardId, TakeFn>>,
    end: RefCell<EndState>,
}

#[derive(Default)]
struct EndState {
    has_ended: bool,
    waiting: Option<Waker>,
}

impl SharedThread {
    /// Starts the thread. `metrics` are those of all its shards.
    ///
    /// # Errors
    /// The process has no threads or descriptors left.
    pub(crate) fn start(
        driver: IoDriver,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, SharedThreadGuard)> {
        let (orders, inbox) = mailbox::<Order>()?;
        let runs = Arc::new(());
        let alive = Arc::downgrade(&runs);
        let worker = Worker::spawn("forward-shard", move || {
            let _runs = runs;
            // Its first use takes 25 ms, which would delay the first handshake.
            let _ = aws_lc_rs::rand::fill(&mut [0]);
            let main = async {
                let context = ThreadContext::new(&metrics);
                let receiver = Rc::clone(&context);
                let delivery = monoio::spawn(inbox.deliver(move |order| receiver.carry_out(order)));
                context.ended().await;
                context.activity.timers.stop();
                drop(delivery);
            };
            if let Err(error) = driver::block_on(driver, main) {
                tracing::error!(%error, "the thread for connections cannot run");
            }
        })?;
        let thread = Self {
            orders: orders.clone(),
            driver,
            next: Arc::default(),
            alive,
        };
        Ok((thread, SharedThreadGuard { orders, worker }))
    }

    /// Whether the thread runs. A bug may have ended it.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }

    /// The I/O driver of the thread.
    pub(crate) fn driver(&self) -> IoDriver {
        self.driver
    }

    /// Has `start` build a shard there. Returns the sender of its messages, which `start` gets too.
    pub(crate) fn add(
        &self,
        start: impl FnOnce(ShardSender, &ThreadContext, ShardSlot) + Send + 'static,
    ) -> ShardSender {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let sender = ShardSender(Route::Shared(self.orders.clone(), id));
        let own = sender.clone();
        let start = move |context: &Rc<ThreadContext>| {
            let slot = ShardSlot {
                context: Rc::clone(context),
                id,
            };
            start(own, context, slot);
        };
        self.orders.send(Order::Start(Box::new(start)));
        sender
    }
}

/// The place of a shard among those of its thread. Its messages are lost once this is dropped.
pub(crate) struct ShardSlot {
    context: Rc<ThreadContext>,
    id: ShardId,
}

impl ShardSlot {
    /// Has `take` carry out the messages for the shard.
    pub(crate) fn receive(&self, take: impl Fn(Message) + 'static) {
        let mut shards = self.context.shards.borrow_mut();
        shards.insert(self.id, Box::new(take));
    }
}

impl Drop for ShardSlot {
    fn drop(&mut self) {
        let removed = self.context.shards.borrow_mut().remove(&self.id);
        // Dropped after the borrow: it may be the last owner of the shard.
        drop(removed);
    }
}

impl ThreadContext {
    fn new(metrics: &Metrics) -> Rc<Self> {
        let timers = Rc::<TimerQueue>::default();
        Rc::new(Self {
            activity: Rc::new(ShardActivity {
                // A library does not spend its program's CPU time on polling.
                busy_poll: BusyPoll::new(BusyPollMode::Off),
                handshake_queue: HandshakeQueue::new(LOGIN_TIMEOUT, Rc::clone(&timers)),
                timers,
            }),
            shard_metrics: Rc::new(ShardMetrics::new(metrics, 0)),
            shards: RefCell::default(),
            end: RefCell::default(),
        })
    }

    /// Returns whether the thread goes on.
    fn carry_out(self: &Rc<Self>, order: Order) -> bool {
        match order {
            Order::Start(start) => {
                let started = AssertUnwindSafe(|| start(self));
                if std::panic::catch_unwind(started).is_err() {
                    tracing::error!("a panic while a shard was built");
                }
                true
            }
            Order::Message(id, message) => {
                let shards = self.shards.borrow();
                if let Some(take) = shards.get(&id) {
                    let taken = std::panic::catch_unwind(AssertUnwindSafe(|| take(message)));
                    if taken.is_err() {
                        tracing::error!("a panic while a shard took a message");
                    }
                }
                true
            }
            Order::End => {
                let mut end = self.end.borrow_mut();
                end.has_ended = true;
                if let Some(waker) = end.waiting.take() {
                    waker.wake();
                }
                false
            }
        }
    }

    async fn ended(&self) {
        poll_fn(|cx| {
            let mut end = self.end.borrow_mut();
            if end.has_ended {
                return Poll::Ready(());
            }
            end.waiting = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Runs a shard to its end. A panic ends this shard only.
pub(crate) async fn catch_panic(run: impl Future<Output = io::Result<()>>) -> Result<(), String> {
    match AssertUnwindSafe(run).catch_unwind().await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("panic".to_owned()),
    }
}

impl Drop for SharedThreadGuard {
    fn drop(&mut self) {
        self.orders.send(Order::End);
        self.worker.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn start(driver: IoDriver) -> Option<(SharedThread, SharedThreadGuard)> {
        if driver == IoDriver::IoUring && driver::choose(driver::DriverChoice::IoUring).is_err() {
            println!("skipped {driver}");
            return None;
        }
        let metrics = Arc::new(Metrics::for_forwarder().unwrap());
        Some(SharedThread::start(driver, metrics).unwrap())
    }

    #[test]
    fn messages_reach_their_own_shard_until_it_ends() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let Some((thread, guard)) = start(driver) else {
                continue;
            };
            let (seen, all) = channel();
            let add = |name: &'static str| {
                let seen = seen.clone();
                thread.add(move |_, _, slot| {
                    // Kept by what receives its messages, until that drops it.
                    let slot = Rc::new(RefCell::new(Some(slot)));
                    let kept = Rc::clone(&slot);
                    slot.borrow().as_ref().unwrap().receive(move |message| {
                        let is_drain = matches!(message, Message::Drain);
                        seen.send((name, is_drain)).unwrap();
                        if is_drain {
                            let kept = Rc::clone(&kept);
                            // The messages after this one are lost.
                            drop(monoio::spawn(async move { drop(kept.take()) }));
                        }
                    });
                })
            };
            let (first, second) = (add("first"), add("second"));
            first.send(Message::Revalidate);
            second.send(Message::Revalidate);
            first.send(Message::Drain);
            let three: Vec<_> = all.iter().take(3).collect();
            let expected = [("first", false), ("second", false), ("first", true)];
            assert_eq!(three, expected);
            // The shard is gone soon, and the other one goes on.
            loop {
                first.send(Message::TerminateAll);
                second.send(Message::TerminateAll);
                let (name, _) = all.recv().unwrap();
                if name == "second" {
                    break;
                }
            }
            second.send(Message::Drain);
            assert!(all.iter().any(|got| got == ("second", true)));
            drop(guard);
        }
    }

    #[test]
    fn a_panic_while_a_shard_is_built_ends_no_other() {
        let (thread, _guard) = start(IoDriver::Epoll).unwrap();
        let (seen, all) = channel();
        thread.add(|_, _, _| panic!("a bug"));
        let shard = thread.add(move |_, _, slot| {
            slot.receive(move |_| seen.send(()).unwrap());
            std::mem::forget(slot);
        });
        shard.send(Message::Revalidate);
        all.recv().unwrap();
    }

    #[test]
    fn a_panic_of_a_shard_is_an_error() {
        let panics = async { std::hint::black_box(None::<io::Result<()>>).expect("a bug") };
        let ended = catch_panic(panics).now_or_never().unwrap();
        assert_eq!(ended, Err("panic".to_owned()));
    }
}
