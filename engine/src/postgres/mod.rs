//! Layer 1: the superuser's client of Postgres, and what it does there.

pub mod provision;
pub mod superuser;
