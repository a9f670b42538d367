//! What the sessions of a shard share: the policies of `sched` that depend on when they move
//! bytes.

use std::rc::Rc;

use crate::sched::busy_poll::{BusyPoll, Transfer};
use crate::sched::delay_timer::TimerQueue;
use crate::sched::handshake_queue::HandshakeQueue;

/// The activity of one shard.
pub(crate) struct ShardActivity {
    pub(crate) busy_poll: Rc<BusyPoll>,
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) timers: Rc<TimerQueue>,
}

impl ShardActivity {
    /// Of a shard without sessions.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        let timers = Rc::<TimerQueue>::default();
        let login_timeout = std::time::Duration::from_secs(5);
        Self {
            busy_poll: BusyPoll::new(crate::sched::busy_poll::BusyPollMode::Off),
            handshake_queue: HandshakeQueue::new(login_timeout, Rc::clone(&timers)),
            timers,
        }
    }

    /// Records that a session has moved bytes.
    #[inline]
    pub(crate) fn record(&self, transfer: Transfer) {
        self.busy_poll.observe(transfer);
        self.handshake_queue.record_activity();
    }
}
