//! Layer 5: shards, thread-per-core with nothing shared: one thread with its runtime, its
//! listener and its connections, from accept to close. Forwarders that are part of a program share one thread, on which
//! each has a shard.
//!
//! Shards share nothing that is written on the data path. What they share is touched when a
//! connection begins or ends.

mod background;
mod balancer;
mod connection;
pub(crate) mod connection_limit;
pub(crate) mod context;
mod event_loop;
mod fencing;
pub(crate) mod handler;
mod leader_change;
pub(crate) mod live_config;
pub(crate) mod message;
pub(crate) mod pool;
mod revalidation;
pub(crate) mod sessions;
pub(crate) mod shared_thread;
pub(crate) mod unattested;
