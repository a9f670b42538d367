//! Requests that fall due at times that were fixed beforehand.
//!
//! monoio's timers tick once a millisecond, ten times a query's latency. So the
//! clock of each load thread is a thread of its own that sleeps by the kernel's
//! high-resolution timer and sends a byte for each request that falls due.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::Write as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

use crate::error::{Result, doing};
use crate::latency::Schedule;
use crate::worker_group::{Seat, Window};

/// A request that is due.
pub(super) struct Due {
    /// When it is meant to begin.
    pub(super) intended: Instant,
    /// A connection was free and waiting when it fell due.
    pub(super) waited_for: bool,
}

/// The requests of one thread that are due and not begun.
pub(super) struct Queue {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    due: VecDeque<Due>,
    waiting: VecDeque<Waker>,
    closed: bool,
}

impl Queue {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::default(),
        })
    }

    fn push(&self, intended: Instant) {
        let mut state = self.state.borrow_mut();
        let waker = state.waiting.pop_front();
        let waited_for = waker.is_some();
        state.due.push_back(Due {
            intended,
            waited_for,
        });
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The oldest that is due, `None` after the last one. Whoever is woken and
    /// finds it taken waits again.
    pub(super) async fn next(&self) -> Option<Due> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.closed {
                return Poll::Ready(None);
            }
            if let Some(due) = state.due.pop_front() {
                return Poll::Ready(Some(due));
            }
            state.waiting.push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// What nobody began.
    pub(super) fn left(&self) -> Vec<Instant> {
        let mut state = self.state.borrow_mut();
        state.due.drain(..).map(|due| due.intended).collect()
    }
}

/// Fills `queue` with this seat's part of the schedule until the window ends.
pub(super) fn pace(seat: Seat, schedule: Schedule, window: Window, queue: Rc<Queue>) -> Result<()> {
    let failed = || doing("cannot start a clock");
    let (near, far) = StdUnixStream::pair().map_err(failed())?;
    let readiness = monoio::utils::is_legacy();
    near.set_nonblocking(readiness).map_err(failed())?;
    let near = UnixStream::from_std(near).map_err(failed())?;
    let first = u64::try_from(seat.thread).unwrap_or(0);
    let times = (first..)
        .step_by(seat.threads.max(1))
        .map(move |number| schedule.intended(number))
        .take_while(move |intended| *intended < window.end);
    let ticks = times.clone();
    std::thread::Builder::new()
        .name("clock".to_owned())
        .spawn(move || tick(ticks, far, window.end))
        .map_err(failed())?;
    monoio::spawn(follow(near, times, queue));
    Ok(())
}

/// Sends a byte for each time as it passes, and hangs up at the end.
fn tick(times: impl Iterator<Item = Instant>, mut far: StdUnixStream, end: Instant) {
    for intended in times {
        sleep_until(intended);
        if far.write_all(&[0]).is_err() {
            return;
        }
    }
    sleep_until(end);
}

fn sleep_until(then: Instant) {
    let rest = then.saturating_duration_since(Instant::now());
    if rest > Duration::ZERO {
        std::thread::sleep(rest);
    }
}

async fn follow(mut near: UnixStream, mut times: impl Iterator<Item = Instant>, queue: Rc<Queue>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (result, back) = near.read(buffer).await;
        buffer = back;
        match result {
            Ok(bytes) if bytes > 0 => times.by_ref().take(bytes).for_each(|due| queue.push(due)),
            _ => break,
        }
    } // Where the clock itself was late: these were due all the same.
    times.for_each(|due| queue.push(due));
    queue.close();
}
