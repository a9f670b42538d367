//! Offloads computation from shards to dedicated threads, each with a bounded FIFO queue.
//!
//! A shard may compute for about 100 µs at a time, but SCRAM's PBKDF2 takes a millisecond, and a
//! quote verification half a millisecond. A job runs on an [`OffloadThread`]. Its result is sent to
//! the mailbox of the shard, which passes it to [`PendingJobs::complete`].
//! The queue must never grow beyond its bound: a surge of clients is refused instead of
//! filling memory.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::{Poll, Waker};

use slab::Slab;

use crate::io::worker::Worker;

/// Jobs that may wait: about one second of PBKDF2 or of verifications.
const QUEUE_LEN: usize = 2048;

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

/// The sending half of an offload thread's queue. Every shard has a clone.
#[derive(Clone)]
pub(crate) struct OffloadThread(SyncSender<Job>);

/// Why a job has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobError {
    /// The queue is full.
    Overloaded,
    /// The job panicked. The thread continues with the next one.
    Panicked,
}

impl OffloadThread {
    /// Starts the thread. A `nice` above 0 gives it a lower weight than the shards.
    ///
    /// # Errors
    /// The system cannot create another thread.
    pub(crate) fn start(name: &str, nice: i32) -> io::Result<Self> {
        Self::start_worker(name, nice).map(|(thread, _)| thread)
    }

    /// As [`Self::start`]. The thread can be joined once all clones of the first are dropped.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn start_worker(name: &str, nice: i32) -> io::Result<(Self, Worker)> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_LEN);
        let worker = Worker::spawn(name, move || {
            // Linux applies it to the calling thread only.
            let _ = rustix::process::setpriority_process(None, nice);
            for Job { work, reply } in jobs {
                reply(match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(value) => JobOutcome::Finished(value),
                    Err(_) => JobOutcome::Panicked,
                });
            }
        })?;
        Ok((Self(queue), worker))
    }

    /// Waits until every job that is queued now has completed.
    #[cfg(test)]
    pub(crate) fn finish_queue(&self) {
        let (done, all) = sync_channel(1);
        let job = Job {
            work: Box::new(|| Box::new(())),
            reply: Box::new(move |_| done.send(()).unwrap()),
        };
        assert!(self.0.try_send(job).is_ok());
        all.recv().unwrap();
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

    /// Runs `work` on `thread` and waits for its value.
    ///
    /// # Errors
    /// [`JobError`].
    pub(crate) async fn offload<T: Send + 'static>(
        &self,
        thread: &OffloadThread,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JobError> {
        self.submit(|reply| {
            let work = Box::new(move || Box::new(work()) as Value);
            thread
                .0
                .try_send(Job { work, reply })
                .map_err(|error| match error {
                    TrySendError::Full(_) | TrySendError::Disconnected(_) => JobError::Overloaded,
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
    use std::time::Duration;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    /// Runs `test` on a runtime that delivers the results of an offload thread.
    fn on_a_shard<F: Future<Output = ()>>(test: impl FnOnce(PendingJobs, OffloadThread) -> F) {
        let thread = OffloadThread::start("test", 0).unwrap();
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
}
