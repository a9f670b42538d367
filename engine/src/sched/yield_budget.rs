//! Cooperative yield budget for streaming sessions on epoll, as tokio's coop budget.
//!
//! On epoll a stream whose sockets are always ready never waits: it would keep its shard,
//! including timers and mailbox, for as long as that lasts. On io_uring each write waits for
//! its completion, and no budget is needed.

use crate::sched::yield_now::yield_now;

/// Bytes that a session may move before the others of its shard run: sealing or opening them
/// takes about 100 µs.
const BUDGET_BYTES: usize = 256 * 1024;
/// A read and its write cost as much as handling this many bytes, however few they move.
const SYSCALL_COST: usize = 16 * 1024;

/// The budget of one direction of a session.
pub(crate) struct YieldBudget {
    /// Bytes moved without a wait, and the cost of their system calls.
    used: usize,
}

impl YieldBudget {
    /// `None` on io_uring.
    pub(crate) fn new() -> Option<Self> {
        monoio::utils::is_legacy().then_some(Self { used: 0 })
    }

    /// Yields to the other tasks of the shard if the budget is used up, and renews it.
    pub(crate) async fn yield_if_exhausted(&mut self) {
        if self.used >= BUDGET_BYTES {
            self.used = 0;
            yield_now().await;
        }
    }

    /// Records a read of `n` bytes. One that `waited` has let the others run.
    pub(crate) fn consume(&mut self, n: usize, waited: bool) {
        let before = if waited { 0 } else { self.used };
        self.used = before.saturating_add(n + SYSCALL_COST);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    #[test]
    fn other_tasks_and_timers_run_when_the_budget_is_exhausted() {
        block_on(IoDriver::Epoll, async {
            let expired = Rc::new(Cell::new(false));
            let timer = Rc::clone(&expired);
            drop(monoio::spawn(async move {
                monoio::time::sleep(std::time::Duration::from_millis(2)).await;
                timer.set(true);
            }));
            let mut budget = YieldBudget::new().unwrap();
            let (mut reads, mut yields) = (0_u64, 0_u64);
            while !expired.get() {
                reads += 1;
                assert!(reads < 10_000_000, "the timers are not checked");
                budget.consume(BUDGET_BYTES / 4, false);
                let mut next = std::pin::pin!(budget.yield_if_exhausted());
                if next.as_mut().now_or_never().is_none() {
                    yields += 1;
                    next.await;
                }
            }
            // With the cost of the calls, four reads use up the budget.
            assert_eq!(reads, 4 * yields);
        })
        .unwrap();
    }

    #[test]
    fn a_wait_renews_the_budget() {
        block_on(IoDriver::Epoll, async {
            let mut budget = YieldBudget::new().unwrap();
            for _ in 0..100 {
                budget.consume(BUDGET_BYTES - SYSCALL_COST - 1, true);
                assert!(budget.yield_if_exhausted().now_or_never().is_some());
            }
            budget.consume(1, false);
            assert!(budget.yield_if_exhausted().now_or_never().is_none());
        })
        .unwrap();
    }
}
