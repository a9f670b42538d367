//! FIFO queue of TLS handshake steps, with proportional pacing.
//!
//! A step of a handshake is some hundred microseconds of computation. When many clients
//! connect at once, hundreds of steps are ready in one iteration of the shard's loop, and a
//! query of an established session would wait for all of them. So one step runs at a time, the
//! other ready tasks run in between, and while sessions move bytes a pause follows each step.
//! The longer the queue, the longer the pause (docs/adr/0006-paced-handshake-queue.md). Handshakes that
//! have begun come before new ones, so that each is over soon after it has begun.
//!
//! The pauses must never make a handshake miss the login deadline, and a client that gives up
//! must never block the queue.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::sched::delay_timer::TimerQueue;
use crate::sched::yield_now::yield_now;

/// Queued handshakes per step of pause: 16 queued handshakes pause for two steps. Fewer than one
/// step's worth are not paced.
const HANDSHAKES_PER_STEP: u32 = 8;
/// Every queued handshake gets one step within this fraction of the login deadline, whatever
/// that leaves to the sessions: a handshake has two steps.
const MAX_WAIT_FRACTION: u32 = 4;
/// How long a shard counts as busy after a session has moved bytes.
const ACTIVITY_WINDOW: Duration = Duration::from_millis(1);

/// The queue of one shard.
#[derive(Clone)]
pub(crate) struct HandshakeQueue(Rc<Inner>);

struct Inner {
    timers: Rc<TimerQueue>,
    /// For one step of every queued handshake.
    max_wait: Duration,
    /// Handshakes that have begun.
    begun: RefCell<VecDeque<Rc<Waiter>>>,
    new: RefCell<VecDeque<Rc<Waiter>>>,
    /// Connections that are not accepted while the queue is long.
    backlog: Cell<u32>,
    /// The longest that the queue was since it was empty, with the backlog.
    peak_len: Cell<u32>,
    /// There is a [`Front`].
    occupied: Cell<bool>,
    /// A session has moved bytes in this window.
    active: Cell<bool>,
    /// One did in the window before.
    busy: Cell<bool>,
    window_end: Cell<Instant>,
    /// The end of the pause.
    not_before: Cell<Instant>,
}

#[derive(Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A waiter in the queue. If it is dropped after the front was granted to it, the next one
/// gets it.
struct WaiterGuard<'a> {
    queue: &'a HandshakeQueue,
    waiter: Rc<Waiter>,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        if self.waiter.granted.get() {
            self.queue.grant_next();
        }
    }
}

/// The front of the queue. The next waiter gets it when this is dropped.
struct Front<'a>(&'a HandshakeQueue);

impl Drop for Front<'_> {
    fn drop(&mut self) {
        self.0.grant_next();
    }
}

/// Permission for one step; dropping it ends the step. It must not be held over a wait.
pub(crate) struct HandshakePermit<'a> {
    front: Front<'a>,
    start: Instant,
}

impl Drop for HandshakePermit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.front.0.set_not_before(now, now - self.start);
    }
}

impl HandshakeQueue {
    /// `login_timeout` bounds the pauses.
    pub(crate) fn new(login_timeout: Duration, timers: Rc<TimerQueue>) -> Self {
        let now = Instant::now();
        Self(Rc::new(Inner {
            timers,
            max_wait: login_timeout / MAX_WAIT_FRACTION,
            begun: RefCell::default(),
            new: RefCell::default(),
            backlog: Cell::new(0),
            peak_len: Cell::new(0),
            occupied: Cell::new(false),
            active: Cell::new(false),
            busy: Cell::new(false),
            window_end: Cell::new(now),
            not_before: Cell::new(now),
        }))
    }

