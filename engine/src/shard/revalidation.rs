//! Sessions judged again: policy or collateral has changed since they were let in.

use std::rc::Rc;
use std::time::{Duration, Instant};

use attest::Denial;
use attest::denial::Fault;
use futures_util::FutureExt as _;

use crate::session::control::{ConnectionControl, TerminateReason};
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;

/// Sessions that are judged in one turn of the loop, and how long the others then have:
/// an answer from the cache waits for nothing.
const AT_ONCE: usize = 32;
const NEXT: Duration = Duration::from_millis(1);
/// When those are judged that the verify thread had no room for.
const AGAIN: Duration = Duration::from_secs(1);

/// What has been found out of sessions.
struct Found<T> {
    /// Their clients would be refused now, and why.
    refused: Vec<(T, Denial)>,
    /// The verify thread had no room for them.
    undecided: Vec<T>,
}

impl<S: ConnectionHandler> Shard<S> {
    /// Ends the sessions of clients that would not be let in any more. What is our own
    /// fault, such as a PCCS that is down, ends nobody's session.
    pub(super) async fn revalidate(self: Rc<Self>) {
        let begun = Instant::now();
        let number = self.revalidations.get().wrapping_add(1);
        self.revalidations.set(number);
        let mut sessions = self.controls();
        loop {
            let found = judge(sessions, async |control: &Rc<ConnectionControl>| {
                // Of a session that has ended, nobody else has it.
                match control.peer().filter(|_| Rc::strong_count(control) > 1) {
                    Some(peer) => self.handler.context().gate.still_admits(peer.chain()).await,
                    None => Ok(()),
                }
            })
            .await;
            if !found.refused.is_empty() {
                let left = self.timeouts.revocation.saturating_sub(begun.elapsed());
                drop(monoio::spawn(Rc::clone(&self).revoke(found.refused, left)));
            }
            if found.undecided.is_empty() {
                return;
            }
            monoio::time::sleep(AGAIN).await;
            if self.revalidations.get() != number {
                // A newer one looks at all of them.
                return;
            }
            sessions = found.undecided;
        }
    }

    /// Ends sessions after `grace`, but for those that a newer policy or collateral has
    /// let in again: their verdict is remembered, and nothing is waited for.
    async fn revoke(
        self: Rc<Self>,
        refused: Vec<(Rc<ConnectionControl>, Denial)>,
        grace: Duration,
    ) {
        tracing::warn!(
            sessions = refused.len(),
            ?grace,
            "clients lost their admission"
        );
        monoio::time::sleep(grace).await;
        for (count, (control, denial)) in (1..).zip(refused) {
            give_way_after(count).await;
            let gate = &self.handler.context().gate;
            let admitted = control
                .peer()
                .and_then(|peer| gate.still_admits(peer.chain()).now_or_never());
            if !matches!(admitted, Some(Ok(()))) {
                control.terminate(TerminateReason::Denied(denial.code()));
            }
        }
    }
}

async fn give_way_after(count: usize) {
    if count.is_multiple_of(AT_ONCE) {
        monoio::time::sleep(NEXT).await;
    }
}

async fn judge<T>(
    sessions: Vec<T>,
    still_admits: impl AsyncFn(&T) -> Result<(), Denial>,
) -> Found<T> {
    let (mut refused, mut undecided) = (Vec::new(), Vec::new());
    for (count, session) in (1..).zip(sessions) {
        give_way_after(count).await;
        match still_admits(&session).await {
            Err(Denial::Overloaded) => undecided.push(session),
            Err(denial) if denial.fault() != Fault::Ours => refused.push((session, denial)),
            Ok(()) | Err(_) => {}
        }
    }
    Found { refused, undecided }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    #[test]
    fn who_is_not_judged_for_want_of_room_is_not_forgotten() {
        block_on(IoDriver::Epoll, async {
            let found = judge((0..100).collect(), async |session: &u32| {
                match session % 4 {
                    0 => Err(Denial::Overloaded),
                    1 => Err(Denial::DebugTd),
                    2 => Err(Denial::CollateralUnavailable),
                    _ => Ok(()),
                }
            })
            .await;
            let refused = found.refused.iter().map(|(session, _)| *session);
            assert!(refused.eq((1..100).step_by(4)));
            assert!(found.undecided.into_iter().eq((0..100).step_by(4)));
        })
        .unwrap();
    }

    #[test]
    fn others_have_their_turn_while_many_are_judged() {
        block_on(IoDriver::Epoll, async {
            let many = (0..2 * AT_ONCE).collect();
            let judging = judge(many, async |_: &usize| Ok(()));
            assert!(judging.now_or_never().is_none());
        })
        .unwrap();
    }
}
