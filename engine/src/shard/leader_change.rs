//! Ends the sessions of a forwarder with a leader that was replaced, once the new one answers.
//!
//! A session whose statements fail on a demoted leader would otherwise last until the server or the driver ends it. The new
//! leader must be verified first: a manifest may name one that does not run yet, and ending the sessions would then only
//! turn a cluster that still serves reads into an outage. They end one after the other, so that their clients do not all connect at the
//! same moment.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::peer::Peer;
use crate::io::target::Target;
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;
use crate::telemetry::connection_info::ConnectionInfo;

/// The time in which all sessions end, and the longest pause between two of them.
const SPREAD: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// How long a leader that cannot be used is not asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What a shard does about a change of leader.
#[derive(Default)]
pub(super) struct LeaderChange {
    in_progress: Cell<bool>,
    /// The last reason that was logged, so that each is logged once.
    logged: Cell<Option<&'static str>>,
}

impl<S: ConnectionHandler> Shard<S> {
    /// Verifies `leader`, and ends the sessions with others. Does nothing while it is doing so already.
    pub(super) async fn follow(self: Rc<Self>, leader: Arc<Target>) {
        if self.leader_change.in_progress.replace(true) {
            return;
        }
        // Before the leader is asked: sessions that begin meanwhile may be with one that is newer still. The leader is
        // announced again while there are sessions with others.
        let sessions = self.sessions_with_others(&leader);
        if !sessions.is_empty() && self.answers(&leader).await {
            end_sessions(sessions, &leader).await;
        }
        self.leader_change.in_progress.set(false);
    }

    fn sessions_with_others(&self, leader: &Target) -> Vec<Rc<ConnectionControl>> {
        let is_with_other = |control: &Rc<ConnectionControl>| {
            let endpoint = control.endpoint();
            endpoint.is_some_and(|endpoint| endpoint.was_replaced_by(leader))
        };
        let all = self.controls().into_iter();
        all.filter(is_with_other).collect()
    }

    async fn answers(&self, leader: &Arc<Target>) -> bool {
        let metrics = Rc::clone(&self.handler.context().shard_metrics);
        let deadline = Instant::now() + self.timeouts.login;
        let control = ConnectionControl::new(deadline, metrics, Rc::clone(&self.activity));
        let info = RefCell::new(ConnectionInfo::new(0, Peer::Local));
        let verdict = self.handler.verify_target(leader, &control, &info).await;
        let logged = &self.leader_change.logged;
        match verdict {
            Ok(()) => {
                logged.set(None);
                true
            }
            Err(error) => {
                let reason = error.code();
                if logged.replace(Some(reason)) != Some(reason) {
                    tracing::warn!(
                        leader = leader.name(), reason, %error,
                        "the new leader cannot be used yet: sessions stay with the old one"
                    );
                }
                monoio::time::sleep(RETRY_PAUSE).await;
                false
            }
        }
    }
}

async fn end_sessions(sessions: Vec<Rc<ConnectionControl>>, leader: &Target) {
    let count = sessions.len();
    tracing::warn!(
        leader = leader.name(),
        sessions = count,
        "the cluster has a new leader, ending the sessions with the old one"
    );
    let pause = SPREAD / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    for control in sessions {
        control.terminate(TerminateReason::LeaderChanged);
        monoio::time::sleep(pause.min(MAX_PAUSE)).await;
    }
}
