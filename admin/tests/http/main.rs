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
mod endpoints;
mod flood;
mod life;
mod shapes;
mod slow;
mod stage;
