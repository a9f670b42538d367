//! Layer 4: verification of the evidence in a peer's certificate.

pub(crate) mod custom;
pub(crate) mod forwarder_gate;
pub(crate) mod gate;
pub(crate) mod members;
pub(crate) mod verifier;
