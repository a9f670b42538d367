//! Layer 3: metrics, the log, and the reasons why connections close.

pub(crate) mod access_log;
pub(crate) mod audit;
mod client_error;
pub(crate) mod close_reason;
pub(crate) mod connection_info;
pub(crate) mod failures;
pub(crate) mod line_limit;
pub(crate) mod link_info;
mod link_log;
pub(crate) mod link_metrics;
pub mod log;
pub mod metrics;
pub(crate) mod reason_help;
pub(crate) mod shard_metrics;
pub(crate) mod target_metrics;
