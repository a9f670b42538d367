//! A fixed group of worker threads, each with its own runtime, measured in one common window.
//!
//! Workers prepare, wait at a barrier until all are ready, and start together. Only the load itself
//! may fall into the window: connections are opened before it and closed after it, and CPU clocks
//! are read at its edges.

use std::future::Future;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::runtime::{Runtime, with_timeout};

/// Delay between the last worker's readiness and the first request.
const START_DELAY: Duration = Duration::from_millis(20);

/// The index of a worker within its group.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    /// Starts at 0.
    pub index: usize,
    /// Number of workers in the group.
    pub count: usize,
}

impl Worker {
    /// Returns this worker's share of `all`. The shares of all workers add up to `all`.
    #[must_use]
    pub fn share(self, all: usize) -> usize {
        let extra = usize::from(self.index < all % self.count.max(1));
        all / self.count.max(1) + extra
    }
}

/// The time to work, and the part of it that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Work starts. Not measured yet.
    pub warmup_start: Instant,
    /// The measurement starts.
    pub start: Instant,
    /// The measurement and the work end.
    pub end: Instant,
}

impl Window {
    /// Returns whether work that finished at `instant` is measured.
    #[must_use]
    pub fn counts(&self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }
}

/// Durations of a load.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Work before the measurement starts.
    pub warmup: Duration,
    /// Length of the measurement.
    pub measured: Duration,
    /// Limit for the preparation, and for finishing after the window.
    pub timeout: Duration,
}

impl Timing {
    /// Measures for `seconds`, after a warm-up of a tenth of that: at least 0.2 s, but at most half
    /// of `seconds`.
    #[must_use]
    pub fn measuring(seconds: f64) -> Self {
        let measured = Duration::from_secs_f64(seconds);
        Self {
            warmup: (measured / 10).max(Duration::from_millis(200).min(measured / 2)),
            measured,
            timeout: Duration::from_secs(60),
        }
    }
}

/// What each worker of a group does.
pub trait Workload: Sync {
    /// What one worker has prepared, e.g. connections that are logged in.
    type Ready;
    /// What one worker has measured.
    type Done: Send;

    /// Prepares one worker, before the window.
    fn prepare(&self, worker: Worker) -> impl Future<Output = Result<Self::Ready>>;

    /// Works until the window ends.
    fn work(
        &self,
        worker: Worker,
        ready: Self::Ready,
        window: Window,
    ) -> impl Future<Output = Result<Self::Done>>;
}

/// An edge of the measurement window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The measurement starts.
    Start,
    /// The measurement ends.
    End,
}

/// Runs `work` on `threads` workers. Calls `edge` at both edges of the window, on the calling
/// thread.
///
/// # Errors
/// The first failure of any worker or of `edge`, or [`Error::Stopped`] after a signal.
pub fn run<W: Workload>(
    work: &W,
    threads: usize,
    timing: Timing,
    progress: &Progress,
    mut edge: impl FnMut(Edge) -> Result<()>,
) -> Result<Vec<W::Done>> {
    progress.done.store(0, std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (ready_tx, ready_rx) = channel();
        let mut workers = Vec::new();
        for thread in 0..threads {
            let (start_tx, start_rx) = channel();
            let (worker, ready_tx) = (
                Worker {
                    index: thread,
                    count: threads,
                },
                ready_tx.clone(),
            );
            workers.push((
                start_tx,
                scope.spawn(move || run_worker(work, worker, timing, &ready_tx, &start_rx)),
            ));
        }
        drop(ready_tx);
        // A failed worker returns its error when it is joined.
        let ready = ready_rx.iter().take(threads).all(|ready| ready);
        let window = window(timing);
        let handles: Vec<_> = workers
            .into_iter()
            .map(|(start_tx, handle)| {
                if ready {
                    let _ = start_tx.send(window);
                }
                handle
            })
            .collect();
        let watched = match ready {
            true => watch_window(window, progress, &mut edge),
            false => Ok(()),
        };
        let joined = handles.into_iter().map(|handle| {
            let panicked = |_| Err(Error::Server("a worker thread panicked".to_owned()));
            handle.join().unwrap_or_else(panicked)
        });
        let done = collect_results(joined)?;
        watched.map(|()| done)
    })
}

