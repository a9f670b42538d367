//! Tests of the server over real sockets, with well-behaved, slow and hostile clients.

// A test fails by panicking.
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
mod page;
mod routes;
mod slow_clients;
