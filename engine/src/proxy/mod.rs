//! Layer 6: one connection from its first byte to its last.

pub(crate) mod inbound;
pub mod outbound;
pub(crate) mod upstream;
