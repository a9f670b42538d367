//! What a shard's sessions share for the bytes that they move.

use std::rc::Rc;

use crate::busy_poll::BusyPoll;
use crate::lane::Lane;
use crate::pause::Pauses;

/// A shard's.
pub(crate) struct Traffic {
    pub(crate) busy_poll: Rc<BusyPoll>,
    pub(crate) lane: Lane,
    pub(crate) pauses: Rc<Pauses>,
}

impl Traffic {
    /// Bytes have come, and more may follow at once.
    #[inline]
    pub(crate) fn seen(&self) {
        self.busy_poll.saw_traffic();
        self.lane.saw_traffic();
    }
}
