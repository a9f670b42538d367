//! Timer queue with microsecond resolution: an ordered map of deadlines, driven by one
//! `timerfd` per shard.
//!
//! Read coalescing and the pacing of handshakes wait for 50 µs to some milliseconds, and
//! monoio's timers tick in milliseconds ([`super`]). The timer and its task are created with
//! the first delay. The task sleeps while no deadline is pending, so an idle shard does not
//! wake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use monoio::net::UnixStream;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A deadline, and a number that distinguishes entries with the same deadline.
type Key = (Instant, u64);

/// The pending delays of one shard.
#[derive(Default)]
pub(crate) struct TimerQueue {
    pending: RefCell<BTreeMap<Key, Waker>>,
    /// Delays so far.
    count: Cell<u64>,
    state: RefCell<TimerState>,
    /// The timer's task, while nothing is pending.
    idle: RefCell<Option<Waker>>,
}

#[derive(Default)]
enum TimerState {
    #[default]
    NotStarted,
    Running(Rc<SystemTimer>),
    /// The system could not create the timer, or it failed.
    Unavailable,
}

/// The system has no timer for this shard: no descriptor was left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TimerUnavailable;

impl TimerQueue {
    /// Waits for `time`. Returns early if `is_over` is true whenever the task is polled.
    ///
    /// # Errors
    /// There is no timer: the delay has ended at once, or early.
    pub(crate) async fn delay(
        self: &Rc<Self>,
        time: Duration,
        is_over: impl Fn() -> bool,
    ) -> Result<(), TimerUnavailable> {
        let timer = self.timer().ok_or(TimerUnavailable)?;
        let deadline = Instant::now() + time;
        let number = self.count.get();
        self.count.set(number.wrapping_add(1));
        let entry = TimerEntry {
            queue: self,
            key: (deadline, number),
        };
        let mut is_set = false;
        poll_fn(|cx| {
            if is_over() || Instant::now() >= deadline {
                return Poll::Ready(Ok(()));
            }
            if self.is_unavailable() {
                return Poll::Ready(Err(TimerUnavailable));
            }
            let mut pending = self.pending.borrow_mut();
            pending.insert(entry.key, cx.waker().clone());
            let is_first = pending.keys().next() == Some(&entry.key);
            drop(pending);
            if is_first && !is_set && timer.set(deadline).is_err() {
                return Poll::Ready(Err(TimerUnavailable));
            }
            is_set = true;
            if let Some(task) = self.idle.borrow_mut().take() {
                task.wake();
            }
            Poll::Pending
        })
        .await
    }

    fn is_unavailable(&self) -> bool {
        matches!(*self.state.borrow(), TimerState::Unavailable)
    }

    fn timer(self: &Rc<Self>) -> Option<Rc<SystemTimer>> {
        let mut state = self.state.borrow_mut();
        if let TimerState::NotStarted = *state {
            *state = SystemTimer::new().map_or(TimerState::Unavailable, |timer| {
                let timer = Rc::new(timer);
                drop(monoio::spawn(Rc::clone(self).run(Rc::clone(&timer))));
                TimerState::Running(timer)
            });
        }
        match &*state {
            TimerState::Running(timer) => Some(Rc::clone(timer)),
            _ => None,
        }
    }

    /// Wakes the tasks whose deadlines have passed, for as long as the shard runs.
    async fn run(self: Rc<Self>, timer: Rc<SystemTimer>) {
        loop {
            self.until_pending().await;
            if timer.expired().await.is_err() || self.wake_expired(&timer).is_err() {
                break;
            }
        }
        *self.state.borrow_mut() = TimerState::Unavailable;
        for waker in self.pending.take().into_values() {
            waker.wake();
        }
    }

    /// Ends the timer's task at the end of the shard, when no delay is pending.
    pub(crate) fn stop(&self) {
        self.idle.take();
    }

