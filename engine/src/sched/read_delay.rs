//! Pauses in a stream: who reads faster than Postgres sends waits a moment, and then
//! finds much at once.
//!
//! Postgres sends a result 8 KiB at a time. A session that takes them as they come does
//! so for every few, with a sleep before or without, and that costs more than the bytes do
//! (docs/adr/0012-read-coalescing-for-streams.md has the figures).

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

use crate::io::buffer;

/// Bytes that make a stream, if they come in reads that are not short.
const STREAM: usize = 256 * 1024;
/// A pause is at most this part of the time that the stream has lasted since: so much
/// later comes the end of a result.
const PART: u32 = 16;
/// What is shorter costs as much as it saves.
const SHORTEST: Duration = Duration::from_micros(50);
/// A megabyte of what Postgres sends at its fastest: the sockets' buffers grow past it.
const LONGEST: Duration = Duration::from_millis(1);

/// When a session pauses, and for how long.
pub(crate) struct Pacing<'a> {
    pauses: &'a Rc<Pauses>,
    /// Bytes that the other direction has moved: a new question begins a new stream.
    questions: &'a Cell<u64>,
    /// Bytes since the last short read or question.
    streamed: usize,
    /// Since when they are a stream.
    since: Option<Instant>,
    /// The questions that they answer.
    asked: u64,
}

impl<'a> Pacing<'a> {
    pub(crate) fn new(pauses: &'a Rc<Pauses>, questions: &'a Cell<u64>) -> Self {
        Self {
            pauses,
            questions,
            streamed: 0,
            since: None,
            asked: questions.get(),
        }
    }

    /// A read brought `n` bytes.
    pub(crate) fn saw(&mut self, n: usize) {
        if n < buffer::SMALL || self.asked != self.questions.get() {
            self.begin_anew();
        } else {
            self.streamed = self.streamed.saturating_add(n);
        }
    }

    /// Waits a moment, where the stream is worth it; `false` where it is not, or no
    /// longer: whoever asks something new is not kept waiting for the answer.
    pub(crate) async fn pause(&mut self) -> bool {
        let Some(length) = self.length(Instant::now) else {
            return false;
        };
        let asked_again = || self.asked != self.questions.get();
        self.pauses.pause(length, asked_again).await;
        !asked_again()
    }

    /// The last pause brought nothing: who sends is slower than it seemed.
    pub(crate) fn begin_anew(&mut self) {
        self.asked = self.questions.get();
        self.streamed = 0;
        self.since = None;
    }

    fn length(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.asked != self.questions.get() {
            self.begin_anew();
        }
        if self.streamed < STREAM {
            return None;
        }
        let now = now();
        let lasted = now.saturating_duration_since(*self.since.get_or_insert(now));
        let length = lasted / PART;
        (length >= SHORTEST).then(|| length.min(LONGEST))
    }
}

/// A shard's clock for pauses: monoio's timers know milliseconds.
#[derive(Default)]
pub(crate) struct Pauses {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    /// Pauses so far: those that end at the same time keep apart by it.
    number: Cell<u64>,
    clock: RefCell<Clock>,
    /// The task of the clock, while nobody waits.
    resting: RefCell<Option<Waker>>,
}

/// Whether there is something that wakes the sessions.
#[derive(Default)]
enum Clock {
    #[default]
    NotStarted,
    Runs(Rc<Timer>),
    /// The system has no timer for us: nobody pauses.
    Broken,
}

impl Pauses {
    /// Waits for `time`, or until the session's task is woken and it `is_over`; without a
    /// timer, not at all.
    pub(crate) async fn pause(self: &Rc<Self>, time: Duration, is_over: impl Fn() -> bool) {
        let Some(timer) = self.timer() else { return };
        let over = Instant::now() + time;
        let number = self.number.get();
        self.number.set(number.wrapping_add(1));
        let place = Place(self, (over, number));
        let mut waits = false;
        poll_fn(|cx| {
            if is_over() || Instant::now() >= over || self.is_broken() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            waiting.insert(place.1, cx.waker().clone());
            let first = waiting.keys().next() == Some(&place.1);
            drop(waiting);
            if first && !waits && timer.set(over).is_err() {
                return Poll::Ready(());
            }
            waits = true;
            wake(&self.resting);
            Poll::Pending
        })
        .await;
    }

    fn is_broken(&self) -> bool {
        matches!(*self.clock.borrow(), Clock::Broken)
    }

