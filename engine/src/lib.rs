//! The engine of TeeSQL's sidecar: TLS in, a PostgreSQL login injected, bytes
//! moved, on one shard per core.
//!
//! A connection's way through the house is told top to bottom in `sidecar.rs`:
//! opening bytes, TLS, login, Postgres, relay, close. The modules below it each
//! do one of these steps; [`serve`] builds the house and takes it down again.
//! What must never happen here: a lock, a blocking call or long computation on
//! a shard; a read or write that is dropped half-way.
#![deny(unsafe_code)]

pub mod answer;
mod balance;
mod buffer;
mod busy_poll;
pub mod ca;
mod child;
pub mod config;
mod control;
#[cfg(feature = "mock")]
pub mod dev;
pub mod driver;
mod end;
mod facts;
pub mod forward;
mod gate;
mod health;
mod house;
pub mod identity;
mod keeper;
mod lane;
mod listen;
mod live;
pub mod log;
mod mailbox;
pub mod metrics;
pub mod mode;
pub mod net;
mod offload;
mod orders;
pub mod passwords;
mod pause;
mod probe;
mod proof;
pub mod provision;
mod reader;
mod relay;
mod report;
pub mod roles;
mod runtime;
pub mod secret;
pub mod serve;
mod shard;
mod sidecar;
mod steward;
mod stream;
pub mod superuser;
mod supervisor;
mod tls;
mod traffic;
mod trust;
mod turn;
mod upstream;
pub mod verify;
