//! Layer 1: TLS sessions that read and write buffers, certificates, and the configuration of rustls.
//!
//! It must never decide whether a peer is trusted: that is the attestation gate's task.

pub mod certificate;
pub mod certificate_source;
pub(crate) mod client_config;
mod connection;
pub(crate) mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod peer_verifier;
pub(crate) mod probe;
pub mod record_layer;
mod records;
mod schedule;
pub(crate) mod session;
