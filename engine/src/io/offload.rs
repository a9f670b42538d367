//! Work that is too long for a shard, done on a thread of its own.
//!
//! A shard's turn is at most about 100 µs; SCRAM's PBKDF2 takes a millisecond.
//! The queue is bounded: a crowd that asks for more waits outside, not in
//! memory.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::{Poll, Waker};

use slab::Slab;

/// Jobs that may wait: about a second's worth of PBKDF2 or of verifications.
const QUEUE: usize = 2048;

type Work = Box<dyn FnOnce() -> Answer + Send>;
type Answer = Box<dyn Any + Send>;

/// A job's result, on its way back to the shard that asked.
pub(crate) struct Done {
    ticket: usize,
    answer: Answer,
}

struct Job {
    work: Work,
    reply: Box<dyn FnOnce(Answer) + Send>,
}

/// The worker thread's door; cloned into every shard.
#[derive(Clone)]
pub(crate) struct Worker(SyncSender<Job>);

/// The queue is full, or the job failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overloaded;

impl Worker {
    /// Starts the thread. `nice` above 0 lets the shards go first where cores
    /// are short.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(name: &str, nice: i32) -> io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // On Linux "this process" is this thread only.
                let _ = rustix::process::setpriority_process(None, nice);
                for Job { work, reply } in jobs {
                    // A job that panics is answered with the wrong type, which
                    // its asker takes for a refusal; the thread goes on.
                    let answer = catch_unwind(AssertUnwindSafe(work));
                    reply(answer.unwrap_or_else(|_| Box::new(())));
                }
            })?;
        Ok(Self(queue))
    }

    /// Waits until every job that is queued now has been answered.
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
    Answered(Answer),
    /// The asking connection ended first.
    Abandoned,
}

/// A shard's side: who waits for which ticket.
#[derive(Clone, Default)]
pub(crate) struct Tickets(Rc<RefCell<Slab<Slot>>>);

/// Gives a ticket up when its connection ends first.
struct Ticket<'a> {
    tickets: &'a Tickets,
    number: usize,
}

impl Tickets {
    /// Runs `work` on the worker and waits for its answer.
    ///
    /// # Errors
    /// [`Overloaded`] when the queue is full, or the job failed.
    pub(crate) async fn offload<T: Send + 'static>(
        &self,
        worker: &Worker,
        reply: impl FnOnce(Done) + Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        self.await_answer(reply, |reply| {
            let work = Box::new(move || Box::new(work()) as Answer);
            worker
                .0
                .try_send(Job { work, reply })
                .map_err(|error| match error {
                    TrySendError::Full(_) | TrySendError::Disconnected(_) => Overloaded,
                })
        })
        .await
    }

    /// Hands `submit` a way to answer from any thread, and waits for that.
    ///
    /// # Errors
    /// What `submit` says.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        reply: impl FnOnce(Done) + Send + 'static,
        submit: impl FnOnce(Box<dyn FnOnce(T) + Send>) -> Result<(), Overloaded>,
    ) -> Result<T, Overloaded> {
        self.await_answer(reply, |reply| {
            submit(Box::new(move |answer| reply(Box::new(answer))))
        })
        .await
    }

    async fn await_answer<T: 'static>(
        &self,
        reply: impl FnOnce(Done) + Send + 'static,
        submit: impl FnOnce(Box<dyn FnOnce(Answer) + Send>) -> Result<(), Overloaded>,
    ) -> Result<T, Overloaded> {
        let number = self.0.borrow_mut().insert(Slot::Waiting(None));
        let ticket = Ticket {
            tickets: self,
            number,
        };
        let submitted = submit(Box::new(move |answer| {
            reply(Done {
                ticket: number,
                answer,
            });
        }));
        if let Err(overloaded) = submitted {
            // No answer will come for this number.
            self.0.borrow_mut().remove(number);
            return Err(overloaded);
        }
        poll_fn(|cx| ticket.poll(cx.waker()))
            .await
            .downcast()
            .map(|answer| *answer)
            .map_err(|_| Overloaded)
    }

    /// Takes an answer from the mailbox to whoever waits for it.
    pub(crate) fn answer(&self, done: Done) {
        let mut slots = self.0.borrow_mut();
        let Some(slot) = slots.get_mut(done.ticket) else {
            return;
        };
        match std::mem::replace(slot, Slot::Answered(done.answer)) {
            Slot::Waiting(Some(waker)) => waker.wake(),
            Slot::Waiting(None) | Slot::Answered(_) => {}
            Slot::Abandoned => drop(slots.remove(done.ticket)),
        }
    }
}

