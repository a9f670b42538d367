//! What a shard's sessions share for the bytes that they move.

use std::rc::Rc;

use crate::sched::busy_poll::{BusyPoll, Moved};
use crate::sched::delay_timer::TimerQueue;
use crate::sched::handshake_queue::HandshakeQueue;

/// A shard's.
pub(crate) struct ShardActivity {
    pub(crate) busy_poll: Rc<BusyPoll>,
    pub(crate) handshake_queue: HandshakeQueue,
    pub(crate) timers: Rc<TimerQueue>,
}

impl ShardActivity {
    /// Bytes have come, and more may follow at once.
    #[inline]
    pub(crate) fn seen(&self, moved: Moved) {
        self.busy_poll.saw_traffic(moved);
        self.handshake_queue.record_activity();
    }
}
