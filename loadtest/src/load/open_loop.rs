//! Requests that fall due at times that were fixed beforehand.
//!
//! monoio's timers run_timer once a millisecond, ten times a query's latency. So the
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

use crate::error::{Result, io_context};
use crate::latency::Schedule;
use crate::worker_group::{Window, Worker};

/// A request that is due.
pub(super) struct DueRequest {
    /// When it is meant to begin.
    pub(super) intended: Instant,
    /// A connection was free and waiting when it fell due.
    pub(super) connection_free: bool,
}

/// The requests of one thread that are due and not started.
pub(super) struct DueQueue {
    state: RefCell<QueueState>,
}

#[derive(Default)]
struct QueueState {
    due: VecDeque<DueRequest>,
    waiting: VecDeque<Waker>,
    closed: bool,
}

impl DueQueue {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::default(),
        })
    }

    fn push(&self, intended: Instant) {
        let mut state = self.state.borrow_mut();
        let waker = state.waiting.pop_front();
        let connection_free = waker.is_some();
        state.due.push_back(DueRequest {
            intended,
            connection_free,
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
    pub(super) async fn next(&self) -> Option<DueRequest> {
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
    pub(super) fn drain_unstarted(&self) -> Vec<Instant> {
        let mut state = self.state.borrow_mut();
        state.due.drain(..).map(|due| due.intended).collect()
    }
}

/// Fills `queue` with this worker's part of the schedule until the window ends.
pub(super) fn start_pacer(
    worker: Worker,
    schedule: Schedule,
    window: Window,
    queue: Rc<DueQueue>,
) -> Result<()> {
    let failed = || io_context("cannot start a clock");
    let (receiver, sender) = StdUnixStream::pair().map_err(failed())?;
    let readiness = monoio::utils::is_legacy();
    receiver.set_nonblocking(readiness).map_err(failed())?;
    let receiver = UnixStream::from_std(receiver).map_err(failed())?;
    let first = u64::try_from(worker.index).unwrap_or(0);
    let times = (first..)
        .step_by(worker.count.max(1))
        .map(move |number| schedule.intended(number))
        .take_while(move |intended| *intended < window.end);
    let timer_times = times.clone();
    std::thread::Builder::new()
        .name("clock".to_owned())
        .spawn(move || run_timer(timer_times, sender, window.end))
        .map_err(failed())?;
    monoio::spawn(enqueue_due(receiver, times, queue));
    Ok(())
}

/// Sends a byte for each time as it passes, and hangs up at the end.
fn run_timer(times: impl Iterator<Item = Instant>, mut sender: StdUnixStream, end: Instant) {
    for intended in times {
        sleep_until(intended);
        if sender.write_all(&[0]).is_err() {
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

async fn enqueue_due(
    mut receiver: UnixStream,
    mut times: impl Iterator<Item = Instant>,
    queue: Rc<DueQueue>,
) {
    let mut buffer = vec![0; 4096];
    loop {
        let (result, back) = receiver.read(buffer).await;
        buffer = back;
        match result {
            Ok(bytes) if bytes > 0 => times.by_ref().take(bytes).for_each(|due| queue.push(due)),
            _ => break,
        }
    } // Where the clock itself was late: these were due all the same.
    times.for_each(|due| queue.push(due));
    queue.close();
}
