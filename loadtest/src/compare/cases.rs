//! Measurements in front of the real Postgres: queries, COPY, handshakes and logins.

use super::run::Run;
use super::threads::{on_core, with_background_load};
use crate::endpoint::{Endpoint, Login};
use crate::error::{Error, Result};
use crate::in_memory;
use crate::load::{bulk, connect, query};
use crate::peers::postgres::SCALE;
use crate::peers::workspace::Placement;
use crate::peers::{self, Peer, PeerKind, SidecarMode};
use crate::report::Sample;

/// A measurement of one client is split into this many short ones. Its latency depends on how
/// deeply the cores sleep, which changes from one moment to the next.
const SINGLE_CLIENT_SPLIT: u8 = 8;
/// The same for a core that Postgres and the load share, so that the load runs on both halves of the cores.
const SHARED_SPLIT: u8 = 2;
/// The same for a dedicated core: there Postgres and the load answer at one of two rates, between
/// which they change within seconds, and the fewer queries there are, the more each costs a proxy.
const DEDICATED_SPLIT: u8 = 3;
/// Measurements of COPY for each round. One takes a third of a second.
const COPY_ROUNDS: usize = 2;
/// Concurrent connections of the handshake load.
const HANDSHAKE_CLIENTS: usize = 16;
/// Concurrent logins. Postgres forks for each.
const LOGIN_CLIENTS: usize = 8;
/// Rows for each MiB.
const ROWS_IN_MIB: u32 = 1024;

/// The reference arm without a network, see [`in_memory`].
pub(super) const IN_MEMORY: &str = "rustls in memory";

/// Ends the title of a case in which Postgres and the load keep off the proxy's core.
pub(super) const DEDICATED: &str = ", dedicated core";

/// Proxies through which a client logs in to Postgres itself: what a login costs without TLS, and with it.
const LEAVES_LOGIN_TO_CLIENT: [PeerKind; 2] = [PeerKind::PlainRelay, PeerKind::TokioBaseline];

/// The sidecar with `client_auth = password`.
const PASSWORD: &str = "sidecar, password from clients";

const QUERY: &[(&str, &str)] = &[
    ("cpu", "CPU µs/query"),
    ("tps", "queries/s"),
    ("p50", "p50 µs"),
    ("p99", "p99 µs"),
    ("load-cpu", "load CPU µs/query"),
];
const BULK: &[(&str, &str)] = &[
    ("cpu", "CPU s/GB"),
    ("rate", "GB/s"),
    ("load-cpu", "load CPU s/GB"),
];
const HANDSHAKE: &[(&str, &str)] = &[
    ("per-core", "per CPU second"),
    ("rate", "per second"),
    ("p50", "p50 µs"),
];
const LOGIN: &[(&str, &str)] = &[
    ("rate", "logins/s"),
    ("p50", "p50 µs"),
    ("p99", "p99 µs"),
    ("cpu", "CPU ms/login"),
];

/// A part that measures queries.
struct QueryPart {
    /// The first word of its cases' keys.
    key: &'static str,
    /// The number of short measurements instead of a long one.
    split: u8,
    /// Whether Postgres and the load keep off the proxies' core.
    dedicated: bool,
}

