//! Cooperative yield, as `tokio::task::yield_now`, for monoio's run queue.
//!
//! A task of monoio that wakes itself goes to the front of the queue, and timers are checked
//! only while the queue is empty ([`super`]). So this yield lets another task do the waking,
//! and once in [`TIMER_CHECK_INTERVAL`] it waits for the timers.
//!
//! It must never make a system call, or let the runtime sleep while a task yields.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long the timers of a shard whose tasks yield may go unchecked: deadlines hold to
/// within this time.
pub(crate) const TIMER_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// One tick of monoio's timers.
const TICK: Duration = Duration::from_millis(1);

/// Tasks that a yield waits for, one after the other. monoio looks at the sockets after
/// `2 n + 1` polls of tasks, if `n` were ready when it last did. A yield with two hops takes
/// four polls, so a task that yields makes at most one step between two looks, however many
/// tasks do the same.
const HOPS: usize = 2;

thread_local! {
    /// When the timers of this thread are to be checked again.
    static NEXT_TIMER_CHECK: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What a yield waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Yielded {
    /// The tasks that were ready.
    ToTasks,
    /// All tasks, until none was ready, and the check of the timers.
    ToTimers,
}

/// Lets every task that is ready run before this one.
pub(crate) async fn yield_now() -> Yielded {
    for _ in 0..HOPS {
        // It is woken by the end of the other task, so it goes to the back of the queue.
        monoio::spawn(async {}).await;
    }
    let now = Instant::now();
    if NEXT_TIMER_CHECK.get().is_some_and(|next| now < next) {
        return Yielded::ToTasks;
    }
    // A timer that is due already. If the timers were checked within the last tick it is
    // ready at once. Otherwise it is so when they are checked next; every task that yields
    // waits for that, and the runtime does not sleep. Boxed: it has 640 bytes, and every
    // session on epoll has room for a yield.
    if let Some(due) = now.checked_sub(TICK) {
        Box::pin(monoio::time::sleep_until(due.into())).await;
    }
    NEXT_TIMER_CHECK.set(Some(Instant::now() + TIMER_CHECK_INTERVAL));
    Yielded::ToTimers
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _};
    use monoio::net::UnixStream;
    use nix::sys::resource::{UsageWho, getrusage};

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    fn on_both(test: impl AsyncFn()) {
        for driver in [IoDriver::Epoll, IoDriver::IoUring] {
            if let Err(error) = block_on(driver, test()) {
                println!("skipped {driver}: {error}");
            }
        }
    }

    #[test]
    fn every_ready_task_runs_between_two_steps_of_one_that_yields() {
        on_both(async || {
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks = (0..10).map(|number| {
                let order = Rc::clone(&order);
                monoio::spawn(async move {
                    for _ in 0..100 {
                        order.borrow_mut().push(number);
                        yield_now().await;
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await;
            }
            let order = order.borrow();
            let mut rounds = order.chunks_exact(10);
            assert!(rounds.all(|round| round.iter().copied().eq(0..10)));
        });
    }

    #[test]
    fn timers_expire_while_tasks_yield_without_end() {
        for tasks in [1, 20] {
            on_both(async || {
                let expired = Rc::new(Cell::new(false));
                let timer = Rc::clone(&expired);
                drop(monoio::spawn(async move {
                    monoio::time::sleep(2 * TIMER_CHECK_INTERVAL).await;
                    timer.set(true);
                }));
                let start = Instant::now();
                let busy = (0..tasks).map(|_| {
                    let expired = Rc::clone(&expired);
                    monoio::spawn(async move {
                        while !expired.get() {
                            let late = start.elapsed() > Duration::from_secs(10);
                            assert!(!late, "the timer never expires");
                            yield_now().await;
                        }
                    })
                });
                for task in busy.collect::<Vec<_>>() {
                    task.await;
                }
            });
        }
    }

    /// How many times this thread has slept, which is not when it was preempted.
    fn sleeps() -> i64 {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        usage.voluntary_context_switches()
    }

    #[test]
    fn the_check_of_the_timers_is_rare_and_does_not_sleep() {
        on_both(async || {
            let (start, before) = (Instant::now(), sleeps());
            let (mut yields, mut checks) = (0_i64, 0_i64);
            while start.elapsed() < 20 * TIMER_CHECK_INTERVAL {
                yields += 1;
                checks += i64::from(yield_now().await == Yielded::ToTimers);
            }
            assert!((2..=21).contains(&checks), "{checks} of {yields}");
            assert!(yields > 100 * checks, "{checks} of {yields}");
            // Waiting for the next tick would sleep nearly every time.
            let slept = sleeps() - before;
            assert!(2 * slept <= checks, "{slept} of {checks}");
        });
    }

    #[test]
    fn sockets_are_looked_at_between_two_steps() {
        on_both(async || {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let replies = Rc::new(Cell::new(0_u32));
            let seen = Rc::clone(&replies);
            drop(monoio::spawn(async move {
                while let (Ok(1), byte) = there.read(vec![0; 1]).await {
                    let _ = there.write_all(byte).await;
                }
            }));
            let session = monoio::spawn(async move {
                for _ in 0..100 {
                    let (_, byte) = here.write_all(vec![1]).await;
                    let (read, _) = here.read(byte).await;
                    assert_eq!(read.unwrap(), 1);
                    seen.set(seen.get() + 1);
                }
            });
            let mut steps = 0;
            while replies.get() < 100 {
                steps += 1;
                yield_now().await;
                assert!(steps < 100_000, "the session gets no bytes");
            }
            session.await;
            // Each look brings one of its four operations forward.
            assert!(steps <= 800, "{steps}");
        });
    }
}
