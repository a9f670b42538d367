//! Open-loop pacing: requests fall due at times that are fixed in advance.
//!
//! monoio's timers have a resolution of one millisecond, ten times a query's latency. Each worker
//! therefore has a pacer thread, which sleeps on the kernel's high-resolution timer and sends one
//! byte through a socket pair for each request that falls due.

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
use nix::sys::prctl::set_timerslack;

use crate::error::{Result, io_context};
use crate::latency::Schedule;
use crate::worker_group::{Window, Worker};

/// A request that is due.
pub(super) struct DueRequest {
    /// The intended start.
    pub(super) intended: Instant,
    /// A connection was idle and waiting when the request fell due.
    pub(super) connection_free: bool,
}

/// FIFO queue of one worker's requests that are due and not started.
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

    /// Takes the oldest due request, or returns `None` once the queue is closed. A task that was
    /// woken and finds the request already taken waits again.
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

    /// Removes all requests that were not started, and returns their intended starts.
    pub(super) fn drain_unstarted(&self) -> Vec<Instant> {
        let mut state = self.state.borrow_mut();
        state.due.drain(..).map(|due| due.intended).collect()
    }
}

/// Nice value of the threads of an open loop: the highest priority.
const NICE: i32 = -20;

/// Gives this thread, and the threads that it starts, priority over Postgres, which may have to
/// share its core with the load. Otherwise a request would wait until many servers had had their
/// turn, before and after the proxy, and that wait would count as the proxy's. Without the
/// privilege for it (CAP_SYS_NICE) nothing changes; the recorded lateness shows what it cost.
pub(super) fn prioritize_thread() {
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Starts filling `queue` with this worker's share of the schedule, until the window ends.
pub(super) fn start_pacer(
    worker: Worker,
    schedule: Schedule,
    window: Window,
    queue: Rc<DueQueue>,
) -> Result<()> {
    let failed = || io_context("cannot start a pacer");
    let (receiver, sender) = StdUnixStream::pair().map_err(failed())?;
    let readiness = monoio::utils::is_legacy();
    receiver.set_nonblocking(readiness).map_err(failed())?;
    let receiver = UnixStream::from_std(receiver).map_err(failed())?;
    let times = intended_starts(worker, schedule, window.end);
    let timer_times = times.clone();
    std::thread::Builder::new()
        .name("pacer".to_owned())
        .spawn(move || run_timer(timer_times, sender, window.end))
        .map_err(failed())?;
    monoio::spawn(enqueue_due(receiver, times, queue));
    Ok(())
}

/// A worker's share of the schedule: every `worker.count`-th request, before `end`.
fn intended_starts(
    worker: Worker,
    schedule: Schedule,
    end: Instant,
) -> impl Iterator<Item = Instant> + Clone + Send + 'static {
    let first = u64::try_from(worker.index).unwrap_or(0);
    (first..)
        .step_by(worker.count.max(1))
        .map(move |number| schedule.intended(number))
        .take_while(move |intended| *intended < end)
}

/// Sends a byte for each of `times` when it has come, and closes the socket at `end`. After a late
/// wake-up it sends all bytes that are due in one write: a write costs as much as some queries.
fn run_timer(times: impl Iterator<Item = Instant>, mut sender: StdUnixStream, end: Instant) {
    const DUE: [u8; 256] = [0; 256];
    // The kernel delays timers by 50 µs to gather them, which every latency would include.
    let _ = set_timerslack(1);
    let mut times = times.peekable();
    while let Some(intended) = times.next() {
        sleep_until(intended);
        let now = Instant::now();
        let more = std::iter::from_fn(|| times.next_if(|intended| *intended <= now));
        let count = 1 + more.take(DUE.len() - 1).count();
        if sender.write_all(DUE.get(..count).unwrap_or(&DUE)).is_err() {
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
    }
    // Requests that a delayed pacer did not announce were due all the same.
    times.for_each(|due| queue.push(due));
    queue.close();
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn workers_share_the_schedule_without_gaps() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 1_000.0);
        let end = start + Duration::from_millis(10);
        let mut starts: Vec<Instant> = (0..3)
            .flat_map(|index| intended_starts(Worker { index, count: 3 }, schedule, end))
            .collect();
        starts.sort();
        let expected: Vec<_> = (0..10).map(|number| schedule.intended(number)).collect();
        assert_eq!(starts, expected);
    }

    #[test]
    fn due_requests_are_taken_in_order_until_the_queue_is_closed() {
        let (queue, start) = (DueQueue::new(), Instant::now());
        let times = [1, 2, 3].map(|millis| start + Duration::from_millis(millis));
        times.iter().for_each(|time| queue.push(*time));
        for expected in &times[..2] {
            let due = queue.next().now_or_never().flatten().unwrap();
            assert_eq!(due.intended, *expected);
            assert!(!due.connection_free);
        }
        queue.close();
        assert!(queue.next().now_or_never().unwrap().is_none());
        assert_eq!(queue.drain_unstarted(), times[2..]);
    }

    #[test]
    fn a_waiting_connection_is_recorded_as_free() {
        let queue = DueQueue::new();
        let mut next = Box::pin(queue.next());
        assert!(next.as_mut().now_or_never().is_none());
        queue.push(Instant::now());
        assert!(next.now_or_never().flatten().unwrap().connection_free);
    }
}
