//! Offloads computation from shards to thread pools, each with a bounded FIFO queue.
//!
//! A shard may compute for about 100 µs at a time, but SCRAM's PBKDF2 takes a millisecond, and a
//! quote verification half a millisecond. A job runs on a thread of an [`OffloadPool`]. Its result is sent to
//! the mailbox of the shard, which passes it to [`PendingJobs::complete`].
//! The queue must never grow beyond its bound: a surge of clients is refused instead of
//! filling memory. A job that would wait for too long is refused when it is submitted: what the wait will be follows from
//! the number of jobs in front and the time that each takes (Little's law).

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::io::worker::Worker;

/// Jobs that may wait for each thread: about one second of PBKDF2 or of verifications.
const QUEUE_LEN: usize = 2048;
/// The duration of a job is averaged over about so many jobs (exponentially weighted).
const AVERAGED_JOBS: u64 = 16;

type Value = Box<dyn Any + Send>;

/// How a job ended.
enum JobOutcome {
    Finished(Value),
    Panicked,
}

/// The result of one job, to be sent to the shard that submitted it.
pub(crate) struct JobResult {
    id: usize,
    outcome: JobOutcome,
}

/// Sends a result to the shard that submitted the job. Called on any thread.
pub(crate) type ReplyFn = Arc<dyn Fn(JobResult) + Send + Sync>;

struct Job {
    work: Box<dyn FnOnce() -> Value + Send>,
    reply: Box<dyn FnOnce(JobOutcome) + Send>,
}

/// The sending half of a pool's queue. Every shard has a clone.
#[derive(Clone)]
pub(crate) struct OffloadPool {
    queue: SyncSender<Job>,
    load: Arc<PoolLoad>,
}

/// What a pool is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolOptions {
    /// Name of the threads.
    pub(crate) name: &'static str,
    pub(crate) threads: usize,
    /// Above 0 it gives the threads a lower weight than the shards.
    pub(crate) nice: i32,
    /// A job that would wait for longer is refused.
    pub(crate) max_wait: Duration,
}

/// How many jobs a pool has, and how fast it is.
struct PoolLoad {
    threads: usize,
    max_wait: Duration,
    /// Jobs that wait or run.
    jobs: AtomicUsize,
    /// Average duration of a job in ns, with the time in which its thread was not scheduled; 0 at first.
    job_nanos: AtomicU64,
}

impl PoolLoad {
    /// How long a job would wait that is submitted now.
    fn expected_wait(&self) -> Duration {
        let jobs = self.jobs.load(Ordering::Relaxed) / self.threads.max(1);
        let jobs = u64::try_from(jobs).unwrap_or(u64::MAX);
        Duration::from_nanos(jobs.saturating_mul(self.job_nanos.load(Ordering::Relaxed)))
    }

    /// Takes a place for a job.
    ///
    /// # Errors
    /// It would wait for too long.
    fn begin(&self) -> Result<(), JobError> {
        if self.expected_wait() > self.max_wait {
            return Err(JobError::Overloaded);
        }
        self.jobs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A job has ended after it ran for `took`.
    fn finish(&self, took: Duration) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.job_nanos.load(Ordering::Relaxed);
        let average = match before {
            0 => took,
            // Two threads may lose one of their jobs here, which changes nothing.
            before => before - before / AVERAGED_JOBS + took / AVERAGED_JOBS,
        };
        self.job_nanos.store(average, Ordering::Relaxed);
    }
}

/// Why a job has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobError {
    /// The queue is full, or the job would wait for too long.
    Overloaded,
    /// The job panicked. The thread continues with the next one.
    Panicked,
}

