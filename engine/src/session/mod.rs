//! Layer 4: an established connection: its TLS stream, its relay, its supervision.

pub(crate) mod activity;
pub(crate) mod control;
pub(crate) mod plain_relay;
pub(crate) mod reader;
pub(crate) mod relay;
pub(crate) mod server_endpoints;
pub(crate) mod tls_stream;
