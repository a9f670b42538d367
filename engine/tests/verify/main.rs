//! `teesql-sidecar verify` from outside: its own binary, with evidence of the mock
//! TDX, the shared fixtures, and small servers on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why"
)]

mod command;
mod fixture;
mod mock_server;
mod probe;
mod recorded;
mod refusals;
mod text;
mod usage;
