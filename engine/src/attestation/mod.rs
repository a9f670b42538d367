//! Layer 4: whether a peer is admitted, by the evidence in its certificate.

pub(crate) mod forwarder_gate;
pub(crate) mod gate;
pub(crate) mod verifier;
