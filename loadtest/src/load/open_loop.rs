//! Open-loop pacing: requests fall due at times that are fixed in advance.
//!
//! monoio's timers have a resolution of one millisecond, ten times a query's latency. Each worker
//! therefore has a timer of the operating system (timerfd), which its ring waits for like a socket. A thread that
//! sleeps and wakes the worker would cost a task switch for each request, on a core that the load may share with Postgres.

use std::cell::RefCell;
use std::collections::VecDeque;
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
    let timer = SystemTimer::new().map_err(io_context("cannot start a pacer"))?;
    let times = intended_starts(worker, schedule, window.end);
    monoio::spawn(enqueue_due(timer, times, window.end, queue));
    Ok(())
}

/// A worker's share of the schedule: every `worker.count`-th request, before `end`.
fn intended_starts(
    worker: Worker,
    schedule: Schedule,
    end: Instant,
) -> impl Iterator<Item = Instant> + 'static {
    let first = u64::try_from(worker.index).unwrap_or(0);
    (first..)
        .step_by(worker.count.max(1))
        .map(move |number| schedule.intended(number))
        .take_while(move |intended| *intended < end)
}

/// A timer of the operating system with the resolution of its clock.
struct SystemTimer {
    timer: TimerFd,
    /// A second descriptor of the timer in the only type that monoio waits for: a socket.
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

    /// Returns at once if `then` has passed.
    async fn until(&self, then: Instant) -> io::Result<()> {
        let left = then.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        self.timer.set(once, TimerSetTimeFlags::empty())?;
        self.watched.readable(false).await
    }
}

/// Puts each of `times` into the queue when it has come, and closes the queue at `end`.
async fn enqueue_due(
    timer: SystemTimer,
    times: impl Iterator<Item = Instant>,
    end: Instant,
    queue: Rc<DueQueue>,
) {
    let mut times = times.peekable();
    while let Some(next) = times.peek() {
        if timer.until(*next).await.is_err() {
            break;
        }
        // After a late wake-up there are several.
        let now = Instant::now();
        while let Some(due) = times.next_if(|due| *due <= now) {
            queue.push(due);
        }
    }
    // Without the timer the rest was due all the same, and was not started.
    times.for_each(|due| queue.push(due));
    let _ = timer.until(end).await;
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
    fn requests_fall_due_at_their_times_and_the_queue_closes_at_the_end() {
        let mut runtime = crate::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (queue, start) = (DueQueue::new(), Instant::now());
            let schedule = Schedule::new(start, 10_000.0);
            let end = start + Duration::from_millis(20);
            let window = Window {
                warmup_start: start,
                start,
                end,
            };
            let worker = Worker { index: 0, count: 1 };
            start_pacer(worker, schedule, window, Rc::clone(&queue)).unwrap();
            let mut taken = Vec::new();
            while let Some(due) = queue.next().await {
                assert!(due.intended <= Instant::now());
                taken.push(due.intended);
            }
            assert!(Instant::now() >= end);
            taken.extend(queue.drain_unstarted());
            let expected: Vec<_> = intended_starts(worker, schedule, end).collect();
            assert_eq!(taken, expected);
        });
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
