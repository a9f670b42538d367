//! Discovers the server of a forwarder by DNS: a fixed name, or the leader of a cluster.
//!
//! Lookups run on the control thread as a single flight: one at a time, and every caller that
//! waits gets its result. Shards read the cached result, and request another lookup when it has
//! expired or its addresses do not work.
//!
//! A query that fails is repeated without EDNS, which some name servers and firewalls drop or refuse (RFC 6891, 6.2.2).
//! A and AAAA are separate queries, and the answer to one does not wait long for the other, which some name servers
//! never answer (RFC 8305, section 3).

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use attest::manifest::{
    LeaderInstance, LeaderState, MAX_MANIFEST_RECORDS, Manifest, ManifestPolicy, newest_of,
};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use rustls::pki_types::ServerName;
use tokio::sync::Mutex;

use crate::io::clock::unix_now;
use crate::io::target::{MAX_ADDRESSES, Target, TargetError, TargetSpec};

/// The limit for one query with EDNS, and for one without.
const QUERY_TIMEOUT: Duration = Duration::from_millis(2_500);
/// hickory-resolver repeats a query about every second for this time, and then once more.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the addresses of one family wait for those of the other.
const RESOLUTION_DELAY: Duration = Duration::from_millis(500);
/// Results are cached for their TTL within these bounds. A TTL of 0 must not cause a query for
/// each connection, and a long one must not preserve an old leader.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);
/// How long an expired result that cannot be renewed is used before the next query.
const STALE_TTL: Duration = Duration::from_secs(5);

/// Queries `server`, or the name servers of this machine.
pub(crate) struct DnsClient {
    with_edns: Families,
    without_edns: Families,
    /// Whether the last successful query was one without EDNS. The next one begins without it.
    edns_failed: AtomicBool,
}

/// A resolver for each family of addresses. Each also reads the hosts file.
struct Families {
    v4: TokioResolver,
    v6: TokioResolver,
}

/// The addresses of a name, and when they expire.
type Addresses = (Vec<IpAddr>, Instant);

impl DnsClient {
    /// # Errors
    /// This machine's resolv.conf cannot be read.
    pub(crate) fn new(server: Option<SocketAddr>) -> Result<Self, NetError> {
        let families = |edns| {
            Ok::<_, NetError>(Families {
                v4: resolver(server, edns, LookupIpStrategy::Ipv4Only)?,
                v6: resolver(server, edns, LookupIpStrategy::Ipv6Only)?,
            })
        };
        Ok(Self {
            with_edns: families(true)?,
            without_edns: families(false)?,
            edns_failed: AtomicBool::new(false),
        })
    }

    /// Runs `query` with EDNS, and if that fails without it; or in the other order, if that worked last. `None` if the
    /// name or the record does not exist.
    async fn ask<'a, T, Q>(
        &'a self,
        name: &str,
        query: impl Fn(&'a Families) -> Q,
    ) -> Result<Option<T>, TargetError>
    where
        Q: Future<Output = Result<T, NetError>>,
    {
        let begin_without = self.edns_failed.load(Ordering::Relaxed);
        let families = |without: bool| match without {
            true => &self.without_edns,
            false => &self.with_edns,
        };
        let first = with_timeout(name, query(families(begin_without))).await;
        if first.is_ok() {
            return first;
        }
        let second = with_timeout(name, query(families(!begin_without))).await;
        match second {
            Ok(found) => {
                self.edns_failed.store(!begin_without, Ordering::Relaxed);
                Ok(found)
            }
            Err(_) => first,
        }
    }

