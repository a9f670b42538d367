//! Load generator and benchmark harness: loads, the proxies to compare with, and the report.
//!
//! The arms of a comparison are the proxies, and a direct connection to Postgres. Every claim about
//! speed is a ratio of two arms that were measured in the same run. This crate must never be needed
//! to run the product, must never listen on anything but loopback, and must never generate load
//! without a limit: every command caps the connections and the time.
//!
//! | Module | Content |
//! | --- | --- |
//! | [`endpoint`] | the server under load: address, opening, TLS settings, login |
//! | [`stream`], [`client`] | one connection, plain or TLS; the PostgreSQL session on it |
//! | [`message`], [`script`] | protocol messages; pre-built queries |
//! | [`worker_group`] | worker threads, each with a monoio runtime; the measurement window |
//! | [`load`] | the loads: queries, connects, idle connections, COPY, connection storm |
//! | [`latency`], [`stats`] | latency histograms, open-loop schedule; medians and ratios |
//! | [`process_usage`], [`machine`] | CPU and memory as the operating system reports them |
//! | [`mock_tdx`], [`in_memory`] | certificates with mock quotes; rustls and `attest` without a network |
//! | [`peers`] | the proxies that are compared, and the Postgres servers they forward to |
//! | [`compare`] | the whole comparison, all arms in turn |
//! | [`storm`] | tens of thousands of clients that connect to a new sidecar at the same time |
//! | [`consistency`] | a checker of what a cluster promises while its members fail |
//! | [`report`] | the results as table, JSON and HTML page with charts |
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod compare;
pub mod consistency;
mod dev_cluster;
pub mod endpoint;
pub mod error;
pub mod failover;
pub mod in_memory;
pub mod latency;
pub mod load;
pub mod machine;
pub mod message;
pub mod mock_tdx;
pub mod peers;
pub mod process_usage;
pub mod progress;
pub mod report;
pub mod runtime;
pub mod script;
pub mod stats;
pub mod storm;
pub mod stream;
pub mod worker_group;

pub use error::{Error, Result};