impl Run<'_> {
    pub(super) fn queries(&mut self, peers: &[Peer]) -> Result<()> {
        let part = QueryPart {
            key: "select",
            split: SHARED_SPLIT,
            dedicated: false,
        };
        self.selects(peers, self.options.clients.clone(), &part)
    }

    /// The same with a dedicated core for the proxy. One client is left out: nothing competes for a
    /// core while one query is in progress.
    pub(super) fn apart(&mut self, peers: &[Peer]) -> Result<()> {
        let several = self.options.clients.iter().filter(|clients| **clients > 1);
        let part = QueryPart {
            key: "apart",
            split: DEDICATED_SPLIT,
            dedicated: true,
        };
        self.selects(peers, several.copied().collect(), &part)
    }

    fn selects(&mut self, peers: &[Peer], numbers: Vec<usize>, part: &QueryPart) -> Result<()> {
        let (progress, threads, cores) = (self.progress, self.threads, &self.workspace.cores);
        let shared = !part.dedicated && self.options.placement == Placement::Shared;
        let place = if part.dedicated { DEDICATED } else { "" };
        for clients in numbers {
            let (word, parts) = match clients {
                1 => ("client", SINGLE_CLIENT_SPLIT),
                _ => ("clients", part.split),
            };
            // With one client the cores are idle most of the time, and a load that may move does not wait for the proxy.
            let alternates = shared && clients > 1;
            let rounds = self.options.rounds * usize::from(parts);
            let seconds = self.options.seconds / f64::from(parts);
            let title = format!("SELECT, prepared, {clients} {word}{place}");
            let key = format!("{}-{clients}", part.key);
            let arms = arms(peers, clients == 1, part.dedicated);
            let names = names(&arms);
            self.measure_rounds(rounds, &key, &title, QUERY, &names, |index, round| {
                let peer = arms.get(index).ok_or(Error::Stopped)?;
                let (endpoint, login) = (peer.endpoint.clone(), peer.login.clone());
                let load = query::QueryLoad {
                    scale: SCALE,
                    threads,
                    pid: peer.pid(),
                    ..query::QueryLoad::new(endpoint, login, clients, seconds)
                };
                let outcome = match alternates {
                    true => cores.alternate_load(round, || load.run(progress))?,
                    false => load.run(progress)?,
                };
                Ok(query_sample(&outcome))
            })?;
        }
        Ok(())
    }

    pub(super) fn bulk(&mut self, peers: &[Peer]) -> Result<()> {
        let (progress, rows) = (self.progress, self.options.bulk * ROWS_IN_MIB);
        let directions = [
            (bulk::Direction::Out, "copy-out", "OUT"),
            (bulk::Direction::In, "copy-in", "IN"),
        ];
        for (direction, key, word) in directions {
            let title = format!("COPY {word}, {} MiB", self.options.bulk);
            let arms = arms(peers, false, false);
            let rounds = self.options.rounds * COPY_ROUNDS;
            self.measure_rounds(rounds, key, &title, BULK, &names(&arms), |index, round| {
                let peer = arms.get(index).ok_or(Error::Stopped)?;
                let load = bulk::CopyLoad {
                    endpoint: peer.endpoint.clone(),
                    login: peer.login.clone(),
                    direction,
                    rows,
                    // Once for each arm: it verifies the bytes, not the speed.
                    check: round == 0,
                    pid: peer.pid(),
                };
                let outcome = load.run(progress)?;
                Ok(sample_of([
                    outcome.cpu_per_gb(),
                    Some(outcome.gb_per_second()),
                    Some(outcome.load_cpu_per_gb()),
                ]))
            })?;
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, peers: &[Peer]) -> Result<()> {
        let upstream = &self.postgres.upstream;
        let attested = peers::start_sidecar(self.workspace, upstream, SidecarMode::attested())?;
        self.handshakes(peers, &attested)?;
        let mode = SidecarMode::attested_password();
        let password = peers::start_sidecar(self.workspace, upstream, mode)?;
        let others = peers
            .iter()
            .filter(|peer| LEAVES_LOGIN_TO_CLIENT.contains(&peer.kind));
        self.logins(&attested, &password, others)
    }

    fn handshakes(&mut self, peers: &[Peer], attested: &Peer) -> Result<()> {
        let haproxy = peers.iter().find(|peer| peer.kind == PeerKind::HaProxy);
        let to = |peer: &Peer| Some((peer.handshake.clone()?, peer.pid()));
        let mut arms = vec![(IN_MEMORY, None)];
        arms.extend(haproxy.map(|peer| ("haproxy", to(peer))));
        arms.push(("sidecar", to(attested)));
        let names: Vec<_> = arms.iter().map(|(name, _)| (*name).to_owned()).collect();
        let (workspace, progress, wanted) = (self.workspace, self.progress, self.seconds());
        let (threads, login) = (self.threads, attested.login.clone());
        let title = "Full mutual TLS 1.3 handshakes, one cached certificate";
        self.measure("handshake", title, HANDSHAKE, &names, |index, _| match arms
            .get(index)
            .and_then(|(_, arm)| arm.as_ref())
        {
            None => {
                let handshake = || in_memory::handshakes_per_core(&workspace.tdx, wanted);
                let rate = with_background_load(threads, handshake, || {
                    on_core(&workspace.cores.proxy, handshake)
                })?;
                Ok(sample_of([Some(rate), None, None]))
            }
            Some((endpoint, pid)) => {
                let until = connect::Until::Handshake;
                let load = connect_load(
                    endpoint,
                    &login,
                    until,
                    HANDSHAKE_CLIENTS,
                    wanted.as_secs_f64(),
                );
                let load = connect::ConnectLoad {
                    threads,
                    pid: *pid,
                    ..load
                };
                let outcome = require_all_connected(load.run(progress)?)?;
                let p50 = outcome.latencies.percentile(50.0);
                Ok(sample_of([
                    outcome.per_core(),
                    Some(outcome.per_second()),
                    Some(p50),
                ]))
            }
        })
    }

    fn logins<'a>(
        &mut self,
        scram: &Peer,
        password: &Peer,
        others: impl Iterator<Item = &'a Peer>,
    ) -> Result<()> {
        let workspace = self.workspace;
        let direct = peers::start(PeerKind::Direct, workspace, &self.postgres.upstream)?;
        let arm = |name: &str, peer: &Peer, login| {
            (name.to_owned(), peer.endpoint.clone(), login, peer.pid())
        };
        let (own, of_sidecar) = (workspace.scram_login(), workspace.secret_scram_login());
        let mut arms = vec![arm("direct", &direct, own.clone())];
        arms.extend(others.map(|peer| arm(&peer.kind.to_string(), peer, own.clone())));
        arms.push(arm("sidecar", scram, of_sidecar.clone()));
        arms.push(arm(PASSWORD, password, of_sidecar));
        let names: Vec<_> = arms.iter().map(|(name, ..)| name.clone()).collect();
        let (progress, threads, seconds) = (self.progress, self.threads, self.options.seconds);
        let title = "Logins, SCRAM to the sidecar and to Postgres";
        self.measure("login", title, LOGIN, &names, |index, _| {
            let (_, endpoint, login, pid) = arms.get(index).ok_or(Error::Stopped)?;
            let load = connect_load(
                endpoint,
                login,
                connect::Until::Login,
                LOGIN_CLIENTS,
                seconds,
            );
            let load = connect::ConnectLoad {
                threads,
                pid: *pid,
                ..load
            };
            let outcome = require_all_connected(load.run(progress)?)?;
            Ok(sample_of([
                Some(outcome.per_second()),
                Some(outcome.latencies.percentile(50.0)),
                Some(outcome.latencies.percentile(99.0)),
                outcome.per_core().map(|per_core| 1e3 / per_core),
            ]))
        })
    }
}

