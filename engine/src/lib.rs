//! The engine of TeeSQL's sidecar: TLS in, a PostgreSQL login injected, bytes
//! moved, on one shard per core.
//!
//! A connection's way through the house is told top to bottom in `sidecar.rs`:
//! opening bytes, TLS, login, Postgres, relay, close. The modules below it each
//! do one of these steps; [`serve`] builds the house and takes it down again.
//! What must never happen here: a lock, a blocking call or long computation on
//! a shard; a read or write that is dropped half-way.
#![deny(unsafe_code)]

mod buffer;
pub mod config;
mod control;
pub mod driver;
mod end;
mod gate;
pub mod identity;
mod keeper;
mod lane;
pub mod log;
mod mailbox;
pub mod net;
mod offload;
mod probe;
mod relay;
pub mod roles;
pub mod serve;
mod shard;
mod sidecar;
mod stream;
mod tls;
mod trust;
mod upstream;
