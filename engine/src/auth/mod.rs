//! Layer 0: roles, the cluster secrets that open them, and the passwords for Postgres.
//!
//! It must never import another layer, log a secret or compare one in variable time.

pub mod cluster_secrets;
pub mod postgres_passwords;
