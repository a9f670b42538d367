//! Layer 1: the superuser's client of Postgres, which provisions roles and reads the server's state.
//!
//! It must never run on a shard.

pub mod provision;
pub mod server;
pub mod superuser;
