//! Measurements with many connections: idle memory, growth, connection storms; and verdicts.

use std::time::Duration;

use super::cases::{query_columns, query_sample, sample_of};
use super::run::Run;
use crate::error::{Error, Result};
use crate::in_memory;
use crate::load::{connection_storm, idle, query};
use crate::peers::postgres::SCALE;
use crate::peers::{self, NOT_WITH_FAKE_POSTGRES, Peer, PeerKind, SidecarMode, fake_postgres};
use crate::report::IdleMemory;
use crate::stats::format_figure;

/// Active connections of the growth case.
pub(super) const ACTIVE: usize = 16;
/// Sessions during a connection storm.
const SESSIONS: usize = 8;
/// Storms for each round. Few queries determine a p99, so one is not enough.
const STORMS_PER_ROUND: usize = 3;
/// Time before a storm, and time that the sessions continue after its start.
const BEFORE: Duration = Duration::from_secs(3);
const DURING: Duration = Duration::from_secs(5);

/// The arm whose clients are attested, as in production.
pub(super) const ATTESTED: &str = "sidecar, attested";

const STORM: &[(&str, &str)] = &[
    ("p99-before", "p99 before µs"),
    ("p99-during", "p99 during µs"),
    ("p999-during", "p99.9 during µs"),
    ("admitted", "admitted"),
    ("refused", "refused"),
    ("took", "took s"),
];
const VERDICTS: &[(&str, &str)] = &[
    ("cached", "cached µs"),
    ("first", "first on a thread µs"),
    ("known", "known platform µs"),
    ("dcap-qvl", "dcap-qvl µs"),
];

