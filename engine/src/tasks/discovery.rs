//! Where the server is: a fixed name, or the leader of a cluster.
//!
//! Names are looked up on the control thread, one look-up at a time; shards read
//! the last answer, and ask for another when its time is over or it has led them
//! nowhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use attest::manifest::{LeaderState, Manifest, ManifestPolicy, join_chunks};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use rustls::pki_types::ServerName;
use tokio::sync::Mutex;

use crate::io::clock::unix_now;
use crate::io::target::{Target, TargetError, TargetSpec};

/// For one question. hickory-resolver asks again every second or so until
/// [`ATTEMPT`] is over, then once more.
const DEADLINE: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(2);
/// Answers are kept for their TTL, within these bounds: a TTL of 0 must not
/// mean a question for each connection, nor a long one a leader of last week.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// An answer that is over and cannot be renewed is used for this long before it
/// is tried again.
const GRACE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;

/// Asks `server`, or whom this machine asks.
///
/// # Errors
/// This machine's resolv.conf cannot be read.
pub(crate) fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), vec![name_server(server)]),
            TokioRuntimeProvider::default(),
        ),
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = ATTEMPT;
    // The resolver remembers. Who asks again because a server does not answer
    // must not be told the same.
    options.cache_size = 0;
    builder.build()
}

/// By UDP, and by TCP where an answer is cut.
fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut name_server.connections {
        connection.port = server.port();
    }
    name_server
}

/// The last answer, and the way to the next one.
pub(crate) struct TargetResolver {
    place: TargetSpec,
    resolver: TokioResolver,
    control: tokio::runtime::Handle,
    current: ArcSwapOption<Answer>,
    /// Held while a question is under way: whoever waits gets its answer.
    asking: Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    leader: LeaderState,
    /// The last question's end, if it brought nothing.
    failed: Option<(Instant, TargetError)>,
}

struct Answer {
    target: Arc<Target>,
    until: Instant,
}