fn connect_load(
    endpoint: &Endpoint,
    login: &Login,
    until: connect::Until,
    clients: usize,
    seconds: f64,
) -> connect::ConnectLoad {
    connect::ConnectLoad::new(endpoint.clone(), login.clone(), until, clients, seconds)
}

/// Fails if any connection failed: the measured rate would be invalid.
fn require_all_connected(outcome: connect::Outcome) -> Result<connect::Outcome> {
    match (outcome.failed, &outcome.reason) {
        (0, _) => Ok(outcome),
        (failed, reason) => {
            let reason = reason.clone().unwrap_or_default();
            Err(Error::Server(format!(
                "{failed} connections failed: {reason}"
            )))
        }
    }
}

/// The arms that differ: by itself a shard polls only for a `few` clients, and never in a stream. To poll for many is meant
/// for a `dedicated` core.
pub(super) fn arms(peers: &[Peer], few: bool, dedicated: bool) -> Vec<&Peer> {
    let differs = |peer: &&Peer| match peer.kind {
        PeerKind::SidecarNoPoll => few,
        PeerKind::SidecarPoll => dedicated,
        _ => true,
    };
    peers.iter().filter(differs).collect()
}

pub(super) fn names(peers: &[&Peer]) -> Vec<String> {
    peers.iter().map(|peer| peer.kind.to_string()).collect()
}

pub(super) fn sample_of<const N: usize>(figures: [Option<f64>; N]) -> Sample {
    Sample {
        figures: figures.to_vec(),
        latency: None,
    }
}

/// The values are in the order of [`QUERY`].
pub(super) fn query_sample(outcome: &query::Outcome) -> Sample {
    let [latencies, ..] = &outcome.latencies;
    Sample {
        figures: vec![
            outcome.micros_per_query(),
            Some(outcome.per_second()),
            Some(latencies.percentile(50.0)),
            Some(latencies.percentile(99.0)),
            Some(outcome.load_micros_per_query()),
        ],
        latency: Some(latencies.summary()),
    }
}

/// The columns of [`query_sample`].
pub(super) fn query_columns() -> &'static [(&'static str, &'static str)] {
    QUERY
}