    fn timer(self: &Rc<Self>) -> Option<Rc<Timer>> {
        let mut clock = self.clock.borrow_mut();
        if let Clock::NotStarted = *clock {
            *clock = Timer::new().map_or(Clock::Broken, |timer| {
                let timer = Rc::new(timer);
                drop(monoio::spawn(Rc::clone(self).tick(Rc::clone(&timer))));
                Clock::Runs(timer)
            });
        }
        match &*clock {
            Clock::Runs(timer) => Some(Rc::clone(timer)),
            _ => None,
        }
    }

    /// Wakes who has waited long enough, for as long as the shard runs.
    async fn tick(self: Rc<Self>, timer: Rc<Timer>) {
        loop {
            self.somebody_waits().await;
            if timer.rings().await.is_err() || self.wake_due(&timer).is_err() {
                break;
            }
        }
        *self.clock.borrow_mut() = Clock::Broken;
        for waker in self.waiting.take().into_values() {
            waker.wake();
        }
    }

    /// Ends the clock's task, with the shard.
    pub(crate) fn stop(&self) {
        self.resting.take();
    }

    async fn somebody_waits(&self) {
        poll_fn(|cx| {
            if !self.waiting.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.resting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake_due(&self, timer: &Timer) -> io::Result<()> {
        let now = Instant::now();
        let mut waiting = self.waiting.borrow_mut();
        let later = waiting.split_off(&(now, u64::MAX));
        for waker in std::mem::replace(&mut *waiting, later).into_values() {
            waker.wake();
        }
        // Where nobody is left, whoever comes next sets it anew.
        waiting
            .keys()
            .next()
            .map_or(Ok(()), |(over, _)| timer.set(*over))
    }
}

/// Nobody is left behind among those who wait.
struct Place<'a>(&'a Pauses, (Instant, u64));

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.borrow_mut().remove(&self.1);
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = place.borrow_mut().take() {
        waker.wake();
    }
}

/// The system's timer, to the microsecond.
struct Timer {
    timer: TimerFd,
    /// The same one, as monoio would wait for it: it knows sockets only, and the kernel
    /// waits for any descriptor in one way.
    watched: UnixStream,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let copy = timer.as_fd().try_clone_to_owned()?;
        let watched = UnixStream::from_std(StdUnixStream::from(copy))?;
        Ok(Self { timer, watched })
    }

    /// Rings at `over`, and no more at what was set before.
    fn set(&self, over: Instant) -> io::Result<()> {
        // Zero would be never.
        let left = over.saturating_duration_since(Instant::now());
        let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
        let once = Expiration::OneShot(left);
        Ok(self.timer.set(once, TimerSetTimeFlags::empty())?)
    }

    async fn rings(&self) -> io::Result<()> {
        self.watched.readable(false).await
    }
}

#[cfg(test)]
impl<'a> Pacing<'a> {
    /// In the midst of a stream that has lasted for a second.
    pub(crate) fn in_a_stream(pauses: &'a Rc<Pauses>, questions: &'a Cell<u64>) -> Self {
        Self {
            streamed: STREAM,
            since: Instant::now().checked_sub(Duration::from_secs(1)),
            ..Self::new(pauses, questions)
        }
    }

    pub(crate) fn is_in_a_stream(&self) -> bool {
        self.streamed >= STREAM
    }
}

#[cfg(test)]
impl Pauses {
    /// Pauses that are over at once.
    pub(crate) fn without_time() -> Rc<Self> {
        let pauses = Self::default();
        *pauses.clock.borrow_mut() = Clock::Broken;
        Rc::new(pauses)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use futures_util::future::{Either, join_all, select};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    fn on_both(test: impl AsyncFn(Rc<Pauses>)) {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            let pauses = Rc::<Pauses>::default();
            match block_on(driver, test(Rc::clone(&pauses))) {
                Ok(()) => assert!(pauses.waiting.borrow().is_empty(), "{driver}"),
                Err(error) => println!("skipped {driver}: {error}"),
            }
        }
    }

