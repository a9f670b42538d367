//! End-to-end tests of `teesql-sidecar verify`: its binary, with evidence of the mock TDX, recorded evidence
//! and mock servers on loopback.

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
