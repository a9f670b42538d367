//! Revalidation of established sessions after a change of policy or collateral.
//!
//! A session lives while policy, TCB and revocation data say so. One whose client would be refused now ends
//! after a grace period. The end of a certificate does not end a session: it has done its part in the
//! handshake. Nor does a failure on our side, such as a PCCS that is down, until the collateral has been
//! invalid for longer than `collateral_grace`: after that, no data says that the platform is not revoked.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::denial::Fault;
use attest::{AttestedPeer, Denial};
use futures_util::FutureExt as _;

use crate::attestation::gate::Gate;
use crate::io::clock::unix_now;
use crate::sched::yield_now::yield_now;
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;
use crate::telemetry::close_reason::Revocation;

/// Sessions that are checked before the other tasks of the shard run: a verdict from the cache
/// waits for nothing.
const BATCH: usize = 32;
/// When sessions are checked again for which the verification thread's queue was full.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// How often sessions are looked at whose collateral may have expired.
const MIN_COLLATERAL_CHECK: Duration = Duration::from_secs(1);
const MAX_COLLATERAL_CHECK: Duration = Duration::from_secs(60);

/// The sessions that are not admitted any more, or not checked yet.
struct Checked<T> {
    /// Sessions that may not continue, and why.
    refused: Vec<(T, Refusal)>,
    /// Sessions for which the verification thread's queue was full.
    undecided: Vec<T>,
}

/// Why a session may not continue.
enum Refusal {
    Denied(Denial),
    /// The peer is admitted, and its policy entry does not grant what the session has.
    NotGranted,
}

impl Refusal {
    fn revocation(&self) -> Revocation {
        match self {
            Self::Denied(denial) => Revocation {
                code: denial.code(),
                peer_code: denial.peer_code(),
            },
            Self::NotGranted => Revocation::NOT_GRANTED,
        }
    }
}

/// The verdict on a session: that on its peer, and what the peer's policy entry grants by now.
fn check_session(
    control: &ConnectionControl,
    gate: &Gate,
    verdict: Result<Option<Arc<AttestedPeer>>, Denial>,
) -> Result<(), Refusal> {
    let peer = verdict.map_err(Refusal::Denied)?;
    if let Some(peer) = &peer {
        control.with_entry_permit(|permit| gate.move_session(peer, permit));
    }
    control.set_peer(peer);
    control.check_grants().map_err(|_| Refusal::NotGranted)
}

impl<S: ConnectionHandler> Shard<S> {
    /// Checks every session, and ends those of clients that would be refused now.
    pub(super) async fn revalidate(self: Rc<Self>) {
        let start = Instant::now();
        let number = self.revalidations.get().wrapping_add(1);
        self.revalidations.set(number);
        let mut sessions = self.controls();
        loop {
            let checked = check(sessions, async |control: &Rc<ConnectionControl>| {
                // If ours is the only reference, the session has ended.
                match control.peer().filter(|_| Rc::strong_count(control) > 1) {
                    Some(peer) => {
                        let gate = self.handler.context().gate_of(control);
                        let admitted_at = control.attested_at();
                        let verdict = gate.still_admits(&peer, admitted_at).await;
                        check_session(control, gate, verdict)
                    }
                    None => Ok(()),
                }
            })
            .await;
            if !checked.refused.is_empty() {
                let left = self.timeouts.revocation.saturating_sub(start.elapsed());
                let revoke = Rc::clone(&self).revoke(checked.refused, left);
                self.background.spawn(revoke);
            }
            if checked.undecided.is_empty() {
                return;
            }
            monoio::time::sleep(OVERLOAD_RETRY).await;
            if self.revalidations.get() != number {
                // A newer revalidation checks all sessions.
                return;
            }
            sessions = checked.undecided;
        }
    }