impl Run<'_> {
    pub(super) fn idle(&mut self) -> Result<()> {
        let (_fake, upstream) = fake_postgres::start(self.workspace)?;
        let wanted = self.options.idle.min(self.workspace.max_connections());
        if wanted < self.options.idle {
            self.remark(format!(
                "Idle connections: {wanted} instead of {}, because the system limits a process to \
                 {} descriptors.",
                self.options.idle, self.workspace.max_descriptors
            ));
        }
        let proxies = self.options.arms.iter().filter(|kind| {
            !matches!(kind, PeerKind::Direct | PeerKind::SidecarPoll)
                && !NOT_WITH_FAKE_POSTGRES.contains(kind)
        });
        let mut arms: Vec<(String, Option<PeerKind>)> = proxies
            .map(|kind| (kind.to_string(), Some(*kind)))
            .collect();
        arms.push((ATTESTED.to_owned(), None));
        for (arm, kind) in arms {
            let started = match kind {
                Some(kind) => peers::start(kind, self.workspace, &upstream),
                None => peers::start_sidecar(self.workspace, &upstream, SidecarMode::attested()),
            };
            self.progress.status(&format!("idle: {arm}"));
            match started.and_then(|peer| self.measure_idle(&peer, wanted)) {
                Ok(outcome) => {
                    let each = format_figure(outcome.per_connection(outcome.after_idle));
                    self.progress
                        .log(&format!("{wanted} idle connections, {arm}: {each} KB each"));
                    self.report.idle.push(IdleMemory { arm, outcome });
                }
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => self.remark(format!("idle connections, {arm}: {error}")),
            }
        }
        Ok(())
    }

    fn measure_idle(&self, peer: &Peer, wanted: usize) -> Result<idle::Outcome> {
        let load = idle::IdleLoad {
            endpoint: peer.endpoint.clone(),
            login: peer.login.clone(),
            steps: vec![wanted / 5, wanted / 2, wanted],
            idle_time: self.options.idle_time,
            pid: peer.pid().ok_or(Error::Stopped)?,
        };
        load.run(self.progress)
    }

    pub(super) fn growth(&mut self) -> Result<()> {
        let (_fake, upstream) = fake_postgres::start(self.workspace)?;
        let many = self
            .options
            .growth
            .min(self.workspace.max_connections())
            .max(ACTIVE);
        let wanted = [PeerKind::TokioBaseline, PeerKind::Sidecar].into_iter();
        let wanted = wanted.filter(|kind| self.options.arms.contains(kind));
        let peers = wanted
            .map(|kind| peers::start(kind, self.workspace, &upstream))
            .collect::<Result<Vec<_>>>()?;
        let arms: Vec<(&Peer, usize)> = peers
            .iter()
            .flat_map(|peer| [(peer, ACTIVE), (peer, many)])
            .collect();
        let names: Vec<_> = arms
            .iter()
            .map(|(peer, all)| growth_arm(peer.kind, *all))
            .collect();
        let (progress, threads, seconds) = (self.progress, self.threads, self.options.seconds);
        let title = format!("SELECT, {ACTIVE} active connections among many, fake Postgres");
        self.measure("growth", &title, query_columns(), &names, |index, _| {
            let (peer, all) = arms.get(index).ok_or(Error::Stopped)?;
            let (endpoint, login) = (peer.endpoint.clone(), peer.login.clone());
            let load = query::QueryLoad {
                idle: all - ACTIVE,
                threads,
                pid: peer.pid(),
                ..query::QueryLoad::new(endpoint, login, ACTIVE, seconds)
            };
            Ok(query_sample(&load.run(progress)?))
        })
    }

    pub(super) fn storm(&mut self) -> Result<()> {
        let mode = SidecarMode {
            all_cores: true,
            ..SidecarMode::attested()
        };
        let (workspace, progress, threads) = (self.workspace, self.progress, self.threads);
        let (upstream, count) = (&self.postgres.upstream, self.options.unknown_clients);
        let title = format!("{count} unknown clients connect during {SESSIONS} sessions");
        self.measure_rounds(
            self.options.rounds * STORMS_PER_ROUND,
            "storm",
            &title,
            STORM,
            &["sidecar".to_owned()],
            |_, round| {
                // A new sidecar for each storm: the previous one knows the certificates.
                let peer = peers::start_sidecar(workspace, upstream, mode)?;
                let (endpoint, login) = (peer.endpoint.clone(), peer.login.clone());
                let unknown_client = |number| {
                    let identity = workspace
                        .tdx
                        .identity(&format!("unknown client {round} {number}"))?;
                    peer.endpoint.with_identity(&identity)
                };
                let load = connection_storm::ConnectionStorm {
                    unknown_clients: (0..count).map(unknown_client).collect::<Result<_>>()?,
                    sessions: query::QueryLoad {
                        scale: SCALE,
                        threads,
                        pid: peer.pid(),
                        ..query::QueryLoad::new(endpoint, login.clone(), SESSIONS, 1.0)
                    },
                    login,
                    before: BEFORE,
                    during: DURING,
                };
                let outcome = load.run(progress)?;
                if let Some(reason) = &outcome.admission.reason {
                    progress.log(&format!("an unknown client was refused: {reason}"));
                }
                let (before, during) = outcome.p99();
                let whole =
                    |count: usize| Some(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
                Ok(sample_of([
                    Some(before),
                    Some(during),
                    Some(outcome.p999()),
                    whole(outcome.admission.admitted),
                    whole(outcome.admission.refused),
                    Some(outcome.admission.took.as_secs_f64()),
                ]))
            },
        )
    }

    pub(super) fn verdicts(&mut self) -> Result<()> {
        let (workspace, certificates) = (self.workspace, self.options.certificates);
        let title = "Cost of verdicts, in memory";
        self.measure(
            "verdicts",
            title,
            VERDICTS,
            &["attest".to_owned()],
            |_, _| {
                let verdicts = in_memory::verdict_costs(&workspace.tdx, certificates)?;
                Ok(sample_of([
                    Some(verdicts.cached),
                    Some(verdicts.cold),
                    Some(verdicts.known_platform),
                    Some(verdicts.dcap_qvl),
                ]))
            },
        )
    }
}

/// The arm for a proxy with this number of connections.
pub(super) fn growth_arm(kind: PeerKind, connections: usize) -> String {
    format!("{kind}, {connections}")
}
