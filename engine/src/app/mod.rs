//! Layer 7: a process from its configuration to its exit.

pub(crate) mod descriptors;
pub mod embed;
pub mod error;
pub mod forwarder;
pub mod lifecycle;
pub(crate) mod readiness;
pub(crate) mod runtime;
pub mod sidecar;
pub(crate) mod signals;
pub(crate) mod status;
pub(crate) mod systemd;