    /// The addresses of `host`, both families in turn, IPv6 first. `None` if it has none.
    async fn lookup_ip(&self, host: &str) -> Result<Option<Addresses>, TargetError> {
        let mut v6 = pin!(self.ask(host, |families| families.v6.lookup_ip(host)));
        let mut v4 = pin!(self.ask(host, |families| families.v4.lookup_ip(host)));
        let (mut found_v6, mut found_v4) = (None, None);
        while found_v6.is_none() || found_v4.is_none() {
            let usable = [&found_v6, &found_v4]
                .iter()
                .any(|found| matches!(found, Some(Ok(Some(_)))));
            tokio::select! {
                found = &mut v6, if found_v6.is_none() => found_v6 = Some(found),
                found = &mut v4, if found_v4.is_none() => found_v4 = Some(found),
                () = tokio::time::sleep(RESOLUTION_DELAY), if usable => break,
            }
        }
        let (mut families, mut expires, mut failed) = (Vec::new(), None, None);
        for found in [found_v6, found_v4].into_iter().flatten() {
            match found {
                Ok(Some(lookup)) => {
                    let mut family: Vec<IpAddr> = Vec::new();
                    family.extend(lookup.iter());
                    families.push(family);
                    let until = lookup.valid_until();
                    expires = Some(expires.map_or(until, |other: Instant| other.min(until)));
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        match (expires, failed) {
            (Some(expires), _) => Ok(Some((interleave(&families), expires))),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }
}

impl DnsClient {
    /// Queries the leader manifest of the cluster at `domain`: of all TXT records the valid one with the highest epoch.
    /// Returns it with its TTL.
    ///
    /// # Errors
    /// There is none, or it is refused.
    pub(crate) async fn leader_manifest(
        &self,
        domain: &str,
        policy: &ManifestPolicy,
    ) -> Result<(Manifest, Duration), TargetError> {
        let (records, ttl) = self.manifest_records(domain).await?;
        let chunks = records.iter();
        let chunks = chunks.map(|record| record.iter().map(Vec::as_slice).collect());
        let chunks: Vec<Vec<&[u8]>> = chunks.collect();
        match newest_of(chunks, policy, unix_now())? {
            Some(manifest) => Ok((manifest, ttl)),
            None => Err(TargetError::NoManifest(record_name(domain))),
        }
    }

    /// Queries the TXT records of the cluster at `domain`, each as the strings that it consists of. Returns them with
    /// their TTL.
    ///
    /// # Errors
    /// There is none, or there are too many.
    pub(crate) async fn manifest_records(
        &self,
        domain: &str,
    ) -> Result<(Vec<Vec<Vec<u8>>>, Duration), TargetError> {
        let name = record_name(domain);
        let found = self.ask(&name, |families| families.v4.txt_lookup(name.as_str()));
        let Some(lookup) = found.await? else {
            return Err(TargetError::NoManifest(name));
        };
        let ttl = time_until(lookup.valid_until());
        let records = lookup.answers().iter();
        let records: Vec<Vec<Vec<u8>>> = records
            .filter_map(|record| match &record.data {
                RData::TXT(txt) => Some(txt.txt_data.iter().map(|chunk| chunk.to_vec()).collect()),
                _ => None,
            })
            .collect();
        if records.len() > MAX_MANIFEST_RECORDS {
            return Err(TargetError::ManyManifests(name));
        }
        Ok((records, ttl))
    }
}

/// The name of the TXT record with the leader manifest.
fn record_name(domain: &str) -> String {
    format!("_teesql-leader.{}.", domain.trim_end_matches('.'))
}

/// The addresses of all families in turn, so that a network without a route for one family costs one attempt.
/// [RFC 8305, section 4]
fn interleave(families: &[Vec<IpAddr>]) -> Vec<IpAddr> {
    let longest = families.iter().map(Vec::len).max().unwrap_or(0);
    let of_rank = |rank: usize| families.iter().filter_map(move |family| family.get(rank));
    (0..longest).flat_map(of_rank).copied().collect()
}

fn resolver(
    server: Option<SocketAddr>,
    edns: bool,
    family: LookupIpStrategy,
) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), vec![name_server(server)]),
            TokioRuntimeProvider::default(),
        ),
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = ATTEMPT_TIMEOUT;
    options.edns0 = edns;
    options.ip_strategy = family;
    // `TargetResolver` caches. A lookup after a failed connection must not return the same
    // cached answer.
    options.cache_size = 0;
    builder.build()
}

