//! Open loops at a share of what a direct connection bears, with a dedicated core for the proxy:
//! short queries alone, and a mixture with large results. On a small machine the tails are those of Postgres' processes,
//! which share a core: one case has a fake Postgres of one thread, so that it shows the tails of the proxies.
//!
//! Latency counts from the intended start ([`crate::latency`]). An arm that does not keep up has a
//! queue that grows for as long as the load runs, and its latencies say how long that was: such a
//! round has no latencies, only the share of the requests that were served.

use super::cases::{DEDICATED, arms, names, sample_of};
use super::run::Run;
use crate::error::{Error, Result};
use crate::load::query::{self, QueryLoad};
use crate::peers::postgres::SCALE;
use crate::peers::workspace::Placement;
use crate::peers::{self, NOT_WITH_FAKE_POSTGRES, Peer, PeerKind, Upstream, fake_postgres};
use crate::progress::Progress;
use crate::report::{Case, Sample};
use crate::script::QueryMode;

/// Each rate at which direct is tried, relative to the last one, and their number.
const PROBE_STEP: f64 = 0.85;
const MAX_PROBES: i32 = 12;
/// Direct has to keep up with a rate so many times in a row: what Postgres bears changes from one second to the next.
const PROBES_OF_A_RATE: usize = 3;
/// Shares of the direct capacity, in percent.
const SHARES: [u32; 3] = [30, TARGET_SHARE, 80];
/// There is a target for this share and number of sessions. It has so many times as many rounds: a few moments of a
/// round decide its p99.
const TARGET_SHARE: u32 = 60;
const TARGET_SESSIONS: usize = 64;
const TARGET_ROUNDS: usize = 3;
/// The share with a fake Postgres. At more than this, the load takes all of its core on a machine with two: behind a proxy each
/// request costs it more.
const FAKE_POSTGRES_SHARE: u32 = 30;
/// Sessions and share of the mixture. Each arm must bear it: a large result costs PgBouncer seven
/// times as much CPU as the sidecar.
const MIXTURE_SESSIONS: usize = 64;
const MIXTURE_SHARE: u32 = 30;
/// Length of a measurement of the mixture, relative to the others. In a tenth of a percent of the short queries there
/// would otherwise be two or three.
const MIXTURE_LENGTH: f64 = 3.0;
/// An arm that serves less than this percentage of the requests of a round is saturated.
const MIN_SERVED: f64 = 99.0;

const CAPACITY: &[(&str, &str)] = &[
    ("closed", "closed loop, queries/s"),
    ("open", "open loop, queries/s"),
];
const OPEN: &[(&str, &str)] = &[
    ("served", "served %"),
    ("p50", "p50 µs"),
    ("p90", "p90 µs"),
    ("p99", "p99 µs"),
    ("p99.9", "p99.9 µs"),
    ("p99.99", "p99.99 µs"),
    ("cpu", "CPU µs/query"),
    ("late", "p99 delay of the load µs"),
];
const MIXTURE: &[(&str, &str)] = &[
    ("served", "served %"),
    ("p50", "short: p50 µs"),
    ("p99", "short: p99 µs"),
    ("p99.9", "short: p99.9 µs"),
    ("large-p50", "large: p50 µs"),
    ("large-p99", "large: p99 µs"),
    ("cpu", "CPU µs/query"),
];

/// Identifier of the case with this number of sessions at this share of the direct capacity.
fn key_of(sessions: usize, share: u32) -> String {
    format!("open-{sessions}-{share}")
}

/// Identifier of the case that has a target.
pub(super) fn target_key() -> String {
    key_of(TARGET_SESSIONS, TARGET_SHARE)
}

/// What is asked at a share of the direct capacity, of each arm.
struct Requests<'a> {
    upstream: &'a Upstream,
    peers: &'a [Peer],
    mode: QueryMode,
    sessions: usize,
    rounds: usize,
    seconds: f64,
    name: String,
}