    /// Ends sessions after `grace`, except those that a newer policy or collateral admits
    /// again: that verdict is in the cache, unless the certificate has expired.
    async fn revoke(
        self: Rc<Self>,
        refused: Vec<(Rc<ConnectionControl>, Refusal)>,
        grace: Duration,
    ) {
        tracing::warn!(
            sessions = refused.len(),
            ?grace,
            "sessions no longer admitted, closing them after the grace period"
        );
        monoio::time::sleep(grace).await;
        for (count, (control, refusal)) in (1..).zip(refused) {
            yield_after_batch(count).await;
            let gate = self.handler.context().gate_of(&control);
            let admitted = match control.peer() {
                // Only the verdict on a certificate that has expired is not in the cache.
                Some(peer) if peer.valid_until() < unix_now() => {
                    let admitted_at = control.attested_at();
                    Some(gate.still_admits(&peer, admitted_at).await)
                }
                Some(peer) => gate.still_admits(&peer, unix_now()).now_or_never(),
                None => None,
            };
            let admitted = admitted.map(|verdict| check_session(&control, gate, verdict));
            if !matches!(admitted, Some(Ok(()))) {
                control.terminate(TerminateReason::Denied(refusal.revocation()));
            }
        }
    }
}

impl<S: ConnectionHandler> Shard<S> {
    /// Ends the sessions of platforms whose collateral has been invalid for longer than `grace`, until the shard
    /// ends.
    pub(super) async fn watch_collateral(&self, grace: Duration) {
        let interval = (grace / 4).clamp(MIN_COLLATERAL_CHECK, MAX_COLLATERAL_CHECK);
        loop {
            monoio::time::sleep(interval).await;
            let now = unix_now();
            let mut ended = 0;
            for (count, control) in (1..).zip(self.controls()) {
                yield_after_batch(count).await;
                let gate = self.handler.context().gate_of(&control);
                let peer = control.peer();
                if peer.is_some_and(|peer| gate.collateral_ended(&peer, now, grace)) {
                    control.terminate(TerminateReason::Denied(Revocation::COLLATERAL_EXPIRED));
                    ended += 1;
                }
            }
            if ended > 0 {
                tracing::warn!(
                    sessions = ended,
                    ?grace,
                    "collateral has expired and the grace period is over, sessions closed"
                );
            }
        }
    }
}

async fn yield_after_batch(count: usize) {
    if count.is_multiple_of(BATCH) {
        yield_now().await;
    }
}

async fn check<T>(
    sessions: Vec<T>,
    still_admits: impl AsyncFn(&T) -> Result<(), Refusal>,
) -> Checked<T> {
    let (mut refused, mut undecided) = (Vec::new(), Vec::new());
    for (count, session) in (1..).zip(sessions) {
        yield_after_batch(count).await;
        match still_admits(&session).await {
            Err(Refusal::Denied(Denial::Overloaded)) => undecided.push(session),
            Err(Refusal::Denied(denial)) if denial.fault() == Fault::Ours => {}
            Err(refusal) => refused.push((session, refusal)),
            Ok(()) => {}
        }
    }
    Checked { refused, undecided }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};

    #[test]
    fn sessions_that_could_not_be_checked_are_kept() {
        block_on(IoDriver::Epoll, async {
            let checked = check((0..100).collect(), async |session: &u32| {
                match session % 4 {
                    0 => Err(Refusal::Denied(Denial::Overloaded)),
                    1 => Err(Refusal::Denied(Denial::DebugTd)),
                    2 => Err(Refusal::Denied(Denial::CollateralUnavailable)),
                    _ => Ok(()),
                }
            })
            .await;
            let refused = checked.refused.iter().map(|(session, _)| *session);
            assert!(refused.eq((1..100).step_by(4)));
            assert!(checked.undecided.into_iter().eq((0..100).step_by(4)));
        })
        .unwrap();
    }

    #[test]
    fn other_tasks_run_while_many_sessions_are_checked() {
        block_on(IoDriver::Epoll, async {
            let others = Rc::new(Cell::new(0));
            let counter = Rc::clone(&others);
            drop(monoio::spawn(async move {
                loop {
                    counter.set(counter.get() + 1);
                    yield_now().await;
                }
            }));
            let many = (0..10 * BATCH).collect();
            check(many, async |_: &usize| Ok(())).await;
            assert!(others.get() >= 5, "{}", others.get());
        })
        .unwrap();
    }
}