    async fn until_pending(&self) {
        poll_fn(|cx| {
            if !self.pending.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.idle.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake_expired(&self, timer: &SystemTimer) -> io::Result<()> {
        let now = Instant::now();
        let mut pending = self.pending.borrow_mut();
        let later = pending.split_off(&(now, u64::MAX));
        for waker in std::mem::replace(&mut *pending, later).into_values() {
            waker.wake();
        }
        // If nothing is left, the next delay sets the timer.
        pending
            .keys()
            .next()
            .map_or(Ok(()), |(deadline, _)| timer.set(*deadline))
    }
}

/// Removes a delay that ends or is dropped.
struct TimerEntry<'a> {
    queue: &'a TimerQueue,
    key: Key,
}

impl Drop for TimerEntry<'_> {
    fn drop(&mut self) {
        self.queue.pending.borrow_mut().remove(&self.key);
    }
}

struct SystemTimer {
    timer: TimerFd,
    /// A second descriptor of the timer in the only type that monoio waits for: a socket.
    /// The kernel waits for any descriptor in the same way.
    watched: UnixStream,
}

impl SystemTimer {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let copy = timer.as_fd().try_clone_to_owned()?;
        let watched = UnixStream::from_std(StdUnixStream::from(copy))?;
        Ok(Self { timer, watched })
    }

    /// Expires at `deadline`, and no longer at the one that was set before.
    fn set(&self, deadline: Instant) -> io::Result<()> {
        // Zero would disarm it.
        let left = deadline.saturating_duration_since(Instant::now());
        let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
        let once = Expiration::OneShot(left);
        Ok(self.timer.set(once, TimerSetTimeFlags::empty())?)
    }

    async fn expired(&self) -> io::Result<()> {
        self.watched.readable(false).await
    }
}

#[cfg(test)]
impl TimerQueue {
    /// A queue whose timer could not be created.
    pub(crate) fn unavailable() -> Rc<Self> {
        let queue = Self::default();
        *queue.state.borrow_mut() = TimerState::Unavailable;
        Rc::new(queue)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use futures_util::future::{Either, join_all, select};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    const HOUR: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_micros(50);

    fn on_both(test: impl AsyncFn(Rc<TimerQueue>)) {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let timers = Rc::<TimerQueue>::default();
            match block_on(driver, test(Rc::clone(&timers))) {
                Ok(()) => assert!(timers.pending.borrow().is_empty(), "{driver}"),
                Err(error) => println!("skipped {driver}: {error}"),
            }
        }
    }

    async fn until(state: impl Fn() -> bool) {
        let mut checks = 0;
        while !state() {
            checks += 1;
            assert!(checks < 10_000, "the state is never reached");
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn delays_last_at_least_their_time() {
        on_both(async |timers| {
            let (start, timers) = (Instant::now(), &timers);
            join_all([900, 300, 5_000, 300, 600].map(async |micros| {
                let time = Duration::from_micros(micros);
                assert_eq!(timers.delay(time, || false).await, Ok(()));
                assert!(start.elapsed() >= time);
            }))
            .await;
            // And again, after the timer's task was idle.
            assert_eq!(timers.delay(SHORT, || false).await, Ok(()));
        });
    }

    #[test]
    fn delays_are_finer_than_the_ticks_of_monoio() {
        on_both(async |timers| {
            // The least of many: a busy machine delays some of them.
            let mut least = HOUR;
            for _ in 0..1_000 {
                let start = Instant::now();
                timers.delay(SHORT, || false).await.unwrap();
                least = least.min(start.elapsed());
            }
            assert!(least < Duration::from_micros(500), "{least:?}");
        });
    }

    #[test]
    fn a_short_delay_does_not_wait_for_a_long_one() {
        on_both(async |timers| {
            let long = pin!(timers.delay(HOUR, || false));
            let short = pin!(timers.delay(SHORT, || false));
            assert!(matches!(select(long, short).await, Either::Right(_)));
        });
    }

    #[test]
    fn a_dropped_delay_leaves_the_queue() {
        on_both(async |timers| {
            {
                let mut dropped = pin!(timers.delay(HOUR, || false));
                assert!(dropped.as_mut().now_or_never().is_none());
                assert_eq!(timers.pending.borrow().len(), 1);
            }
            assert!(timers.pending.borrow().is_empty());
            assert_eq!(timers.delay(SHORT, || false).await, Ok(()));
        });
    }

    #[test]
    fn without_a_timer_delays_fail_at_once() {
        on_both(async |_| {
            let timers = TimerQueue::unavailable();
            let delay = timers.delay(HOUR, || false).now_or_never();
            assert_eq!(delay, Some(Err(TimerUnavailable)));
        });
    }

    #[test]
    fn the_idle_task_ends_with_its_shard() {
        on_both(async |timers| {
            timers.delay(SHORT, || false).await.unwrap();
            until(|| timers.idle.borrow().is_some()).await;
            // Ours, the caller's, and the task's.
            assert_eq!(Rc::strong_count(&timers), 3);
            timers.stop();
            until(|| Rc::strong_count(&timers) == 2).await;
        });
    }
}
