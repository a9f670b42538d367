//! Layer 0: sockets, buffers and threads, without knowledge of TLS or PostgreSQL.
//!
//! It must never import another layer.

pub(crate) mod buffer;
pub mod driver;
pub(crate) mod listener;
pub(crate) mod mailbox;
pub(crate) mod offload;
pub mod stream;
