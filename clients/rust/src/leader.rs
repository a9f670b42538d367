//! The leader manifest of a cluster.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use engine::embed::{self, Error, LeaderQuery, Manifest};

/// How long a query may take, unless another limit is set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of the key that signs a cluster's leader manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ManifestSigner([u8; 20]);

impl From<[u8; 20]> for ManifestSigner {
    fn from(address: [u8; 20]) -> Self {
        Self(address)
    }
}

impl FromStr for ManifestSigner {
    type Err = Error;

    /// `0x` and 40 hex digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        embed::parse_address(text).map(Self)
    }
}

impl fmt::Display for ManifestSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a manifest is queried.
#[derive(Clone, Debug)]
#[must_use]
pub struct LeaderOptions {
    dns_server: Option<SocketAddr>,
    timeout: Duration,
    cluster: Option<String>,
}

impl Default for LeaderOptions {
    /// This machine's name servers, 5 s, any cluster of the signer.
    fn default() -> Self {
        Self {
            dns_server: None,
            timeout: DEFAULT_TIMEOUT,
            cluster: None,
        }
    }
}

impl LeaderOptions {
    /// The name server to ask.
    pub fn dns_server(mut self, address: SocketAddr) -> Self {
        self.dns_server = Some(address);
        self
    }

    /// The limit for all queries.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The cluster's address, `0x…`, that the manifest must name. Without it, DNS can serve the manifest of another
    /// cluster of the same signer.
    pub fn cluster(mut self, address: impl Into<String>) -> Self {
        self.cluster = Some(address.into());
        self
    }

    fn query(&self, domain: &str) -> LeaderQuery {
        LeaderQuery {
            domain: domain.to_owned(),
            dns_server: self.dns_server,
            timeout: self.timeout,
        }
    }
}

/// Queries `_teesql-leader.<domain>`, and returns the valid manifest with the highest epoch.
///
/// # Errors
/// [`ErrorKind::Manifest`](crate::ErrorKind::Manifest); [`ErrorKind::Network`](crate::ErrorKind::Network) if the name server
/// does not answer; [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
pub async fn resolve_leader(
    domain: &str,
    signer: ManifestSigner,
    options: &LeaderOptions,
) -> Result<Manifest, Error> {
    let cluster = options.cluster.as_deref();
    embed::resolve_leader(options.query(domain), signer.0, cluster).await
}

/// As [`resolve_leader`], and blocks the thread meanwhile.
///
/// # Errors
/// As [`resolve_leader`].
pub fn resolve_leader_blocking(
    domain: &str,
    signer: ManifestSigner,
    options: &LeaderOptions,
) -> Result<Manifest, Error> {
    embed::block_on(resolve_leader(domain, signer, options))
}

/// The TXT records at `_teesql-leader.<domain>`, unverified.
///
/// # Errors
/// As [`resolve_leader`].
pub async fn query_manifest_records(
    domain: &str,
    options: &LeaderOptions,
) -> Result<Vec<String>, Error> {
    embed::query_manifest_records(options.query(domain)).await
}

/// Verifies the text of a manifest. `now` is in Unix seconds, by default the present.
///
/// # Errors
/// [`ErrorKind::Manifest`](crate::ErrorKind::Manifest).
pub fn parse_manifest(
    text: &str,
    signer: ManifestSigner,
    now: Option<u64>,
) -> Result<Manifest, Error> {
    embed::parse_manifest(text, signer.0, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signer_is_an_address() {
        let text = "0xbd32b609057a1a4569558a571d535c8f1212b097";
        let signer: ManifestSigner = text.parse().unwrap();
        assert_eq!(signer.to_string(), text);
        let error = "0xbd32".parse::<ManifestSigner>().unwrap_err();
        assert_eq!(error.code(), "configuration");
    }
}