impl OffloadPool {
    /// Starts a pool of one thread, in which jobs may wait for as long as it takes.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn start(name: &'static str, nice: i32) -> io::Result<Self> {
        Self::start_workers(PoolOptions::single(name, nice)).map(|(pool, _)| pool)
    }

    /// Starts a pool. Its threads can be joined once all clones of the first are dropped.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn start_workers(options: PoolOptions) -> io::Result<(Self, Vec<Worker>)> {
        let threads = options.threads.max(1);
        let (queue, jobs) = sync_channel::<Job>(QUEUE_LEN.saturating_mul(threads));
        let jobs = Arc::new(Mutex::new(jobs));
        let load = Arc::new(PoolLoad {
            threads,
            max_wait: options.max_wait,
            jobs: AtomicUsize::new(0),
            job_nanos: AtomicU64::new(0),
        });
        let workers = (0..threads).map(|_| {
            let (jobs, load) = (Arc::clone(&jobs), Arc::clone(&load));
            Worker::spawn(options.name, move || {
                // Linux applies it to the calling thread only.
                let _ = rustix::process::setpriority_process(None, options.nice);
                run_jobs(&jobs, &load);
            })
        });
        let workers = workers.collect::<io::Result<Vec<_>>>()?;
        Ok((Self { queue, load }, workers))
    }

    /// Waits until every job that is queued now has completed.
    #[cfg(test)]
    pub(crate) fn finish_queue(&self) {
        let (done, all) = sync_channel(1);
        let job = Job {
            work: Box::new(|| Box::new(())),
            reply: Box::new(move |_| done.send(()).unwrap()),
        };
        self.load.begin().unwrap();
        assert!(self.queue.try_send(job).is_ok());
        all.recv().unwrap();
    }
}

impl PoolOptions {
    /// One thread, in which jobs may wait for as long as it takes.
    pub(crate) fn single(name: &'static str, nice: i32) -> Self {
        Self {
            name,
            threads: 1,
            nice,
            max_wait: Duration::MAX,
        }
    }
}

/// Runs jobs until the pool is dropped. The threads take turns to wait for one.
fn run_jobs(jobs: &Mutex<Receiver<Job>>, load: &PoolLoad) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { work, reply }) = next else {
            return;
        };
        let started = Instant::now();
        let outcome = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(value) => JobOutcome::Finished(value),
            Err(_) => JobOutcome::Panicked,
        };
        load.finish(started.elapsed());
        reply(outcome);
    }
}

enum Slot {
    Waiting(Option<Waker>),
    Completed(JobOutcome),
    /// The connection that submitted the job has ended.
    Abandoned,
}

/// A shard's table of jobs that have not completed yet.
#[derive(Clone)]
pub(crate) struct PendingJobs(Rc<Inner>);

struct Inner {
    slots: RefCell<Slab<Slot>>,
    reply: ReplyFn,
}

/// Frees the slot of a job whose connection ends first.
struct SlotGuard<'a> {
    slots: &'a RefCell<Slab<Slot>>,
    id: usize,
}

impl PendingJobs {
    /// `reply` must bring each result back to the thread that owns this table, which then
    /// calls [`Self::complete`].
    pub(crate) fn new(reply: ReplyFn) -> Self {
        Self(Rc::new(Inner {
            slots: RefCell::default(),
            reply,
        }))
    }

    /// Runs `work` on a thread of `pool` and waits for its value.
    ///
    /// # Errors
    /// [`JobError`].
    pub(crate) async fn offload<T: Send + 'static>(
        &self,
        pool: &OffloadPool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JobError> {
        self.submit(|reply| {
            let work = Box::new(move || Box::new(work()) as Value);
            pool.load.begin()?;
            pool.queue.try_send(Job { work, reply }).map_err(|error| {
                pool.load.jobs.fetch_sub(1, Ordering::Relaxed);
                match error {
                    TrySendError::Full(_) | TrySendError::Disconnected(_) => JobError::Overloaded,
                }
            })
        })
        .await
    }

