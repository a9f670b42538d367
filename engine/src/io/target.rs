//! The server that a forwarder connects to: as configured, as resolved, and why not.

use std::net::SocketAddr;

use attest::manifest::{ManifestError, ManifestPolicy};
use rustls::pki_types::ServerName;

/// What is looked up.
#[derive(Clone, Debug)]
pub(crate) enum TargetSpec {
    /// One server.
    Fixed { host: String, port: u16 },
    /// The leader that the manifest at `_teesql-leader.<domain>` names.
    Cluster {
        domain: String,
        trust: ManifestPolicy,
    },
}

/// A server to connect to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// For SNI and for people.
    pub(crate) server: ServerName<'static>,
    pub(crate) port: u16,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Target {
    /// `host:port`.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.server.to_str(), self.port)
    }
}

/// Why it is not known where the server is.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// The name server does not answer, or not with what was asked for.
    #[error("cannot resolve {name}: {why}")]
    Dns { name: String, why: String },
    /// There is no such name, or nothing under it.
    #[error("{0} has no address")]
    NoAddress(String),
    /// There is no manifest.
    #[error("no leader manifest: {0} has no TXT record")]
    NoManifest(String),
    /// Which of them counts is anybody's guess.
    #[error("{0} has more than one TXT record")]
    ManyManifests(String),
    /// The manifest is refused.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// The shard waits for too many answers already.
    #[error("too many connections wait for the server's address")]
    Overloaded,
}

impl TargetError {
    /// The reason code: stable, snake case.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "dns_failed",
            Self::NoAddress(_) => "no_address",
            Self::NoManifest(_) => "no_manifest",
            Self::ManyManifests(_) => "many_manifests",
            Self::Manifest(error) => error.code(),
            Self::Overloaded => "overloaded",
        }
    }
}
