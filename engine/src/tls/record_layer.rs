//! The `tls_record_layer` setting.

use std::sync::Arc;

use rustls::KeyLog;

use crate::tls::schedule::SecretCapture;

/// The implementation that seals and opens TLS 1.3 records after the handshake. rustls always
/// performs the handshake, and TLS 1.2 sessions always stay with rustls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordLayer {
    /// Our own record layer, which copies less and keeps less memory per session.
    Own,
    /// rustls. The traffic secrets never leave it.
    Rustls,
}

impl RecordLayer {
    /// The `key_log` of a rustls configuration. A session whose configuration does not
    /// capture the traffic secrets stays with rustls.
    pub(super) fn key_log(self) -> Arc<dyn KeyLog> {
        match self {
            RecordLayer::Own => Arc::new(SecretCapture),
            RecordLayer::Rustls => Arc::new(rustls::NoKeyLog),
        }
    }
}

impl std::fmt::Display for RecordLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RecordLayer::Own => "own",
            RecordLayer::Rustls => "rustls",
        })
    }
}

impl std::str::FromStr for RecordLayer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "own" => Ok(RecordLayer::Own),
            "rustls" => Ok(RecordLayer::Rustls),
            _ => Err("expected own or rustls"),
        }
    }
}