    /// Waits for the front of the queue, for the end of the pause, and for the tasks that are
    /// ready then. `has_begun` if the handshake has had a step already.
    pub(crate) async fn acquire(&self, has_begun: bool) -> HandshakePermit<'_> {
        let front = self.reach_front(has_begun).await;
        self.pace().await;
        yield_now().await;
        HandshakePermit {
            front,
            start: Instant::now(),
        }
    }

    /// Records that a session has moved bytes.
    #[inline]
    pub(crate) fn record_activity(&self) {
        self.0.active.set(true);
    }

    /// Sets the number of connections that wait to be accepted until the queue is shorter.
    pub(crate) fn set_backlog(&self, connections: u32) {
        self.0.backlog.set(connections);
    }

    async fn reach_front(&self, has_begun: bool) -> Front<'_> {
        if !self.0.occupied.replace(true) {
            return Front(self);
        }
        let waiter = Rc::new(Waiter::default());
        let waiters = match has_begun {
            true => &self.0.begun,
            false => &self.0.new,
        };
        waiters.borrow_mut().push_back(Rc::clone(&waiter));
        let guard = WaiterGuard {
            queue: self,
            waiter,
        };
        poll_fn(|cx| {
            // Taken from the guard: from here on the front is passed on by its own drop.
            if guard.waiter.granted.take() {
                return Poll::Ready(());
            }
            *guard.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Front(self)
    }

    fn grant_next(&self) {
        loop {
            let begun = self.0.begun.borrow_mut().pop_front();
            let Some(waiter) = begun.or_else(|| self.0.new.borrow_mut().pop_front()) else {
                self.0.occupied.set(false);
                return;
            };
            // Otherwise its connection has ended while it waited.
            if Rc::strong_count(&waiter) > 1 {
                waiter.granted.set(true);
                if let Some(waker) = waiter.waker.take() {
                    waker.wake();
                }
                return;
            }
        }
    }

    /// Decides when the next step may begin; the last one took `step`.
    fn set_not_before(&self, now: Instant, step: Duration) {
        let waiters = self.0.begun.borrow().len() + self.0.new.borrow().len();
        let len = u32::try_from(waiters).unwrap_or(u32::MAX);
        let len = len.saturating_add(self.0.backlog.get());
        let peak_len = match len {
            0 => 0,
            _ => len.max(self.0.peak_len.get()),
        };
        self.0.peak_len.set(peak_len);
        let pause = pause(peak_len, step, self.0.max_wait);
        self.0.not_before.set(now + pause);
    }

    /// Waits for the end of the pause, or until the sessions have moved no bytes for a window.
    async fn pace(&self) {
        loop {
            let now = Instant::now();
            let busy = self.is_busy(now);
            let not_before = self.0.not_before.get();
            if !busy || now >= not_before {
                return;
            }
            let next = not_before.min(self.0.window_end.get());
            let wait = next.saturating_duration_since(now);
            if self.0.timers.delay(wait, || false).await.is_err() {
                // Without descriptors: monoio's timers are coarser, but need none. Boxed: it
                // has 640 bytes.
                Box::pin(monoio::time::sleep(wait)).await;
            }
        }
    }

    /// Whether sessions have moved bytes in the last window.
    fn is_busy(&self, now: Instant) -> bool {
        if now >= self.0.window_end.get() {
            self.0.busy.set(self.0.active.replace(false));
            self.0.window_end.set(now + ACTIVITY_WINDOW);
        }
        self.0.busy.get()
    }
}

