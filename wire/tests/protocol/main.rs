//! Tests of the whole crate from outside, in one binary: transcripts, transition tables, properties.

// `.clippy.toml` lets test functions panic, but not the helpers beside them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod backend;
mod drive;
mod errors;
mod frontend;
mod negotiation;
mod opening;
mod packets;
mod probe;
mod properties;
mod ready;
mod secret;
