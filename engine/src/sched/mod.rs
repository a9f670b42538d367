//! Layer 1: scheduling within a shard, all of it because of four properties of monoio 0.2.4.
//!
//! | Property | Test | Consequence |
//! | --- | --- | --- |
//! | A task that wakes itself runs again before all others. | `self_waking_task_runs_first` | [`yield_now`] lets another task do the waking |
//! | Timers are checked only when no task is ready. | `timers_wait_until_no_task_is_ready` | [`yield_now`] waits for the timers every 10 ms |
//! | Timers tick in milliseconds. | `timers_tick_in_milliseconds` | [`delay_timer`] uses a `timerfd` |
//! | A cancelled accept leaks the accepted socket (io_uring). | `cancelled_accept_leaks_its_socket` | a shard ends its accept by `shutdown(2)` and never cancels one |
//!
//! The tests are in `monoio_properties.rs`. If one of them fails after an upgrade of monoio,
//! its workaround can go.
//!
//! The policies: [`handshake_queue`] paces handshakes, [`read_delay`] coalesces the reads of
//! long results, [`yield_budget`] bounds what a session moves without a wait, and [`busy_poll`]
//! polls for more bytes before a shard sleeps. None of them may keep a ready task or an expired
//! timer of the shard waiting without a bound.

pub(crate) mod busy_poll;
pub(crate) mod delay_timer;
pub(crate) mod handshake_queue;
#[cfg(test)]
mod monoio_properties;
pub(crate) mod read_delay;
pub(crate) mod yield_budget;
pub(crate) mod yield_now;
