//! The server that a forwarder connects to: its configuration, the result of its resolution, and
//! the errors of that.

use std::net::SocketAddr;

use attest::manifest::{LeaderInstance, MAX_MANIFEST_RECORDS, ManifestError, ManifestPolicy};
use rustls::pki_types::ServerName;

/// The configured server.
#[derive(Clone, Debug)]
pub(crate) enum TargetSpec {
    /// One server.
    Fixed { host: String, port: u16 },
    /// The leader that the manifest at `_teesql-leader.<domain>` names.
    Cluster {
        domain: String,
        policy: ManifestPolicy,
    },
}

/// A server to connect to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The name or address, for SNI, logs and errors.
    pub(crate) server: ServerName<'static>,
    pub(crate) port: u16,
    pub(crate) addresses: Vec<SocketAddr>,
    /// The instance that the server must prove to be, if a manifest names it.
    pub(crate) leader: Option<LeaderInstance>,
}

impl Target {
    /// `host:port`.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.server.to_str(), self.port)
    }
}

/// Why the address of the server is unknown.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// The name server did not answer in time, or answered with an error.
    #[error("cannot resolve {name}: {why}")]
    Dns { name: String, why: String },
    /// The name does not exist or has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// The name does not exist or has no TXT record.
    #[error("no leader manifest: {0} has no TXT record")]
    NoManifest(String),
    /// There are more than [`MAX_MANIFEST_RECORDS`] TXT records.
    #[error("{0} has more than {MAX_MANIFEST_RECORDS} TXT records")]
    ManyManifests(String),
    /// The manifest is refused.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Too many lookups are pending on the shard.
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