/// Queries `server` by UDP, and by TCP if an answer is truncated.
fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut name_server.connections {
        connection.port = server.port();
    }
    name_server
}

/// Looks up the server and caches the result.
pub(crate) struct TargetResolver {
    spec: TargetSpec,
    dns: Arc<DnsClient>,
    control: tokio::runtime::Handle,
    current: ArcSwapOption<CachedTarget>,
    /// Locked during a lookup, so that there is one at a time.
    lookup: Mutex<LookupState>,
}

#[derive(Default)]
struct LookupState {
    leader: LeaderState,
    /// When the last lookup failed, and why. Callers that waited for it get this error.
    failed: Option<(Instant, TargetError)>,
}

struct CachedTarget {
    target: Arc<Target>,
    expires: Instant,
}

impl TargetResolver {
    pub(crate) fn new(
        spec: TargetSpec,
        dns: Arc<DnsClient>,
        control: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            spec,
            dns,
            control,
            current: ArcSwapOption::empty(),
            lookup: Mutex::default(),
        })
    }

    /// The cached result, unless it has expired or is the `failed` target.
    pub(crate) fn cached(&self, failed: Option<&Arc<Target>>) -> Option<Arc<Target>> {
        let current = self.current.load();
        let cached = current.as_ref()?;
        let has_failed = failed.is_some_and(|failed| Arc::ptr_eq(failed, &cached.target));
        (!has_failed && Instant::now() < cached.expires).then(|| Arc::clone(&cached.target))
    }

    /// Runs [`Self::resolve`] on the control thread, and calls `done` with its result.
    pub(crate) fn lookup(
        self: &Arc<Self>,
        failed: Option<Arc<Target>>,
        done: impl FnOnce(Result<Arc<Target>, TargetError>) + Send + 'static,
    ) {
        let resolver = Arc::clone(self);
        self.control
            .spawn(async move { done(resolver.resolve(failed).await) });
    }

    /// Returns the result of the lookup in progress, or starts one. `failed` is a target that
    /// could not be used: it is not returned from the cache.
    ///
    /// # Errors
    /// The name cannot be resolved, or the leader manifest is refused.
    pub(crate) async fn resolve(
        &self,
        failed: Option<Arc<Target>>,
    ) -> Result<Arc<Target>, TargetError> {
        let requested = Instant::now();
        let mut lookup = self.lookup.lock().await;
        if let Some(target) = self.cached(failed.as_ref()) {
            return Ok(target);
        }
        if let Some((ended, error)) = &lookup.failed
            && requested <= *ended
        {
            return Err(error.clone());
        }
        let (target, ttl) = match self.query_or_reuse(&mut lookup.leader).await {
            Ok(found) => found,
            Err(error) => {
                lookup.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        let target = self.reuse_if_equal(target);
        self.current.store(Some(Arc::new(CachedTarget {
            target: Arc::clone(&target),
            expires: Instant::now() + ttl.clamp(MIN_TTL, MAX_TTL),
        })));
        Ok(target)
    }

    /// Queries the name server. If it does not answer, the last result is used again.
    async fn query_or_reuse(
        &self,
        leader: &mut LeaderState,
    ) -> Result<(Arc<Target>, Duration), TargetError> {
        match (self.query(leader).await, self.current.load().as_ref()) {
            // The server may be up although the name server is down.
            (Err(error @ TargetError::Dns { .. }), Some(last))
                if self.is_still_leader(leader, &last.target) =>
            {
                tracing::warn!(%error, "cannot query the name server, using the last known address");
                Ok((Arc::clone(&last.target), STALE_TTL))
            }
            (result, _) => result,
        }
    }

    /// Returns the cached allocation if the target has not changed, so that `cached` can
    /// compare pointers.
    fn reuse_if_equal(&self, target: Arc<Target>) -> Arc<Target> {
        let current = self.current.load();
        match current.as_ref() {
            Some(last) if *last.target == *target => Arc::clone(&last.target),
            _ => {
                tracing::info!(server = target.name(), addresses = ?target.addresses, "server found");
                target
            }
        }
    }

    /// Whether `last` is the newest known leader. The manifest of the next leader may have been
    /// received already, although its address could not be resolved.
    fn is_still_leader(&self, leader: &LeaderState, last: &Target) -> bool {
        match &self.spec {
            TargetSpec::Fixed { .. } => true,
            TargetSpec::Cluster { .. } => match leader.leader(unix_now()) {
                Ok(Some(newest)) => {
                    let newest = newest.target();
                    last.server.to_str() == newest.host() && last.port == newest.port()
                }
                _ => false,
            },
        }
    }

    /// Queries the name server for the target and its TTL.
    async fn query(
        &self,
        leader: &mut LeaderState,
    ) -> Result<(Arc<Target>, Duration), TargetError> {
        match &self.spec {
            TargetSpec::Fixed { host, port } => self.resolve_target(host, *port, None).await,
            TargetSpec::Cluster { domain, policy } => {
                let (manifest, manifest_ttl) = self.dns.leader_manifest(domain, policy).await?;
                leader.accept(manifest)?;
                let now = unix_now();
                let Some(manifest) = leader.leader(now)? else {
                    return Err(TargetError::NoManifest(domain.clone()));
                };
                let server = manifest.target();
                let leader = Some(manifest.leader_instance().clone());
                let resolved = self.resolve_target(server.host(), server.port(), leader);
                let (target, ttl) = resolved.await?;
                let valid = Duration::from_secs(manifest.valid_until().saturating_sub(now));
                Ok((target, ttl.min(manifest_ttl).min(valid)))
            }
        }
    }

    /// Resolves `host`, which may be an IP address, and returns the target with its TTL.
    async fn resolve_target(
        &self,
        host: &str,
        port: u16,
        leader: Option<LeaderInstance>,
    ) -> Result<(Arc<Target>, Duration), TargetError> {
        let server = ServerName::try_from(host.to_owned())
            .map_err(|_| TargetError::NoAddress(host.to_owned()))?;
        let (addresses, ttl) = match &server {
            ServerName::IpAddress(address) => (vec![IpAddr::from(*address)], MAX_TTL),
            _ => self.lookup_ip(host).await?,
        };
        let addresses: Vec<_> = addresses
            .into_iter()
            .take(MAX_ADDRESSES)
            .map(|address| SocketAddr::new(address, port))
            .collect();
        if addresses.is_empty() {
            return Err(TargetError::NoAddress(host.to_owned()));
        }
        let target = Target {
            server,
            port,
            addresses,
            leader,
        };
        Ok((Arc::new(target), ttl))
    }

    async fn lookup_ip(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), TargetError> {
        match self.dns.lookup_ip(host).await? {
            Some((addresses, expires)) => Ok((addresses, time_until(expires))),
            None => Err(TargetError::NoAddress(host.to_owned())),
        }
    }
}

fn time_until(moment: Instant) -> Duration {
    moment.saturating_duration_since(Instant::now())
}

/// Waits for an answer within [`QUERY_TIMEOUT`]. `None` if the name or the record does not exist.
async fn with_timeout<T>(
    name: &str,
    query: impl Future<Output = Result<T, NetError>>,
) -> Result<Option<T>, TargetError> {
    let failed = |why: String| TargetError::Dns {
        name: name.to_owned(),
        why,
    };
    match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => Ok(None),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {QUERY_TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let v6 = addresses(&["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
        let v4 = addresses(&["192.0.2.1"]);
        let both = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"];
        assert_eq!(interleave(&[v6, v4.clone()]), addresses(&both));
        assert_eq!(interleave(std::slice::from_ref(&v4)), v4);
        assert_eq!(interleave(&[]), addresses(&[]));
    }
}
