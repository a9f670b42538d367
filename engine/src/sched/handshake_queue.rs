//! Handshakes in single file, and no faster than the sessions can bear.
//!
//! A step of a handshake is some hundred microseconds of computation. When a
//! crowd arrives, hundreds of them are ready in one turn of the loop, and a
//! running session's query would wait for all of them. In the handshake_queue one step at
//! a time joins the end of the shard's queue; and while sessions move bytes,
//! there is a pause behind each step that leaves most of the time to them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use monoio::time::Sleep;

use crate::sched::busy_poll::WITHOUT_TIMERS;

/// The longest pause is so many times the step before it: a twentieth of a busy shard's
/// time is for handshakes.
const PAUSE_MOST: u32 = 19;
/// For each so many that wait, a pause is as long as one step more. Fewer are no crowd,
/// and nobody waits for the sessions' sake.
const CROWD: u32 = 8;
/// A crowd has taken one step each in this part of a login's deadline, whatever that
/// leaves to the sessions: a handshake has two.
const PART_OF_A_LOGIN: u32 = 4;
/// How long a shard counts as busy after a session has moved bytes. No pause is
/// longer without a look whether it still is, and monoio's timers have no finer step.
const WINDOW: Duration = Duration::from_millis(1);

/// A shard's handshake_queue.
#[derive(Clone)]
pub(crate) struct HandshakeQueue(Rc<Inner>);

struct Inner {
    /// For one step of everybody who waits.
    patience: Duration,
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// The most that have waited since nobody did.
    crowd: Cell<u32>,
    /// Woken by the one whose turn it is: from another task, because monoio
    /// 0.2.4 puts a task that wakes itself in front of all others.
    usher: RefCell<Option<Waker>>,
    /// Somebody has been called, and that turn is not over.
    called: Cell<bool>,
    /// A session has moved bytes in this window.
    traffic: Cell<bool>,
    /// One did in the last window.
    busy: Cell<bool>,
    window_ends: Cell<Instant>,
    not_before: Cell<Instant>,
    /// The next step waits for its moment.
    held: Cell<bool>,
}

#[derive(Default)]
struct Place {
    called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps the handshake_queue moving when the one that was called is gone.
struct Waiting<'a> {
    handshake_queue: &'a HandshakeQueue,
    place: Rc<Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.place.called.get() {
            self.handshake_queue.turn_ends();
        }
    }
}

/// A turn; dropping it ends it. It must not be held over a wait.
pub(crate) struct Turn<'a> {
    handshake_queue: &'a HandshakeQueue,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.handshake_queue.hold(now, now - self.began);
        self.handshake_queue.turn_ends();
    }
}

impl HandshakeQueue {
    /// `login` is how long a login may take.
    pub(crate) fn new(login: Duration) -> Self {
        let now = Instant::now();
        Self(Rc::new(Inner {
            patience: login / PART_OF_A_LOGIN,
            waiting: RefCell::default(),
            crowd: Cell::new(0),
            usher: RefCell::default(),
            called: Cell::new(false),
            traffic: Cell::new(false),
            busy: Cell::new(false),
            window_ends: Cell::new(now),
            not_before: Cell::new(now),
            held: Cell::new(false),
        }))
    }

