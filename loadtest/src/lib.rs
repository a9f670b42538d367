//! The instrument: load, peers side by side, and the report.
//!
//! It exists so that every claim about speed is a ratio against a peer, taken in
//! the same run, by somebody who would rather see it fail. It must never be
//! needed to run the product, listen anywhere but on loopback, or make load
//! without an end: every command has a cap on connections and on time.
//!
//! | Module | Is |
//! | --- | --- |
//! | [`target`] | where a load goes: address, opening, TLS settings, login |
//! | [`stream`], [`client`] | one connection: plain or TLS, the login, messages |
//! | [`message`], [`script`] | messages made in advance, and what is asked of Postgres |
//! | [`crew`] | threads with a monoio runtime each, and the window that is measured |
//! | [`load`] | the loads: queries, logins and handshakes, idle, bulk, storm |
//! | [`latency`], [`arithmetic`] | histograms, schedules, medians and ratios |
//! | [`cpu`], [`machine`] | what the operating system says |
//! | [`tdx`], [`mod@reference`] | certificates with mock quotes; rustls and `attest` without a network |
//! | [`peers`] | the proxies beside ours, and the Postgres behind them |
//! | [`compare`] | all of it in turns |
//! | [`report`] | the table, the JSON and the page with its pictures |
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod compare;
pub mod endpoint;
pub mod error;
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
pub mod stream;
pub mod worker_group;

pub use error::{Error, Result};
