//! Layer 0: sockets, buffers and threads. Nothing here knows TLS or the PostgreSQL protocol.
//!
//! It must never import another layer.

pub(crate) mod backoff;
pub(crate) mod block_on;
pub(crate) mod boot_id;
pub(crate) mod buffer;
pub(crate) mod clock;
pub mod driver;
pub(crate) mod listener;
pub(crate) mod mailbox;
pub(crate) mod offload;
pub(crate) mod peer;
pub mod peer_uid;
pub(crate) mod private_file;
pub mod stream;
pub(crate) mod target;
pub(crate) mod tcp_info;
pub(crate) mod worker;
