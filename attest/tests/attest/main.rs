//! Tests of the whole crate from outside, in one binary: fixtures, the mock TDX, properties.

// `.clippy.toml` lets test functions panic, but not the helpers beside them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod conformance;
mod event_log;
// Shared with the example; the tests do not use all of it.
#[allow(dead_code)]
mod fixtures;
mod policy;
mod reasons;

// What needs peers that can be made wrong one thing at a time.
#[cfg(feature = "mock")]
mod cache;
#[cfg(feature = "mock")]
mod chain;
#[cfg(feature = "mock")]
mod evidence;
#[cfg(feature = "mock")]
mod leaves;
#[cfg(feature = "mock")]
mod properties;
#[cfg(feature = "mock")]
mod refusals;
#[cfg(feature = "mock")]
mod world;