/// The pause after a step, if the queue has had `peak_len` waiters. All of them get one step
/// within `max_wait`.
fn pause(peak_len: u32, step: Duration, max_wait: Duration) -> Duration {
    let proportional = step.saturating_mul(peak_len / HANDSHAKES_PER_STEP);
    let in_time = (max_wait / peak_len.max(1)).saturating_sub(step);
    proportional.min(in_time)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};
    use crate::sched::yield_now::TIMER_CHECK_INTERVAL;

    const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
    const STEPS: u32 = 64;
    const STEP: Duration = Duration::from_micros(100);

    fn queue() -> HandshakeQueue {
        HandshakeQueue::new(LOGIN_TIMEOUT, Rc::default())
    }

    async fn step(queue: &HandshakeQueue) {
        let permit = queue.acquire(false).await;
        while permit.start.elapsed() < STEP {}
    }

    #[test]
    fn the_pause_is_proportional_to_the_queue_within_the_maximum_wait() {
        let max_wait = Duration::from_secs(1);
        let steps = |len| pause(len, STEP, max_wait).as_micros() / STEP.as_micros();
        assert_eq!([0, 1, HANDSHAKES_PER_STEP - 1].map(steps), [0; 3]);
        assert_eq!(
            [HANDSHAKES_PER_STEP, 10 * HANDSHAKES_PER_STEP].map(steps),
            [1, 10]
        );
        assert_eq!(steps(30 * HANDSHAKES_PER_STEP), 30);
        // A thousand of them, and a millisecond for each.
        assert_eq!(steps(1_000), 9);
        assert_eq!([10_000, 20_000, u32::MAX].map(steps), [0; 3]);
    }

    #[test]
    fn the_peak_counts_until_the_queue_is_empty() {
        let (queue, now) = (queue(), Instant::now());
        let mut pauses = Vec::new();
        for len in [10 * HANDSHAKES_PER_STEP, HANDSHAKES_PER_STEP, 1, 0, 1] {
            *queue.0.new.borrow_mut() = (0..len).map(|_| Rc::default()).collect();
            queue.set_not_before(now, STEP);
            pauses.push((queue.0.not_before.get() - now).as_micros());
        }
        assert_eq!(pauses, [1_000, 1_000, 1_000, 0, 0]);
    }

    #[test]
    fn a_shard_is_busy_for_a_window_after_the_last_bytes() {
        let (queue, start) = (queue(), Instant::now());
        assert!(!queue.is_busy(start));
        queue.record_activity();
        assert!(!queue.is_busy(start), "it looks once in a window");
        assert!(queue.is_busy(start + ACTIVITY_WINDOW));
        assert!(queue.is_busy(start + 3 * ACTIVITY_WINDOW / 2));
        assert!(!queue.is_busy(start + 2 * ACTIVITY_WINDOW));
    }

    /// A session with a query after every answer, both ends of it.
    async fn session(queue: HandshakeQueue) {
        let (mut here, mut there) = monoio::net::UnixStream::pair().unwrap();
        drop(monoio::spawn(async move {
            let mut byte = vec![0; 1];
            while let (Ok(1), read) = there.read(byte).await {
                byte = there.write_all(read).await.1;
            }
        }));
        let mut byte = vec![0; 1];
        loop {
            byte = here.write_all(byte).await.1;
            byte = here.read(byte).await.1;
            queue.record_activity();
        }
    }

    /// How long a surge of handshakes takes for one step each, and whether the queue thinks at
    /// the end that the shard is busy.
    fn surge(with_session: bool, timers: Rc<TimerQueue>) -> (Duration, bool) {
        let outcome = Rc::new(Cell::new((Duration::ZERO, false)));
        let seen = Rc::clone(&outcome);
        block_on(IoDriver::Epoll, async move {
            let queue = HandshakeQueue::new(LOGIN_TIMEOUT, timers);
            // A session that has ended since.
            queue.record_activity();
            if with_session {
                drop(monoio::spawn(session(queue.clone())));
            }
            let start = Instant::now();
            let steps = (0..STEPS).map(|_| {
                let queue = queue.clone();
                monoio::spawn(async move { step(&queue).await })
            });
            for step in steps.collect::<Vec<_>>() {
                step.await;
            }
            seen.set((start.elapsed(), queue.0.busy.get()));
        })
        .unwrap();
        outcome.get()
    }

    #[test]
    fn sessions_get_most_of_the_time() {
        for timers in [Rc::default(), TimerQueue::unavailable()] {
            let (took, _) = surge(true, timers);
            // It is eight parts of nine, less the windows in which a busy machine ran nothing.
            assert!(took > STEP * STEPS * 4, "{took:?}");
        }
    }

    #[test]
    fn sessions_that_have_ended_delay_no_handshake() {
        let (_, busy) = surge(false, Rc::default());
        assert!(!busy);
    }

    #[test]
    fn timers_expire_while_handshakes_arrive_without_end() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let expired = Rc::new(Cell::new(None));
            let seen = Rc::clone(&expired);
            let ran = block_on(driver, async move {
                let (queue, start) = (queue(), Instant::now());
                let timer = Rc::clone(&seen);
                drop(monoio::spawn(async move {
                    monoio::time::sleep(2 * TIMER_CHECK_INTERVAL).await;
                    timer.set(Some(start.elapsed()));
                }));
                let clients = (0..STEPS).map(|_| {
                    let (queue, expired) = (queue.clone(), Rc::clone(&seen));
                    monoio::spawn(async move {
                        while expired.get().is_none() && start.elapsed() < Duration::from_secs(2) {
                            step(&queue).await;
                        }
                    })
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await;
                }
            });
            match ran {
                Ok(()) => {
                    let after: Option<Duration> = expired.get();
                    let in_time = after.is_some_and(|after| after < Duration::from_secs(1));
                    assert!(in_time, "{driver}: {after:?}");
                }
                Err(error) => println!("skipped {driver}: {error}"),
            }
        }
    }

    #[test]
    fn steps_are_in_order_and_other_tasks_run_in_between() {
        let steps = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&steps);
        block_on(IoDriver::Epoll, async move {
            let queue = queue();
            let rounds = Rc::new(Cell::new(0_u64));
            let counter = Rc::clone(&rounds);
            // A task that is always ready.
            drop(monoio::spawn(async move {
                loop {
                    counter.set(counter.get() + 1);
                    yield_now().await;
                }
            }));
            let handshakes = (0..50).map(|number| {
                let (queue, rounds, seen) = (queue.clone(), Rc::clone(&rounds), Rc::clone(&seen));
                monoio::spawn(async move {
                    if number == 7 {
                        // The client gives up while it waits.
                        assert!(queue.acquire(false).now_or_never().is_none());
                        return;
                    }
                    let _permit = queue.acquire(false).await;
                    seen.borrow_mut().push((number, rounds.get()));
                })
            });
            for handshake in handshakes.collect::<Vec<_>>() {
                handshake.await;
            }
        })
        .unwrap();
        let steps = steps.borrow();
        let numbers = steps.iter().map(|(number, _)| *number);
        assert!(numbers.eq((0..50).filter(|number| *number != 7)));
        let rounds = steps.windows(2).map(|pair| match pair {
            [(_, before), (_, after)] => after - before,
            _ => 0,
        });
        assert_eq!(rounds.min(), Some(1), "{steps:?}");
    }

    #[test]
    fn handshakes_that_have_begun_come_first() {
        let steps = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&steps);
        block_on(IoDriver::Epoll, async move {
            let queue = queue();
            let first = queue.acquire(false).await;
            let handshakes = [false, true, false, true].into_iter().enumerate();
            let handshakes = handshakes.map(|(number, has_begun)| {
                let (queue, seen) = (queue.clone(), Rc::clone(&seen));
                monoio::spawn(async move {
                    let _permit = queue.acquire(has_begun).await;
                    seen.borrow_mut().push(number);
                })
            });
            let handshakes: Vec<_> = handshakes.collect();
            for _ in 0..handshakes.len() {
                yield_now().await;
            }
            drop(first);
            for handshake in handshakes {
                handshake.await;
            }
        })
        .unwrap();
        assert_eq!(*steps.borrow(), [1, 3, 0, 2]);
    }

    #[test]
    fn connections_in_the_backlog_count_as_the_queue() {
        let (queue, now) = (queue(), Instant::now());
        *queue.0.new.borrow_mut() = (0..HANDSHAKES_PER_STEP).map(|_| Rc::default()).collect();
        queue.set_backlog(9 * HANDSHAKES_PER_STEP);
        queue.set_not_before(now, STEP);
        assert_eq!(queue.0.not_before.get() - now, 10 * STEP);
    }

    #[test]
    fn a_client_that_gives_up_at_the_front_passes_it_on() {
        block_on(IoDriver::Epoll, async {
            let queue = queue();
            let permit = queue.acquire(false).await;
            let mut granted = Box::pin(queue.acquire(false));
            assert!(granted.as_mut().now_or_never().is_none());
            let mut next = Box::pin(queue.acquire(false));
            assert!(next.as_mut().now_or_never().is_none());
            drop(permit);
            // Granted, and not yet polled again.
            drop(granted);
            drop(next.await);
            // And while it is paced or yields.
            let mut front = Box::pin(queue.acquire(false));
            assert!(front.as_mut().now_or_never().is_none());
            drop(front);
            assert!(!queue.0.occupied.get());
        })
        .unwrap();
    }
}
