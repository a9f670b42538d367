//! A session's turn, where nothing else bounds it.
//!
//! On epoll a stream whose sockets are always ready waits for nothing: it would keep its
//! shard, timers and mailbox included, for as long as that lasts. On io_uring each write
//! waits for its completion.

use crate::io::offload::PendingJobs;

/// What a session may move before the others of its shard have their turn, in bytes: some
/// 100 µs of sealing or opening.
const MOST: usize = 256 * 1024;
/// A read and a write cost as much as so many bytes, however few they bring.
const CALLS: usize = 16 * 1024;

/// A shard's.
pub(crate) struct Turns {
    jobs: PendingJobs,
}

impl Turns {
    pub(crate) fn new(jobs: PendingJobs) -> Self {
        Self { jobs }
    }

    /// Lets everything else that is ready go first, and the timers be looked at. By way of
    /// the shard's own mailbox: monoio 0.2.4 puts a task that wakes itself in front of all
    /// others, and looks at sockets and timers when none is ready.
    async fn give_way(&self) {
        let _ = self.jobs.request(|done| done(())).await;
    }
}

/// One direction's turn.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    /// Bytes moved without a wait, and their calls.
    moved: usize,
}

impl<'a> Turn<'a> {
    /// `None` on io_uring.
    pub(crate) fn new(turns: &'a Turns) -> Option<Self> {
        monoio::utils::is_legacy().then_some(Self { turns, moved: 0 })
    }

    /// Gives way, if the turn is over.
    pub(crate) async fn go_on(&mut self) {
        if self.moved >= MOST {
            self.moved = 0;
            self.turns.give_way().await;
        }
    }

    /// A read brought `n` bytes, and has `waited` for them or not.
    pub(crate) fn saw(&mut self, n: usize, waited: bool) {
        let before = if waited { 0 } else { self.moved };
        self.moved = before.saturating_add(n + CALLS);
    }
}

#[cfg(test)]
impl Turns {
    /// With the mailbox of a shard, in a task of its own.
    pub(crate) fn of_a_shard() -> Self {
        Self::new(PendingJobs::with_mailbox())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    fn on_epoll(test: impl AsyncFn(&Turns)) {
        block_on(IoDriver::Epoll, async {
            test(&Turns::of_a_shard()).await;
        })
        .unwrap();
    }

    #[test]
    fn others_and_their_timers_go_first() {
        on_epoll(async |turns| {
            let slept = Rc::new(Cell::new(false));
            let sleeper = Rc::clone(&slept);
            drop(monoio::spawn(async move {
                monoio::time::sleep(std::time::Duration::from_millis(2)).await;
                sleeper.set(true);
            }));
            let mut turn = Turn::new(turns).unwrap();
            let (mut looks, mut gave_way) = (0_u64, 0_u64);
            while !slept.get() {
                looks += 1;
                assert!(looks < 1_000_000, "no timer is looked at");
                turn.saw(MOST / 4, false);
                let mut on = std::pin::pin!(turn.go_on());
                if on.as_mut().now_or_never().is_none() {
                    gave_way += 1;
                    on.await;
                }
            }
            // With the calls of a read four are one turn.
            assert_eq!(looks, 4 * gave_way);
        });
    }

    #[test]
    fn who_waits_begins_anew() {
        on_epoll(async |turns| {
            let mut turn = Turn::new(turns).unwrap();
            for _ in 0..100 {
                turn.saw(MOST - CALLS - 1, true);
                assert!(turn.go_on().now_or_never().is_some());
            }
            turn.saw(1, false);
            assert!(turn.go_on().now_or_never().is_none());
        });
    }
}