    async fn comes(state: impl Fn() -> bool) {
        let mut looks = 0;
        while !state() {
            looks += 1;
            assert!(looks < 10_000, "it never comes");
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// How long a stream of `reads` pauses that has `lasted` so long since it was one.
    fn pause_of(reads: &[usize], lasted: Duration) -> Option<Duration> {
        let (pauses, questions) = (Rc::default(), Cell::new(7));
        let mut pacing = Pacing::new(&pauses, &questions);
        reads.iter().for_each(|n| pacing.saw(*n));
        let begun = Instant::now();
        assert_eq!(pacing.length(|| begun), None, "a stream begins without");
        pacing.length(|| begun + lasted)
    }

    #[test]
    fn a_pause_is_a_part_of_what_the_stream_has_lasted() {
        let stream = [buffer::SMALL; STREAM / buffer::SMALL];
        for (lasted, pause) in [
            (799, None),
            (800, Some(50)),
            (1600, Some(100)),
            (17_000, Some(1000)),
        ] {
            assert_eq!(
                pause_of(&stream, Duration::from_micros(lasted)),
                pause.map(Duration::from_micros),
                "{lasted}"
            );
        }
    }

    #[test]
    fn only_a_stream_pauses() {
        let almost = [buffer::SMALL; STREAM / buffer::SMALL - 1];
        let mut short = almost.to_vec();
        short.extend([buffer::SMALL - 1, buffer::SMALL]);
        for (reads, pauses) in [
            (&almost[..], false),
            (&short, false),
            (&[buffer::LARGE, buffer::LARGE], true),
            (&[buffer::LARGE, buffer::LARGE, 1], false),
        ] {
            let pause = pause_of(reads, Duration::from_secs(1));
            assert_eq!(pause.is_some(), pauses, "{reads:?}");
        }
    }

    #[test]
    fn a_question_begins_a_new_stream() {
        let (pauses, questions) = (Rc::default(), Cell::new(0));
        let mut pacing = Pacing::in_a_stream(&pauses, &questions);
        assert!(pacing.length(Instant::now).is_some());
        questions.set(1);
        assert_eq!(pacing.length(Instant::now), None);

        let mut pacing = Pacing::in_a_stream(&pauses, &questions);
        questions.set(2);
        pacing.saw(buffer::LARGE);
        assert!(!pacing.is_in_a_stream());
    }

    #[test]
    fn a_question_ends_the_pause() {
        on_both(async |pauses| {
            let questions = Cell::new(0);
            let mut pacing = Pacing::in_a_stream(&pauses, &questions);
            let mut pause = pin!(pacing.pause());
            assert_eq!(pause.as_mut().now_or_never(), None);
            questions.set(1);
            // Asked again, as the session's task does when its other half has moved.
            assert_eq!(pause.as_mut().now_or_never(), Some(false));
        });
    }

    #[test]
    fn pauses_last_as_long_as_they_should() {
        on_both(async |pauses| {
            let (begun, pauses) = (Instant::now(), &pauses);
            join_all([900, 300, 5_000, 300, 600].map(async |micros| {
                let time = Duration::from_micros(micros);
                pauses.pause(time, || false).await;
                assert!(begun.elapsed() >= time);
            }))
            .await;
            // And again, after the clock has rested.
            pauses.pause(SHORTEST, || false).await;
        });
    }

    #[test]
    fn a_short_pause_does_not_wait_for_a_long_one() {
        on_both(async |pauses| {
            let long = pin!(pauses.pause(Duration::from_secs(3600), || false));
            let short = pin!(pauses.pause(SHORTEST, || false));
            assert!(matches!(select(long, short).await, Either::Right(_)));
        });
    }

    #[test]
    fn who_goes_away_in_a_pause_is_not_waited_for() {
        on_both(async |pauses| {
            {
                let mut gone = pin!(pauses.pause(Duration::from_secs(3600), || false));
                assert!(gone.as_mut().now_or_never().is_none());
                assert_eq!(pauses.waiting.borrow().len(), 1);
            }
            assert!(pauses.waiting.borrow().is_empty());
            pauses.pause(SHORTEST, || false).await;
        });
    }

    #[test]
    fn without_a_timer_nobody_waits() {
        on_both(async |_| {
            let pauses = Pauses::without_time();
            pauses.pause(Duration::from_secs(3600), || false).await;
        });
    }

    #[test]
    fn a_clock_that_rests_ends_with_its_shard() {
        on_both(async |pauses| {
            pauses.pause(SHORTEST, || false).await;
            comes(|| pauses.resting.borrow().is_some()).await;
            // Ours and the test's beside the task's.
            assert_eq!(Rc::strong_count(&pauses), 3);
            pauses.stop();
            comes(|| Rc::strong_count(&pauses) == 2).await;
        });
    }
}
