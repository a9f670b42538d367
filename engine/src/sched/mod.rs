//! Layer 1: cooperative scheduling within a shard.

pub(crate) mod busy_poll;
pub(crate) mod delay_timer;
pub(crate) mod handshake_queue;
pub(crate) mod read_delay;
pub(crate) mod yield_budget;
