//! Threads with a runtime each, that prepare, begin together, and are measured
//! in one window.
//!
//! Nothing that is not part of the load falls into the window: connections are
//! made before it and closed after it, and what costs CPU is read at its edges.

use std::future::Future;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::runtime::{Runtime, within};

/// Between the last thread's readiness and the first request.
const BREATH: Duration = Duration::from_millis(20);

/// One thread's place among all.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// From 0.
    pub thread: usize,
    /// How many there are.
    pub threads: usize,
}

impl Seat {
    /// This thread's share of `all`; the shares add up.
    #[must_use]
    pub fn share(self, all: usize) -> usize {
        let more = usize::from(self.thread < all % self.threads.max(1));
        all / self.threads.max(1) + more
    }
}

/// When to work, and which part of it counts.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Work begins, and does not count yet.
    pub begin: Instant,
    /// From here on it counts.
    pub start: Instant,
    /// From here on it does not, and ends.
    pub end: Instant,
}

impl Window {
    /// Whether what ended at `instant` counts.
    #[must_use]
    pub fn counts(&self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }
}

/// How long a load takes.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Before what counts.
    pub warmup: Duration,
    /// What counts.
    pub measured: Duration,
    /// For preparing, and for the end after the window.
    pub patience: Duration,
}

impl Times {
    /// `seconds` that count, after a tenth of it, at least 0.2 s but no more than half of
    /// it, that does not.
    #[must_use]
    pub fn measuring(seconds: f64) -> Self {
        let measured = Duration::from_secs_f64(seconds);
        Self {
            warmup: (measured / 10).max(Duration::from_millis(200).min(measured / 2)),
            measured,
            patience: Duration::from_secs(60),
        }
    }
}

/// What threads do.
pub trait Work: Sync {
    /// What one thread has prepared: connections that are logged in.
    type Ready;
    /// What one thread has measured.
    type Done: Send;

    /// Makes ready, before the window.
    fn prepare(&self, seat: Seat) -> impl Future<Output = Result<Self::Ready>>;

    /// Works until the window ends.
    fn work(
        &self,
        seat: Seat,
        ready: Self::Ready,
        window: Window,
    ) -> impl Future<Output = Result<Self::Done>>;
}

/// An edge of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It begins to count.
    Start,
    /// It ends.
    End,
}

/// Runs `work` on so many threads. `edge` is called at the window's edges, on
/// the calling thread.
///
/// # Errors
/// The first failure of any thread, of `edge`, or a signal.
pub fn run<W: Work>(
    work: &W,
    threads: usize,
    times: Times,
    progress: &Progress,
    mut edge: impl FnMut(Edge) -> Result<()>,
) -> Result<Vec<W::Done>> {
    progress.done.store(0, std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        let mut members = Vec::new();
        for thread in 0..threads {
            let (go, wait) = channel();
            let (seat, tell) = (Seat { thread, threads }, tell.clone());
            members.push((
                go,
                scope.spawn(move || member(work, seat, times, &tell, &wait)),
            ));
        }
        drop(tell);
        // A thread that failed says why when it is joined.
        let ready = told.iter().take(threads).all(|ready| ready);
        let window = window(times);
        let handles: Vec<_> = members
            .into_iter()
            .map(|(go, handle)| {
                if ready {
                    let _ = go.send(window);
                }
                handle
            })
            .collect();
        let watched = match ready {
            true => watch(window, progress, &mut edge),
            false => Ok(()),
        };
        let joined = handles.into_iter().map(|handle| {
            let panicked = |_| Err(Error::Server("a load thread panicked".to_owned()));
            handle.join().unwrap_or_else(panicked)
        });
        let done = gather(joined)?;
        watched.map(|()| done)
    })
}

fn window(times: Times) -> Window {
    let begin = Instant::now() + BREATH;
    let start = begin + times.warmup;
    Window {
        begin,
        start,
        end: start + times.measured,
    }
}

/// All of them, or the reason: who was stopped because of another is not it.
fn gather<T>(outcomes: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
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

fn watch(
    window: Window,
    progress: &Progress,
    edge: &mut impl FnMut(Edge) -> Result<()>,
) -> Result<()> {
    progress.sleep_until(window.start, "warming up")?;
    edge(Edge::Start)?;
    progress.sleep_until(window.end, "measuring")?;
    edge(Edge::End)
}

fn member<W: Work>(
    work: &W,
    seat: Seat,
    times: Times,
    tell: &Sender<bool>,
    wait: &Receiver<Window>,
) -> Result<W::Done> {
    let prepared = Runtime::new().and_then(|mut runtime| {
        let prepare = within(times.patience, "connecting", work.prepare(seat));
        let ready = runtime.block_on(prepare)?;
        Ok((runtime, ready))
    });
    // Whoever listens is there as long as this thread.
    let _ = tell.send(prepared.is_ok());
    let (mut runtime, ready) = prepared?;
    let Ok(window) = wait.recv() else {
        // Its connections are closed where they were made.
        runtime.block_on(async { drop(ready) });
        return Err(Error::Stopped);
    };
    let limit = window.end.saturating_duration_since(Instant::now()) + times.patience;
    runtime.block_on(within(limit, "the load", work.work(seat, ready, window)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (all, threads) in [(0, 3), (1, 3), (10, 3), (64, 2), (5, 8)] {
            let shares = (0..threads).map(|thread| Seat { thread, threads }.share(all));
            assert_eq!(shares.sum::<usize>(), all, "{all} on {threads}");
        }
    }

    struct Fails(usize);

    impl Work for Fails {
        type Ready = ();
        type Done = usize;

        async fn prepare(&self, seat: Seat) -> Result<()> {
            match seat.thread == self.0 {
                true => Err(Error::Server("no".to_owned())),
                false => Ok(()),
            }
        }

        async fn work(&self, seat: Seat, (): (), window: Window) -> Result<usize> {
            let rest = window.end.saturating_duration_since(Instant::now());
            monoio::time::sleep(rest).await;
            Ok(seat.thread)
        }
    }

    fn times() -> Times {
        Times {
            warmup: Duration::from_millis(1),
            measured: Duration::from_millis(20),
            patience: Duration::from_secs(20),
        }
    }

    #[test]
    fn edges_come_in_order_and_all_threads_answer() {
        let mut edges = Vec::new();
        let silent = Progress::silent();
        let done = run(&Fails(9), 2, times(), &silent, |edge| {
            edges.push(edge);
            Ok(())
        });
        assert_eq!(done.unwrap(), [0, 1]);
        assert_eq!(edges, [Edge::Start, Edge::End]);
    }

    #[test]
    fn one_failure_is_everybodys_and_keeps_its_reason() {
        let outcome = run(&Fails(1), 3, times(), &Progress::silent(), |_| Ok(()));
        assert_eq!(outcome.unwrap_err().to_string(), "no");
    }
}