impl Run<'_> {
    pub(super) fn open_loop(&mut self, peers: &[Peer]) -> Result<()> {
        let postgres = self.postgres;
        for (sessions, rounds) in self.options.open_loops.clone() {
            let requests = Requests {
                upstream: &postgres.upstream,
                peers,
                mode: QueryMode::Prepared,
                sessions,
                rounds,
                seconds: self.options.seconds,
                name: format!("SELECT, prepared, {sessions} clients"),
            };
            let capacity = self.capacity(&requests, &format!("capacity-{sessions}"))?;
            for share in SHARES {
                let key = key_of(sessions, share);
                let times = match (sessions, share) {
                    (TARGET_SESSIONS, TARGET_SHARE) => TARGET_ROUNDS,
                    _ => 1,
                };
                let requests = Requests {
                    rounds: rounds * times,
                    name: requests.name.clone(),
                    ..requests
                };
                self.at_share(&requests, &key, (share, capacity), OPEN, open_figures)?;
            }
        }
        self.open_loop_with_fake_postgres()
    }

    fn open_loop_with_fake_postgres(&mut self) -> Result<()> {
        let Some((sessions, rounds)) = self.options.open_loops.first().copied() else {
            return Ok(());
        };
        let (fake, upstream) = fake_postgres::start(self.workspace)?;
        self.workspace.cores.place(Placement::Apart, fake.pid())?;
        let mut peers = Vec::new();
        for kind in &self.options.arms {
            if NOT_WITH_FAKE_POSTGRES.contains(kind) {
                continue;
            }
            match peers::start(*kind, self.workspace, &upstream) {
                Ok(peer) => peers.push(peer),
                Err(error) => self.remark(format!("fake Postgres: {kind} is left out: {error}")),
            }
        }
        let requests = Requests {
            upstream: &upstream,
            peers: &peers,
            mode: QueryMode::Prepared,
            sessions,
            rounds,
            seconds: self.options.seconds,
            name: format!("SELECT, prepared, {sessions} clients, fake Postgres"),
        };
        let capacity = self.capacity(&requests, "capacity-fake")?;
        let share = (FAKE_POSTGRES_SHARE, capacity);
        self.at_share(&requests, "open-fake", share, OPEN, open_figures)
    }

    pub(super) fn mixture(&mut self, peers: &[Peer]) -> Result<()> {
        let rounds = self.options.open_loops.iter().map(|(_, rounds)| *rounds);
        let (sessions, postgres) = (MIXTURE_SESSIONS, self.postgres);
        let requests = Requests {
            upstream: &postgres.upstream,
            peers,
            mode: QueryMode::Mixture,
            sessions,
            rounds: rounds.max().unwrap_or(1),
            seconds: self.options.seconds * MIXTURE_LENGTH,
            name: format!("95 % short queries, 5 % results of 1 MB, {sessions} clients"),
        };
        let capacity = self.capacity(&requests, "capacity-mixture")?;
        let share = (MIXTURE_SHARE, capacity);
        self.at_share(&requests, "mixture", share, MIXTURE, |load| {
            let [short, ..] = &load.latencies;
            vec![
                Some(short.percentile(50.0)),
                Some(short.percentile(99.0)),
                Some(short.percentile(99.9)),
                Some(load.large.percentile(50.0)),
                Some(load.large.percentile(99.0)),
                load.micros_per_query(),
            ]
        })
    }

    /// Requests per second that direct connections bear in an open loop, in the same run and
    /// placement. It is less than in a closed loop, where a process that gets its turn finds
    /// several requests at once: the search starts there and goes down until direct keeps up.
    fn capacity(&mut self, requests: &Requests<'_>, key: &str) -> Result<f64> {
        let direct = peers::start(PeerKind::Direct, self.workspace, requests.upstream)?;
        let load = self.load(requests, &direct);
        let progress = self.progress;
        let title = format!("{}, what direct bears{DEDICATED}", requests.name);
        let arm = PeerKind::Direct.name();
        let arms = [arm.to_owned()];
        self.measure_rounds(1, key, &title, CAPACITY, &arms, |_, _| {
            let closed = load.run(progress)?.per_second();
            let mut rates = (0..MAX_PROBES).map(|probe| closed * PROBE_STEP.powi(probe));
            let rate = rates.try_fold((), |(), rate| {
                let probe = QueryLoad {
                    rate: Some(rate),
                    ..load.clone()
                };
                match keeps_up(&probe, rate, progress) {
                    Ok(true) => Err(Ok(rate)),
                    Ok(false) => Ok(()),
                    Err(error) => Err(Err(error)),
                }
            });
            let rate = rate.err().transpose()?;
            Ok(sample_of([Some(closed), rate]))
        })?;
        let case = self.report.case(key);
        let spread = case.and_then(|case| case.spread(arm, "open"));
        let failed = || Error::Server("direct does not keep up at any rate".to_owned());
        Ok(spread.ok_or_else(failed)?.median)
    }

    /// Measures all arms at `share` percent of `capacity`. `figures` are those after the share that
    /// was served.
    fn at_share(
        &mut self,
        requests: &Requests<'_>,
        key: &str,
        (share, capacity): (u32, f64),
        columns: &[(&str, &str)],
        figures: impl Fn(&query::Outcome) -> Vec<Option<f64>>,
    ) -> Result<()> {
        let rate = capacity * f64::from(share) / 100.0;
        let name = &requests.name;
        let title = format!("{name}, open loop at {share} % of direct{DEDICATED}");
        let arms = arms(requests.peers, false, true);
        let loads = arms.iter().map(|peer| QueryLoad {
            rate: Some(rate),
            ..self.load(requests, peer)
        });
        let (loads, names): (Vec<_>, _) = (loads.collect(), names(&arms));
        let progress = self.progress;
        self.measure_rounds(requests.rounds, key, &title, columns, &names, |index, _| {
            let load = loads.get(index).ok_or(Error::Stopped)?;
            let outcome = load.run(progress)?;
            let served = outcome.served(rate) * 100.0;
            Ok(rate_sample(served, &outcome, figures(&outcome)))
        })?;
        let saturated = self.report.case(key).and_then(saturated);
        saturated.into_iter().for_each(|text| self.remark(text));
        Ok(())
    }

    fn load(&self, requests: &Requests<'_>, peer: &Peer) -> QueryLoad {
        let (endpoint, login) = (peer.endpoint.clone(), peer.login.clone());
        QueryLoad {
            mode: requests.mode,
            scale: SCALE,
            threads: self.threads,
            pid: peer.pid(),
            ..QueryLoad::new(endpoint, login, requests.sessions, requests.seconds)
        }
    }
}

