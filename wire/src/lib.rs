//! The PostgreSQL start-up and login protocol, and the request that opens a link between members of
//! a cluster, as sans-I/O state machines: bytes in, bytes and steps out.
//!
//! The crate exists so that all input of unauthenticated peers is parsed by code that can be tested
//! and fuzzed in memory. It must never open a socket, read a clock, draw randomness, log or be
//! async: timeouts belong to the caller, a nonce is an argument, and an error is a value.
//!
//! Parsing is zero-copy: a step borrows from the bytes that were passed in. A state is consumed by
//! value and returned inside the step, so that nothing usable is left after an error. "Read more"
//! steps keep no bytes: the caller passes the same bytes again, with more appended.
//!
//! | Module | Peer | Contents |
//! | --- | --- | --- |
//! | [`opening`] | the client, in plaintext | the first bytes on the port, up to TLS |
//! | [`local_opening`] | a client on this machine | its first bytes at a forwarder |
//! | [`startup`] | | StartupMessage and CancelRequest as validated types |
//! | [`startup_options`] | | settings in the start-up parameter `options` |
//! | [`frontend`] | the client, inside TLS | start-up, version negotiation, SCRAM or password |
//! | [`backend`] | Postgres | the login with a password that the client never sees |
//! | [`version_probe`] | Postgres | the newest protocol version that it supports |
//! | [`link`] | another member of the cluster | the request for a service, and the answer |
//! | [`scram`] | | both sides of SCRAM-SHA-256, and the server's of SCRAM-SHA-256-PLUS |
//! | [`secret`] | | secrets and their constant-time comparison |
//! | [`cluster_key`] | | the passwords that all members of a cluster derive from one key |
//! | [`message`] | | framing in both directions |
//! | [`error`] | | all errors, and the ErrorResponse for each |
//!
//! Protocol facts are from the PostgreSQL 18 documentation, chapter "Frontend/Backend Protocol",
//! and from the sources of PostgreSQL's server and libpq where the documentation does not cover
//! them.

#![forbid(unsafe_code)]

pub mod backend;
pub mod cluster_key;
pub mod error;
pub mod frontend;
pub mod link;
pub mod local_opening;
pub mod message;
pub mod opening;
pub mod scram;
pub mod secret;
pub mod startup;
pub mod startup_options;
mod version;
pub mod version_probe;