impl Ticket<'_> {
    fn poll(&self, waker: &Waker) -> Poll<Answer> {
        let mut slots = self.tickets.0.borrow_mut();
        if let Some(Slot::Waiting(known)) = slots.get_mut(self.number) {
            *known = Some(waker.clone());
            return Poll::Pending;
        }
        match slots.try_remove(self.number) {
            Some(Slot::Answered(answer)) => Poll::Ready(answer),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut slots = self.tickets.0.borrow_mut();
        match slots.get_mut(self.number) {
            Some(Slot::Answered(_)) => drop(slots.remove(self.number)),
            Some(slot) => *slot = Slot::Abandoned,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::io::driver::{Driver, block_on};
    use crate::io::mailbox::mailbox;

    /// Runs `test` beside a mailbox that delivers the worker's answers.
    fn on_a_shard<F: Future<Output = ()>>(
        test: impl FnOnce(Tickets, Worker, Rc<dyn Fn() -> Box<dyn Fn(Done) + Send>>) -> F,
    ) {
        let (sender, mailbox) = mailbox::<Done>().unwrap();
        let worker = Worker::start("test", 0).unwrap();
        let main = async {
            let tickets = Tickets::default();
            let post = tickets.clone();
            monoio::spawn(mailbox.deliver(move |done| {
                post.answer(done);
                true
            }));
            let reply: Rc<dyn Fn() -> Box<dyn Fn(Done) + Send>> = Rc::new(move || {
                let sender = sender.clone();
                Box::new(move |done| sender.send(done))
            });
            test(tickets, worker, reply).await;
        };
        block_on(Driver::Epoll, main).unwrap();
    }

    #[test]
    fn answers_find_their_askers() {
        on_a_shard(|tickets, worker, reply| async move {
            let asked = (0..100_u64)
                .map(|number| tickets.offload(&worker, reply(), move || number * number));
            let answers = futures_util::future::join_all(asked).await;
            let expected = (0..100).map(|number| Ok(number * number));
            assert!(answers.into_iter().eq(expected));
            assert!(tickets.0.borrow().is_empty());
        });
    }

    #[test]
    fn an_asker_that_left_leaves_nothing_behind() {
        on_a_shard(|tickets, worker, reply| async move {
            let slow = tickets.offload(&worker, reply(), || {
                std::thread::sleep(Duration::from_millis(50));
            });
            assert!(
                monoio::time::timeout(Duration::from_millis(1), slow)
                    .await
                    .is_err()
            );
            // The worker is one thread: this answer comes behind the other.
            assert_eq!(tickets.offload(&worker, reply(), || 7).await, Ok(7));
            assert!(tickets.0.borrow().is_empty());
        });
    }

    #[test]
    fn a_job_that_panics_is_a_refusal_and_the_worker_lives() {
        on_a_shard(|tickets, worker, reply| async move {
            let failed = tickets
                .offload(&worker, reply(), || -> u8 { panic!("a bug") })
                .await;
            assert_eq!(failed, Err(Overloaded));
            assert_eq!(tickets.offload(&worker, reply(), || 7).await, Ok(7));
        });
    }

    #[test]
    fn a_full_queue_refuses_at_once() {
        on_a_shard(|tickets, worker, reply| async move {
            let (release, held) = std::sync::mpsc::channel::<()>();
            let first = tickets.offload(&worker, reply(), move || held.recv().is_err());
            let crowd = (0..QUEUE + 10).map(|_| tickets.offload(&worker, reply(), || false));
            let all = futures_util::future::join(first, async {
                let answers = futures_util::future::join_all(crowd);
                let mut answers = std::pin::pin!(answers);
                // One look starts them all; only then may the worker go on.
                assert!(futures_util::FutureExt::now_or_never(answers.as_mut()).is_none());
                drop(release);
                answers.await
            });
            let (first, answers) = all.await;
            assert_eq!(first, Ok(true));
            let refused = answers.iter().filter(|answer| answer.is_err()).count();
            // One more fits where the worker has taken the first off already.
            assert!((10..=11).contains(&refused), "{refused}");
        });
    }
}