    /// Waits for this task's turn.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let place = Rc::new(Place::default());
        self.0.waiting.borrow_mut().push_back(Rc::clone(&place));
        self.wake_usher();
        let waiting = Waiting {
            handshake_queue: self,
            place,
        };
        poll_fn(|cx| {
            // Taken: from here on it is the turn that ends.
            if waiting.place.called.take() {
                return Poll::Ready(());
            }
            *waiting.place.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Turn {
            handshake_queue: self,
            began: Instant::now(),
        }
    }

    /// A session has moved bytes: whoever is inside goes first.
    #[inline]
    pub(crate) fn saw_traffic(&self) {
        self.0.traffic.set(true);
        if self.0.held.get() {
            self.wake_usher();
        }
    }

    fn wake_usher(&self) {
        if let Some(usher) = self.0.usher.borrow().as_ref() {
            usher.wake_by_ref();
        }
    }

    fn turn_ends(&self) {
        self.0.called.set(false);
        self.wake_usher();
    }

    /// Decides when the next step may begin, `step` being what the last one took.
    fn hold(&self, now: Instant, step: Duration) {
        let waiting = u32::try_from(self.0.waiting.borrow().len()).unwrap_or(u32::MAX);
        let crowd = match waiting {
            0 => 0,
            _ => waiting.max(self.0.crowd.get()),
        };
        self.0.crowd.set(crowd);
        let pause = pause(crowd, step, self.0.patience);
        self.0.not_before.set(now + pause);
    }

    /// Calls one after the other, for as long as the shard lives.
    pub(crate) async fn usher(self) {
        let (mut tick, mut alarm) = (None, None);
        poll_fn(|cx| {
            self.keep(cx);
            while self.somebody_waits() {
                if !self.is_time(&mut tick, cx) || timers_are_due(&mut alarm, cx) {
                    break;
                }
                self.call_next();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    fn keep(&self, cx: &Context<'_>) {
        let mut usher = self.0.usher.borrow_mut();
        if usher.is_none() {
            *usher = Some(cx.waker().clone());
        }
    }

    fn somebody_waits(&self) -> bool {
        !self.0.called.get() && !self.0.waiting.borrow().is_empty()
    }

    /// Whether the next step may begin; if not, `cx` is woken by traffic or by `tick`.
    fn is_time(&self, tick: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
        loop {
            let now = Instant::now();
            let held = self.is_busy(now) && now < self.0.not_before.get();
            self.0.held.set(held);
            if !held {
                *tick = None;
                return true;
            }
            let timer = tick.get_or_insert_with(|| Box::pin(monoio::time::sleep(WINDOW)));
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            *tick = None;
        }
    }

    /// Whether sessions have moved bytes in the last window.
    fn is_busy(&self, now: Instant) -> bool {
        if now >= self.0.window_ends.get() {
            self.0.busy.set(self.0.traffic.replace(false));
            self.0.window_ends.set(now + WINDOW);
        }
        self.0.busy.get()
    }

    fn call_next(&self) {
        let Some(place) = self.0.waiting.borrow_mut().pop_front() else {
            return;
        };
        // Whose connection has ended while it waited holds no place.
        if Rc::strong_count(&place) > 1 {
            place.called.set(true);
            self.0.called.set(true);
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }
}

/// When it was set, and what rings when the timers are looked at.
type Alarm = Option<(Instant, Pin<Box<Sleep>>)>;

/// Whether the handshake_queue, which may always have a task ready, has to rest until the timers have
/// been looked at. That wakes `cx`, and by an alarm that has run out by then: nobody sleeps.
fn timers_are_due(alarm: &mut Alarm, cx: &mut Context<'_>) -> bool {
    let now = Instant::now();
    let (since, sleep) = alarm.get_or_insert_with(|| {
        let sleep = monoio::time::sleep(WITHOUT_TIMERS / 2);
        (now, Box::pin(sleep))
    });
    if sleep.as_mut().poll(cx).is_ready() {
        *alarm = None;
        return false;
    }
    now.saturating_duration_since(*since) >= WITHOUT_TIMERS
}

/// How long the sessions have the shard to themselves behind a step of one of `crowd`
/// that wait. All of them are to get through one within `patience`.
fn pause(crowd: u32, step: Duration, patience: Duration) -> Duration {
    let fair = step * (crowd / CROWD).min(PAUSE_MOST);
    let in_time = (patience / crowd.max(1)).saturating_sub(step);
    fair.min(in_time)
}

#[cfg(test)]
mod tests {
    use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    const LOGIN: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_grow_with_the_crowd_as_far_as_its_patience_goes() {
        let step = Duration::from_micros(100);
        let patience = Duration::from_secs(1);
        let steps = |crowd| pause(crowd, step, patience).as_micros() / step.as_micros();
        assert_eq!([0, 1, CROWD - 1].map(steps), [0; 3]);
        assert_eq!([CROWD, 10 * CROWD].map(steps), [1, 10]);
        assert_eq!([19 * CROWD, 400].map(steps), [19, 19]);
        // A thousand of them, and a millisecond for each.
        assert_eq!(steps(1_000), 9);
        assert_eq!([10_000, 20_000, u32::MAX].map(steps), [0; 3]);
    }

    #[test]
    fn a_crowd_counts_until_the_last_of_it_is_through() {
        let (handshake_queue, step) = (HandshakeQueue::new(LOGIN), Duration::from_micros(100));
        let now = Instant::now();
        let mut pauses = Vec::new();
        for waiting in [10 * CROWD, CROWD, 1, 0, 1] {
            let places = (0..waiting).map(|_| Rc::default());
            *handshake_queue.0.waiting.borrow_mut() = places.collect();
            handshake_queue.hold(now, step);
            pauses.push((handshake_queue.0.not_before.get() - now).as_micros());
        }
        assert_eq!(pauses, [1_000, 1_000, 1_000, 0, 0]);
    }

    #[test]
    fn a_shard_is_busy_for_a_window_after_the_last_bytes() {
        let (handshake_queue, begun) = (HandshakeQueue::new(LOGIN), Instant::now());
        assert!(!handshake_queue.is_busy(begun));
        handshake_queue.saw_traffic();
        assert!(!handshake_queue.is_busy(begun), "it looks once in a window");
        assert!(handshake_queue.is_busy(begun + WINDOW));
        assert!(handshake_queue.is_busy(begun + 3 * WINDOW / 2));
        assert!(!handshake_queue.is_busy(begun + 2 * WINDOW));
    }

    const STEPS: u32 = 64;
    const STEP: Duration = Duration::from_micros(100);

    /// A session that asks again as soon as it is answered, both ends of it.
    async fn session(handshake_queue: HandshakeQueue) {
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
            handshake_queue.saw_traffic();
        }
    }

    /// How long a crowd takes for a step each, and whether the handshake_queue thinks at the end
    /// that the shard is busy.
    fn a_crowd(beside_a_session: bool) -> (Duration, bool) {
        let outcome = Rc::new(Cell::new((Duration::ZERO, false)));
        let seen = Rc::clone(&outcome);
        block_on(IoDriver::Epoll, async move {
            let handshake_queue = HandshakeQueue::new(LOGIN);
            drop(monoio::spawn(handshake_queue.clone().usher()));
            // Of a session that ended before.
            handshake_queue.saw_traffic();
            if beside_a_session {
                drop(monoio::spawn(session(handshake_queue.clone())));
            }
            let step = |handshake_queue: HandshakeQueue| async move {
                let turn = handshake_queue.turn().await;
                while turn.began.elapsed() < STEP {}
            };
            let begun = Instant::now();
            let steps: Vec<_> = (0..STEPS)
                .map(|_| monoio::spawn(step(handshake_queue.clone())))
                .collect();
            for step in steps {
                step.await;
            }
            seen.set((begun.elapsed(), handshake_queue.0.busy.get()));
        })
        .unwrap();
        outcome.get()
    }

    #[test]
    fn beside_sessions_most_of_the_time_is_theirs() {
        let (took, _) = a_crowd(true);
        // It is eight parts of nine, less what a machine without time takes for quiet.
        assert!(took > STEP * STEPS * 4, "{took:?}");
    }

    #[test]
    fn sessions_that_have_ended_hold_nobody_up() {
        let (_, busy) = a_crowd(false);
        assert!(!busy);
    }

    #[test]
    fn timers_ring_while_a_crowd_never_ends() {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let late = Rc::new(Cell::new(None));
            let seen = Rc::clone(&late);
            let ran = block_on(driver, async move {
                let handshake_queue = HandshakeQueue::new(LOGIN);
                drop(monoio::spawn(handshake_queue.clone().usher()));
                let begun = Instant::now();
                let rang = Rc::clone(&seen);
                drop(monoio::spawn(async move {
                    monoio::time::sleep(2 * WITHOUT_TIMERS).await;
                    rang.set(Some(begun.elapsed()));
                }));
                let client = |handshake_queue: HandshakeQueue, rang: Rc<Cell<Option<Duration>>>| async move {
                    while rang.get().is_none() && begun.elapsed() < Duration::from_secs(2) {
                        let turn = handshake_queue.turn().await;
                        while turn.began.elapsed() < STEP {}
                    }
                };
                let crowd = (0..STEPS)
                    .map(|_| monoio::spawn(client(handshake_queue.clone(), seen.clone())));
                for one in crowd.collect::<Vec<_>>() {
                    one.await;
                }
            });
            match ran {
                Ok(()) => {
                    let late: Option<Duration> = late.get();
                    let in_time = late.is_some_and(|late| late < Duration::from_secs(1));
                    assert!(in_time, "{driver}: {late:?}");
                }
                Err(error) => println!("skipped {driver}: {error}"),
            }
        }
    }

    #[test]
    fn others_run_between_two_steps_and_nobody_is_left_behind() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let main = async {
            let handshake_queue = HandshakeQueue::new(LOGIN);
            drop(monoio::spawn(handshake_queue.clone().usher()));
            let steps: Vec<_> = (0..50)
                .map(|number| {
                    let (handshake_queue, order) = (handshake_queue.clone(), Rc::clone(&order));
                    monoio::spawn(async move {
                        if number == 7 {
                            // Goes away while it waits.
                            let gone = handshake_queue.turn();
                            let moment = Duration::from_millis(1);
                            let _ = monoio::time::timeout(moment, gone).await;
                            return;
                        }
                        let _turn = handshake_queue.turn().await;
                        order.borrow_mut().push(number);
                    })
                })
                .collect();
            for step in steps {
                step.await;
            }
        };
        block_on(IoDriver::Epoll, main).unwrap();
        let expected: Vec<_> = (0..50).filter(|number| *number != 7).collect();
        assert_eq!(*order.borrow(), expected);
    }
}
