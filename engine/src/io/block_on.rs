//! Waits for a future on a thread that has no runtime, or must not use the one that it has: the thread parks (std's
//! `Wake`).
//!
//! A program's thread may be one of tokio, whose own blocking calls would panic there. A task of tokio has a budget, after
//! which everything of tokio is pending until the task returns, which it does not do here: so the budget does not count.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use tokio::task::unconstrained;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future`, which must not need the runtime of this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

/// Waits for `future` until `deadline`, at which it is dropped.
pub(crate) fn block_on_until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn waits_for_another_thread_also_within_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = oneshot::channel();
            let other = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                sender.send(7).unwrap();
            });
            assert_eq!(block_on(receiver), Ok(7));
            other.join().unwrap();
        });
    }

    #[test]
    fn waits_in_a_task_that_has_used_its_budget() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        runtime.block_on(async {
            while tokio::task::coop::has_budget_remaining() {
                tokio::task::coop::consume_budget().await;
            }
            let (sender, receiver) = oneshot::channel();
            sender.send(7).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            assert_eq!(block_on_until(deadline, receiver), Some(Ok(7)));
        });
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let deadline = Instant::now() + Duration::from_millis(10);
        assert!(block_on_until(deadline, std::future::pending::<()>()).is_none());
        assert!(Instant::now() >= deadline);
        assert_eq!(block_on_until(deadline, std::future::ready(7)), Some(7));
    }
}