    /// Gives `start` a callback that completes the job from any thread, and waits for it.
    /// The callback must be called.
    ///
    /// # Errors
    /// [`JobError::Panicked`] if the callback's value has another type: a bug.
    pub(crate) async fn request<T: Send + 'static>(
        &self,
        start: impl FnOnce(Box<dyn FnOnce(T) + Send>),
    ) -> Result<T, JobError> {
        self.submit(|reply| {
            start(Box::new(move |value| {
                reply(JobOutcome::Finished(Box::new(value)));
            }));
            Ok(())
        })
        .await
    }

    async fn submit<T: 'static>(
        &self,
        start: impl FnOnce(Box<dyn FnOnce(JobOutcome) + Send>) -> Result<(), JobError>,
    ) -> Result<T, JobError> {
        let id = self.0.slots.borrow_mut().insert(Slot::Waiting(None));
        let guard = SlotGuard {
            slots: &self.0.slots,
            id,
        };
        let reply = Arc::clone(&self.0.reply);
        let started = start(Box::new(move |outcome| reply(JobResult { id, outcome })));
        if let Err(error) = started {
            // No result will come for this slot.
            self.0.slots.borrow_mut().remove(id);
            return Err(error);
        }
        match poll_fn(|cx| guard.poll(cx.waker())).await {
            JobOutcome::Finished(value) => {
                value.downcast().map(|value| *value).map_err(|_| {
                    // `T` is the type of the value that this very call boxed.
                    debug_assert!(false, "a job returned another type");
                    JobError::Panicked
                })
            }
            JobOutcome::Panicked => Err(JobError::Panicked),
        }
    }

    /// Wakes the task that waits for this result.
    pub(crate) fn complete(&self, result: JobResult) {
        let mut slots = self.0.slots.borrow_mut();
        let Some(slot) = slots.get_mut(result.id) else {
            return;
        };
        match std::mem::replace(slot, Slot::Completed(result.outcome)) {
            Slot::Waiting(Some(waker)) => waker.wake(),
            Slot::Waiting(None) | Slot::Completed(_) => {}
            Slot::Abandoned => drop(slots.remove(result.id)),
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.slots.borrow().is_empty()
    }
}

impl SlotGuard<'_> {
    fn poll(&self, waker: &Waker) -> Poll<JobOutcome> {
        let mut slots = self.slots.borrow_mut();
        if let Some(Slot::Waiting(known)) = slots.get_mut(self.id) {
            *known = Some(waker.clone());
            return Poll::Pending;
        }
        match slots.try_remove(self.id) {
            Some(Slot::Completed(outcome)) => Poll::Ready(outcome),
            _ => Poll::Pending,
        }
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let mut slots = self.slots.borrow_mut();
        match slots.get_mut(self.id) {
            Some(Slot::Completed(_)) => drop(slots.remove(self.id)),
            Some(slot) => *slot = Slot::Abandoned,
            None => {}
        }
    }
}