/// Whether the load is served at `rate` in each of [`PROBES_OF_A_RATE`] measurements.
fn keeps_up(load: &QueryLoad, rate: f64, progress: &Progress) -> Result<bool> {
    for _ in 0..PROBES_OF_A_RATE {
        if load.run(progress)?.served(rate) * 100.0 < MIN_SERVED {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The figures of [`OPEN`] after the share that was served.
fn open_figures(load: &query::Outcome) -> Vec<Option<f64>> {
    let [latencies, ..] = &load.latencies;
    let percentiles = [50.0, 90.0, 99.0, 99.9, 99.99];
    let percentiles = percentiles.map(|percent| Some(latencies.percentile(percent)));
    let cost = [
        load.micros_per_query(),
        Some(load.lateness.percentile(99.0)),
    ];
    percentiles.into_iter().chain(cost).collect()
}

/// The share that was served and, unless the arm was saturated, the other figures.
fn rate_sample(served: f64, outcome: &query::Outcome, figures: Vec<Option<f64>>) -> Sample {
    let kept = served >= MIN_SERVED;
    let [latencies, ..] = &outcome.latencies;
    let rest = figures.into_iter().map(|figure| figure.filter(|_| kept));
    Sample {
        figures: std::iter::once(Some(served)).chain(rest).collect(),
        latency: kept.then(|| latencies.summary()),
    }
}

/// A remark that lists the arms that were saturated, and in how many of their rounds.
fn saturated(case: &Case) -> Option<String> {
    let arm = |arm: &str| {
        let served: Vec<f64> = case.figures(arm, "served").into_iter().flatten().collect();
        let low: Vec<f64> = served
            .iter()
            .copied()
            .filter(|served| *served < MIN_SERVED)
            .collect();
        let least = low.iter().copied().reduce(f64::min)?;
        let (low, all) = (low.len(), served.len());
        Some(format!(
            "{arm} in {low} of {all} rounds (served {least:.0} %)"
        ))
    };
    let arms: Vec<_> = case
        .arms
        .iter()
        .filter_map(|samples| arm(&samples.arm))
        .collect();
    (!arms.is_empty()).then(|| {
        format!(
            "{}: saturated, and therefore without latencies: {}.",
            case.title,
            arms.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, Samples};

    #[test]
    fn saturated_arms_are_named_with_what_they_served() {
        let column = |(key, title): &(&str, &str)| Column {
            key: (*key).to_owned(),
            title: (*title).to_owned(),
        };
        let arm = |arm: &str, served: &[f64]| {
            let sample = |served: &f64| Sample {
                figures: vec![Some(*served)],
                latency: None,
            };
            Samples {
                arm: arm.to_owned(),
                rounds: served.iter().map(|served| Some(sample(served))).collect(),
            }
        };
        let case = |arms| Case {
            key: String::new(),
            title: "At 80 %".to_owned(),
            columns: OPEN.iter().map(column).collect(),
            arms,
        };
        let fine = arm("direct", &[99.0, 100.2]);
        assert_eq!(saturated(&case(vec![fine.clone()])), None);
        let text = saturated(&case(vec![fine, arm("stunnel", &[98.9, 99.5, 71.2])]));
        let expected = "At 80 %: saturated, and therefore without latencies: stunnel in 2 of 3 rounds (served 71 %).";
        assert_eq!(text.unwrap(), expected);
    }
}
