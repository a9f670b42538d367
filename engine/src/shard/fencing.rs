//! The end of sessions that may not write any more after a change in the cluster.
//!
//! A fenced member ends its own read-write sessions, and every member those that it carried to a leader which leads no
//! more. Sessions that only read stay. Logins that wait for a leader look again.

use crate::session::control::{ConnectionControl, TerminateReason, WritePath};
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;
use crate::shard::message::ClusterChange;

impl<S: ConnectionHandler> Shard<S> {
    pub(super) fn cluster_changed(&self, change: ClusterChange) {
        let mut ended: u32 = 0;
        for control in self.controls() {
            match reason_to_end(&control, change) {
                Some(reason) => {
                    control.terminate(reason);
                    ended += 1;
                }
                None => control.wake(),
            }
        }
        if ended > 0 {
            tracing::warn!(
                sessions = ended,
                fenced = change.fenced,
                "the cluster has changed, sessions closed"
            );
        }
    }
}

fn reason_to_end(control: &ConnectionControl, change: ClusterChange) -> Option<TerminateReason> {
    match control.write_path()? {
        WritePath::Local => change.fenced.then_some(TerminateReason::Fenced),
        WritePath::Carried { term } => {
            (term != change.term).then_some(TerminateReason::LeaderChanged)
        }
    }
}