#[cfg(test)]
impl PendingJobs {
    /// A table on the current monoio runtime, with a separate mailbox.
    pub(crate) fn with_mailbox() -> Self {
        let (sender, mailbox) = crate::io::mailbox::mailbox::<JobResult>().unwrap();
        let jobs = Self::new(Arc::new(move |result| sender.send(result)));
        let pending = jobs.clone();
        drop(monoio::spawn(mailbox.deliver(move |result| {
            pending.complete(result);
            true
        })));
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    /// Runs `test` on a runtime that delivers the results of an offload thread.
    fn on_a_shard<F: Future<Output = ()>>(test: impl FnOnce(PendingJobs, OffloadPool) -> F) {
        let thread = OffloadPool::start("test", 0).unwrap();
        let main = async {
            test(PendingJobs::with_mailbox(), thread).await;
        };
        block_on(IoDriver::Epoll, main).unwrap();
    }

    #[test]
    fn each_result_reaches_its_submitter() {
        on_a_shard(|jobs, thread| async move {
            let submitted =
                (0..100_u64).map(|number| jobs.offload(&thread, move || number * number));
            let values = futures_util::future::join_all(submitted).await;
            let expected = (0..100).map(|number| Ok(number * number));
            assert!(values.into_iter().eq(expected));
            assert!(jobs.is_empty());
        });
    }

    #[test]
    fn a_dropped_submitter_frees_its_slot() {
        on_a_shard(|jobs, thread| async move {
            let slow = jobs.offload(&thread, || {
                std::thread::sleep(Duration::from_millis(50));
            });
            assert!(
                monoio::time::timeout(Duration::from_millis(1), slow)
                    .await
                    .is_err()
            );
            // The queue is FIFO: this result comes after the abandoned one.
            assert_eq!(jobs.offload(&thread, || 7).await, Ok(7));
            assert!(jobs.is_empty());
        });
    }

    #[test]
    fn a_panic_fails_its_job_and_the_thread_continues() {
        on_a_shard(|jobs, thread| async move {
            let failed = jobs.offload(&thread, || -> u8 { panic!("a bug") }).await;
            assert_eq!(failed, Err(JobError::Panicked));
            assert_eq!(jobs.offload(&thread, || 7).await, Ok(7));
        });
    }

    #[test]
    fn a_full_queue_refuses_immediately() {
        on_a_shard(|jobs, thread| async move {
            let (release, held) = std::sync::mpsc::channel::<()>();
            let first = jobs.offload(&thread, move || held.recv().is_err());
            let others = (0..QUEUE_LEN + 10).map(|_| jobs.offload(&thread, || false));
            let all = futures_util::future::join(first, async {
                let results = futures_util::future::join_all(others);
                let mut results = std::pin::pin!(results);
                // The first poll submits them all; only then may the thread continue.
                assert!(futures_util::FutureExt::now_or_never(results.as_mut()).is_none());
                drop(release);
                results.await
            });
            let (first, results) = all.await;
            assert_eq!(first, Ok(true));
            let refused = results.iter().filter(|result| result.is_err()).count();
            // One more job fits if the thread has already taken the first job off the queue.
            assert!((10..=11).contains(&refused), "{refused}");
        });
    }

    /// The load of a pool that has run one job, which took `took`.
    fn load(threads: usize, took: Duration, max_wait: Duration) -> PoolLoad {
        let load = PoolLoad {
            threads,
            max_wait,
            jobs: AtomicUsize::new(0),
            job_nanos: AtomicU64::new(0),
        };
        load.begin().unwrap();
        load.finish(took);
        load
    }

    #[test]
    fn a_job_that_would_wait_for_too_long_is_refused_at_once() {
        let (took, max_wait) = (Duration::from_millis(1), Duration::from_millis(100));
        for threads in [1, 2, 8] {
            let load = load(threads, took, max_wait);
            let accepted = (0..10_000).filter(|_| load.begin().is_ok()).count();
            // One more than those that take exactly as long as a job may wait, for each thread.
            assert_eq!(accepted, 101 * threads);
            load.finish(took);
            assert!(load.begin().is_ok());
        }
    }

    #[test]
    fn a_pool_that_becomes_slower_accepts_fewer_jobs() {
        let load = load(1, Duration::from_millis(1), Duration::from_secs(1));
        for _ in 0..20 * AVERAGED_JOBS {
            load.begin().unwrap();
            load.finish(Duration::from_millis(10));
        }
        let accepted = (0..10_000).filter(|_| load.begin().is_ok()).count();
        assert!((100..=110).contains(&accepted), "{accepted}");
    }

    #[test]
    fn a_pool_runs_jobs_on_all_of_its_threads() {
        let options = PoolOptions {
            threads: 3,
            ..PoolOptions::single("test", 0)
        };
        let (pool, workers) = OffloadPool::start_workers(options).unwrap();
        assert_eq!(workers.len(), 3);
        let main = async move {
            let jobs = PendingJobs::with_mailbox();
            // None of them ends before all have begun.
            let barrier = Arc::new(std::sync::Barrier::new(3));
            let all = (0..3).map(|number| {
                let barrier = Arc::clone(&barrier);
                jobs.offload(&pool, move || {
                    barrier.wait();
                    number
                })
            });
            let done = futures_util::future::join_all(all).await;
            assert_eq!(done, [Ok(0), Ok(1), Ok(2)]);
        };
        block_on(IoDriver::Epoll, main).unwrap();
        assert!(workers.into_iter().all(|mut worker| worker.join()));
    }
}
