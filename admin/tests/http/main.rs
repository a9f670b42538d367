//! The surface over real sockets, asked by clients of every kind.

// These files are nothing but tests.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod client;
mod curl;
mod flood;
mod harness;
mod lifecycle;
mod malformed_requests;
mod routes;
mod slow_clients;
