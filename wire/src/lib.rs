//! The PostgreSQL start-up and login protocol as pure state machines: bytes in, bytes and steps out.
//!
//! The crate exists so that everything an unauthenticated peer can say is read by code that can be
//! tested and fuzzed in memory. It must never open a socket, read a clock, draw randomness, log or
//! be async: time-outs belong to the caller, a nonce is an argument, and an error is a value.
//!
//! Reading is zero-copy: a step borrows from the bytes that were passed in. A state is consumed by
//! value and comes back inside the step, so that after a refusal nothing usable is left. "Read more"
//! steps never keep bytes: the caller passes the same bytes again, with more behind them.
//!
//! | Module | Speaks with | About |
//! | --- | --- | --- |
//! | [`opening`] | the client, in plaintext | the first bytes on the port, up to TLS |
//! | [`local_opening`] | a client on this machine | its first bytes, where we forward it elsewhere |
//! | [`startup`] | | StartupMessage and CancelRequest as checked types |
//! | [`frontend`] | the client, inside TLS | start-up, version negotiation, password |
//! | [`backend`] | Postgres | the login with a password that the client never sees |
//! | [`version_probe`] | Postgres | which protocol versions it speaks |
//! | [`scram`] | | the client half of SCRAM-SHA-256 |
//! | [`secret`] | | secrets, and their comparison in constant time |
//! | [`message`] | | framing, both ways |
//! | [`error`] | | every way to fail, and what the client is told |
//!
//! Protocol facts are from the PostgreSQL 18 documentation, chapter "Frontend/Backend Protocol",
//! and from the sources of PostgreSQL's server and libpq where the documentation is silent.

#![forbid(unsafe_code)]

pub mod backend;
pub mod error;
pub mod frontend;
pub mod local_opening;
pub mod message;
pub mod opening;
pub mod scram;
pub mod secret;
pub mod startup;
mod version;
pub mod version_probe;