fn window(timing: Timing) -> Window {
    let warmup_start = Instant::now() + START_DELAY;
    let start = warmup_start + timing.warmup;
    Window {
        warmup_start,
        start,
        end: start + timing.measured,
    }
}

/// Returns all results, or the error that caused the failure: workers that were only stopped
/// because another one failed return [`Error::Stopped`], which is replaced by the cause.
fn collect_results<T>(outcomes: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let (mut done, mut reason) = (Vec::new(), None);
    for outcome in outcomes {
        match (outcome, &reason) {
            (Ok(one), _) => done.push(one),
            (Err(error), None | Some(Error::Stopped)) => reason = Some(error),
            (Err(_), Some(_)) => {}
        }
    }
    reason.map_or(Ok(done), Err)
}

fn watch_window(
    window: Window,
    progress: &Progress,
    edge: &mut impl FnMut(Edge) -> Result<()>,
) -> Result<()> {
    progress.sleep_until(window.start, "warming up")?;
    edge(Edge::Start)?;
    progress.sleep_until(window.end, "measuring")?;
    edge(Edge::End)
}

fn run_worker<W: Workload>(
    work: &W,
    worker: Worker,
    timing: Timing,
    ready_tx: &Sender<bool>,
    start_rx: &Receiver<Window>,
) -> Result<W::Done> {
    let prepared = Runtime::new().and_then(|mut runtime| {
        let prepare = with_timeout(timing.timeout, "connecting", work.prepare(worker));
        let ready = runtime.block_on(prepare)?;
        Ok((runtime, ready))
    });
    // The receiver lives until all workers have returned.
    let _ = ready_tx.send(prepared.is_ok());
    let (mut runtime, ready) = prepared?;
    let Ok(window) = start_rx.recv() else {
        // Connections must be dropped on the runtime that created them.
        runtime.block_on(async { drop(ready) });
        return Err(Error::Stopped);
    };
    let limit = window.end.saturating_duration_since(Instant::now()) + timing.timeout;
    runtime.block_on(with_timeout(
        limit,
        "the load after the window",
        work.work(worker, ready, window),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_shares_add_up_to_the_total() {
        for (all, threads) in [(0, 3), (1, 3), (10, 3), (64, 2), (5, 8)] {
            let shares = (0..threads).map(|thread| {
                Worker {
                    index: thread,
                    count: threads,
                }
                .share(all)
            });
            assert_eq!(shares.sum::<usize>(), all, "{all} on {threads}");
        }
    }

    struct FailingWorkload(usize);

    impl Workload for FailingWorkload {
        type Ready = ();
        type Done = usize;

        async fn prepare(&self, worker: Worker) -> Result<()> {
            match worker.index == self.0 {
                true => Err(Error::Server("no".to_owned())),
                false => Ok(()),
            }
        }

        async fn work(&self, worker: Worker, (): (), window: Window) -> Result<usize> {
            let rest = window.end.saturating_duration_since(Instant::now());
            monoio::time::sleep(rest).await;
            Ok(worker.index)
        }
    }

    fn timing() -> Timing {
        Timing {
            warmup: Duration::from_millis(1),
            measured: Duration::from_millis(20),
            timeout: Duration::from_secs(20),
        }
    }

    #[test]
    fn window_edges_are_in_order_and_every_worker_returns() {
        let mut edges = Vec::new();
        let silent = Progress::silent();
        let done = run(&FailingWorkload(9), 2, timing(), &silent, |edge| {
            edges.push(edge);
            Ok(())
        });
        assert_eq!(done.unwrap(), [0, 1]);
        assert_eq!(edges, [Edge::Start, Edge::End]);
    }

    #[test]
    fn a_failed_worker_stops_the_others_and_its_error_is_returned() {
        let outcome = run(
            &FailingWorkload(1),
            3,
            timing(),
            &Progress::silent(),
            |_| Ok(()),
        );
        assert_eq!(outcome.unwrap_err().to_string(), "no");
    }
}
