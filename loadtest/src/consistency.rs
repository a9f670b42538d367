//! A checker of what a cluster promises while its members fail, in the manner of Jepsen: clients
//! record a history, faults are injected at random from a seed, and the history is checked afterwards.
//!
//! It must never change what it checks: the clients are plain PostgreSQL clients, and the checker
//! sees only what they saw and what the table contains in the end.

pub mod checker;
pub mod history;
mod inject;
pub mod plan;
pub mod run;
pub(crate) mod table;
pub mod workload;
