//! The leader manifest for programs: query, verification, and the server that it names.

use std::net::SocketAddr;
use std::time::Duration;

use attest::manifest::{
    self, EthAddress, LeaderUrl, ManifestPolicy, UnsignedManifest, UnverifiedManifest,
};

use super::error::{Error, ErrorKind};
use super::runtime::SharedRuntime;
use crate::app::error::StartError;
use crate::io::clock::unix_now;
use crate::tasks::discovery::DnsClient;

/// A leader manifest whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The cluster's address, `0x…`.
    pub cluster: String,
    /// The leading instance.
    pub leader_instance: String,
    /// Its URL.
    pub leader_url: String,
    /// The host to connect to.
    pub host: String,
    /// The port to connect to.
    pub port: u16,
    /// Grows with each change of leader.
    pub epoch: u64,
    /// The first Unix second at which it is invalid.
    pub valid_until: u64,
    /// The text that the signature is over.
    pub canonical_body: String,
}

impl Manifest {
    fn of(manifest: &manifest::Manifest, canonical_body: String) -> Self {
        Self {
            cluster: manifest.cluster().to_string(),
            leader_instance: manifest.leader_instance().to_string(),
            leader_url: manifest.leader_url().as_str().to_owned(),
            host: manifest.target().host().to_owned(),
            port: manifest.target().port(),
            epoch: manifest.epoch(),
            valid_until: manifest.valid_until(),
            canonical_body,
        }
    }
}

/// How a manifest is queried.
#[derive(Clone, Debug)]
pub struct LeaderQuery {
    /// The cluster's domain.
    pub domain: String,
    /// The name server to ask. `None` asks those of this machine.
    pub dns_server: Option<SocketAddr>,
    /// The limit for all queries.
    pub timeout: Duration,
}

/// Queries `_teesql-leader.<domain>`, and returns the valid manifest with the highest epoch. `signer` is the address that
/// must have signed it, and `cluster` the one that it must name.
///
/// # Errors
/// [`ErrorKind::Manifest`]; [`ErrorKind::Network`] if the name server does not answer; [`ErrorKind::Timeout`].
pub async fn resolve_leader(
    query: LeaderQuery,
    signer: [u8; 20],
    cluster: Option<&str>,
) -> Result<Manifest, Error> {
    let mut policy = ManifestPolicy::for_signer(EthAddress(signer));
    policy.cluster = cluster.map(parse_address).transpose()?.map(EthAddress);
    on_control_thread(query, async move |dns, domain| {
        let (manifest, _) = dns.leader_manifest(&domain, &policy).await?;
        let body = unsigned(&manifest).signed_text();
        Ok(Manifest::of(&manifest, body))
    })
    .await
}

/// The TXT records at `_teesql-leader.<domain>`, unverified.
///
/// # Errors
/// As [`resolve_leader`].
pub async fn query_manifest_records(query: LeaderQuery) -> Result<Vec<String>, Error> {
    on_control_thread(query, async move |dns, domain| {
        let (records, _) = dns.manifest_records(&domain).await?;
        let joined = records.iter().map(|chunks| {
            let chunks: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            manifest::join_chunks(&chunks)
        });
        // Other records may be there, too.
        Ok(joined.filter_map(Result::ok).collect())
    })
    .await
}

/// Verifies the text of a manifest. `now` is in Unix seconds, by default the present.
///
/// # Errors
/// [`ErrorKind::Manifest`].
pub fn parse_manifest(text: &str, signer: [u8; 20], now: Option<u64>) -> Result<Manifest, Error> {
    let policy = ManifestPolicy::for_signer(EthAddress(signer));
    let parsed: UnverifiedManifest = manifest::Manifest::parse(text)?;
    let verified = parsed.verify(&policy, now.unwrap_or_else(unix_now))?;
    Ok(Manifest::of(&verified, parsed.signed_text().to_owned()))
}

/// The host and port that a leader URL leads to, through a dstack gateway or not.
///
/// # Errors
/// [`ErrorKind::Manifest`].
pub fn server_of_leader_url(url: &str) -> Result<(String, u16), Error> {
    let url: LeaderUrl = url.parse()?;
    Ok((url.target().host().to_owned(), url.target().port()))
}

/// The bytes of an Ethereum address, `0x` and 40 hex digits.
///
/// # Errors
/// [`ErrorKind::Configuration`].
pub fn parse_address(text: &str) -> Result<[u8; 20], Error> {
    let parsed = text.parse::<EthAddress>();
    let EthAddress(bytes) =
        parsed.map_err(|error| Error::configuration(format!("{text}: {error}")))?;
    Ok(bytes)
}

/// The fields of a manifest, without those that this version does not know.
fn unsigned(manifest: &manifest::Manifest) -> UnsignedManifest {
    UnsignedManifest {
        cluster: manifest.cluster(),
        leader_instance: manifest.leader_instance().clone(),
        leader_url: manifest.leader_url().clone(),
        epoch: manifest.epoch(),
        valid_until: manifest.valid_until(),
    }
}

/// Runs `ask` on the control thread with a client of the name server, within the limit.
async fn on_control_thread<T: Send + 'static, F>(
    query: LeaderQuery,
    ask: impl FnOnce(DnsClient, String) -> F + Send + 'static,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, crate::io::target::TargetError>> + Send + 'static,
{
    let runtime = SharedRuntime::acquire()?;
    let LeaderQuery {
        domain,
        dns_server,
        timeout,
    } = query;
    let task = runtime.control().spawn(async move {
        let dns = DnsClient::new(dns_server).map_err(StartError::Resolver)?;
        match tokio::time::timeout(timeout, ask(dns, domain)).await {
            Ok(answer) => answer.map_err(Error::from),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "dns_failed",
                format!("no answer of the name server within {timeout:?}"),
            )),
        }
    });
    let answer = task.await;
    runtime.release().await;
    answer.map_err(Error::internal)?
}