impl TargetResolver {
    pub(crate) fn new(
        place: TargetSpec,
        resolver: TokioResolver,
        control: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            place,
            resolver,
            control,
            current: ArcSwapOption::empty(),
            asking: Mutex::default(),
        })
    }

    /// The last answer, if its time is not over and it is not `stale`.
    pub(crate) fn fresh(&self, stale: Option<&Arc<Target>>) -> Option<Arc<Target>> {
        let current = self.current.load();
        let answer = current.as_ref()?;
        let is_stale = stale.is_some_and(|stale| Arc::ptr_eq(stale, &answer.target));
        (!is_stale && Instant::now() < answer.until).then(|| Arc::clone(&answer.target))
    }

    /// Looks it up on the control thread, and tells `done`.
    pub(crate) fn lookup(
        self: &Arc<Self>,
        stale: Option<Arc<Target>>,
        done: impl FnOnce(Result<Arc<Target>, TargetError>) + Send + 'static,
    ) {
        let resolver = Arc::clone(self);
        self.control
            .spawn(async move { done(resolver.find(stale).await) });
    }

    /// The answer of the question that is under way, or of one more.
    pub(crate) async fn find(
        &self,
        stale: Option<Arc<Target>>,
    ) -> Result<Arc<Target>, TargetError> {
        let came = Instant::now();
        let mut asking = self.asking.lock().await;
        if let Some(target) = self.fresh(stale.as_ref()) {
            return Ok(target);
        }
        if let Some((ended, error)) = &asking.failed
            && came <= *ended
        {
            return Err(error.clone());
        }
        let (target, time) = match self.ask_or_keep(&mut asking.leader).await {
            Ok(found) => found,
            Err(error) => {
                asking.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        let target = self.known(target);
        self.current.store(Some(Arc::new(Answer {
            target: Arc::clone(&target),
            until: Instant::now() + time.clamp(SHORTEST, LONGEST),
        })));
        Ok(target)
    }

    /// Asks; where the name server has no answer, what it said last may do.
    async fn ask_or_keep(
        &self,
        leader: &mut LeaderState,
    ) -> Result<(Arc<Target>, Duration), TargetError> {
        match (self.ask(leader).await, self.current.load().as_ref()) {
            // The server itself may be there although the name server is not.
            (Err(error @ TargetError::Dns { .. }), Some(last))
                if self.still_leads(leader, &last.target) =>
            {
                tracing::warn!(%error, "using the last address");
                Ok((Arc::clone(&last.target), GRACE))
            }
            (answer, _) => answer,
        }
    }

    /// The same allocation where nothing has changed.
    fn known(&self, target: Arc<Target>) -> Arc<Target> {
        let current = self.current.load();
        match current.as_ref() {
            Some(last) if *last.target == *target => Arc::clone(&last.target),
            _ => {
                tracing::info!(server = target.name(), addresses = ?target.addresses, "server");
                target
            }
        }
    }

    /// Whether the newest leader is there: the next one's manifest may have come,
    /// and its address not.
    fn still_leads(&self, leader: &LeaderState, last: &Target) -> bool {
        match &self.place {
            TargetSpec::Fixed { .. } => true,
            TargetSpec::Cluster { .. } => match leader.leader(unix_now()) {
                Ok(Some(newest)) => {
                    let place = newest.target();
                    last.server.to_str() == place.host() && last.port == place.port()
                }
                _ => false,
            },
        }
    }

    async fn ask(&self, leader: &mut LeaderState) -> Result<(Arc<Target>, Duration), TargetError> {
        match &self.place {
            TargetSpec::Fixed { host, port } => self.addresses(host, *port).await,
            TargetSpec::Cluster { domain, trust } => {
                let (manifest, fresh) = self.manifest(domain, trust).await?;
                leader.accept(manifest)?;
                let now = unix_now();
                let Some(manifest) = leader.leader(now)? else {
                    return Err(TargetError::NoManifest(domain.clone()));
                };
                let place = manifest.target();
                let (target, time) = self.addresses(place.host(), place.port()).await?;
                let valid = Duration::from_secs(manifest.valid_until().saturating_sub(now));
                Ok((target, time.min(fresh).min(valid)))
            }
        }
    }

    /// The one TXT record, verified, and its TTL.
    async fn manifest(
        &self,
        domain: &str,
        trust: &ManifestPolicy,
    ) -> Result<(Manifest, Duration), TargetError> {
        let name = format!("_teesql-leader.{}.", domain.trim_end_matches('.'));
        let lookup = within(&name, self.resolver.txt_lookup(name.as_str())).await?;
        let Some(lookup) = lookup else {
            return Err(TargetError::NoManifest(name));
        };
        let fresh = left(lookup.valid_until());
        let mut records = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::TXT(txt) => Some(txt),
                _ => None,
            });
        let txt = match (records.next(), records.next()) {
            (Some(txt), None) => txt,
            (Some(_), Some(_)) => return Err(TargetError::ManyManifests(name)),
            (None, _) => return Err(TargetError::NoManifest(name)),
        };
        let chunks: Vec<&[u8]> = txt.txt_data.iter().map(AsRef::as_ref).collect();
        let unverified = Manifest::parse(&join_chunks(&chunks)?)?;
        Ok((unverified.verify(trust, unix_now())?, fresh))
    }

    async fn addresses(
        &self,
        host: &str,
        port: u16,
    ) -> Result<(Arc<Target>, Duration), TargetError> {
        let server = ServerName::try_from(host.to_owned())
            .map_err(|_| TargetError::NoAddress(host.to_owned()))?;
        let (addresses, time) = match &server {
            ServerName::IpAddress(address) => (vec![IpAddr::from(*address)], LONGEST),
            _ => self.resolve(host).await?,
        };
        let addresses: Vec<_> = addresses
            .into_iter()
            .take(MOST_ADDRESSES)
            .map(|address| SocketAddr::new(address, port))
            .collect();
        if addresses.is_empty() {
            return Err(TargetError::NoAddress(host.to_owned()));
        }
        let target = Target {
            server,
            port,
            addresses,
        };
        Ok((Arc::new(target), time))
    }

    async fn resolve(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), TargetError> {
        let lookup = within(host, self.resolver.lookup_ip(host)).await?;
        let Some(lookup) = lookup else {
            return Err(TargetError::NoAddress(host.to_owned()));
        };
        let time = left(lookup.valid_until());
        Ok((lookup.iter().collect(), time))
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// An answer in time; `None` where the name server says that there is nothing.
async fn within<T>(
    name: &str,
    question: impl Future<Output = Result<T, NetError>>,
) -> Result<Option<T>, TargetError> {
    let failed = |why: String| TargetError::Dns {
        name: name.to_owned(),
        why,
    };
    match tokio::time::timeout(DEADLINE, question).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => Ok(None),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no answer in time".to_owned())),
    }
}
