//! The server that a forwarder connects to: its configuration, the result of its resolution, and
//! the errors of that.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use attest::manifest::{LeaderInstance, MAX_MANIFEST_RECORDS, ManifestError, ManifestPolicy};
use rustls::pki_types::ServerName;

/// The greatest number of servers that are tried for one connection.
pub(crate) const MAX_TARGETS: usize = 8;
/// The greatest number of addresses of one name that are tried.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// The order in which servers, and the addresses of one name, are tried. [libpq, `load_balance_hosts`]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostOrder {
    /// As configured, and as the name server answered.
    #[default]
    Given,
    /// Another random order for each connection.
    Random,
}

impl FromStr for HostOrder {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disable" => Ok(Self::Given),
            "random" => Ok(Self::Random),
            _ => Err("expected disable or random"),
        }
    }
}

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

    /// Whether both are the same server, perhaps at other addresses.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        (&self.server, self.port, &self.leader) == (&other.server, other.port, &other.leader)
    }

    /// Whether this leads nowhere that `other` does not lead. Name servers return addresses in changing order.
    pub(crate) fn is_covered_by(&self, other: &Self) -> bool {
        let is_known = |address| other.addresses.contains(address);
        self.is_same_server(other) && self.addresses.iter().all(is_known)
    }
}

/// One address of a server, to which sessions are connected.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) target: Arc<Target>,
    pub(crate) address: SocketAddr,
}

impl Endpoint {
    /// Whether the manifest names another leader than this one by now.
    pub(crate) fn was_replaced_by(&self, leader: &Target) -> bool {
        self.target.leader != leader.leader
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
