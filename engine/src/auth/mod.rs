//! Layer 0: roles, the cluster secrets that authorize them, and the passwords for Postgres.
//!
//! It must never import another layer, log a secret, or compare secrets in variable time.

pub mod client_auth;
pub mod cluster_secrets;
pub(crate) mod credential;
pub(crate) mod derived_secrets;
pub(crate) mod failed_logins;
pub(crate) mod grants;
pub(crate) mod launch_token;
pub mod postgres_passwords;
pub(crate) mod random;
pub(crate) mod role;
