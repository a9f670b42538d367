//! Layer 1: the superuser's client of Postgres, which provisions roles and reads the server's
//! state, and the settings that new sessions begin with.
//!
//! It must never run on a shard.

pub mod provision;
pub mod server;
pub(crate) mod session_address;
pub mod session_settings;
pub mod superuser;
