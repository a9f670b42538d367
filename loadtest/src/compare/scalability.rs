//! What is about many connections, and about strangers.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::cases::{figures, query_columns, sample};
use super::run::Run;
use crate::error::{Error, Result};
use crate::in_memory;
use crate::load::{connection_storm, idle, query};
use crate::peers::postgres::SCALE;
use crate::peers::process::{Process, command, free_address};
use crate::peers::workspace::House;
use crate::peers::{self, Kind, Mode, Peer, Upstream};
use crate::report::Climb;
use crate::stats::figure;

/// Connections that ask, for growth.
pub(super) const ACTIVE: usize = 16;
/// Sessions beside a storm.
const SESSIONS: usize = 8;
/// A p99 is made by few queries: so many storms for each round.
const STORMS: usize = 3;
/// How long it is quiet before a storm, and how long the sessions go on.
const QUIET: Duration = Duration::from_secs(3);
const STORMY: Duration = Duration::from_secs(5);
/// How long idle connections rest before the last look.
const REST: Duration = Duration::from_secs(5);

/// The arm whose clients are attested, as they are in production.
pub(super) const ATTESTED: &str = "sidecar, attested";

const STORM: &[(&str, &str)] = &[
    ("quiet", "p99 quiet µs"),
    ("stormy", "p99 stormy µs"),
    ("p999", "p99.9 stormy µs"),
    ("admitted", "admitted"),
    ("refused", "refused"),
    ("took", "took s"),
];
const VERDICTS: &[(&str, &str)] = &[
    ("cached", "cached µs"),
    ("first", "first of a thread µs"),
    ("known", "known platform µs"),
    ("bare", "dcap-qvl µs"),
];

impl Run<'_> {
    pub(super) fn idle(&mut self) -> Result<()> {
        let (_fake, upstream) = fake(self.house)?;
        let wanted = self.options.idle.min(self.house.most_connections());
        if wanted < self.options.idle {
            self.remark(format!(
                "Idle: {wanted} connections instead of {}: {} descriptors is all that this \
                 system allows a process.",
                self.options.idle, self.house.open_files
            ));
        }
        // The fake has no Unix socket, and who rests does not poll.
        let absent = [Kind::Direct, Kind::SidecarUnix, Kind::SidecarNoPoll];
        let proxies = self
            .options
            .arms
            .iter()
            .filter(|kind| !absent.contains(kind));
        let mut arms: Vec<(String, Option<Kind>)> = proxies
            .map(|kind| (kind.to_string(), Some(*kind)))
            .collect();
        arms.push((ATTESTED.to_owned(), None));
        for (arm, kind) in arms {
            let started = match kind {
                Some(kind) => peers::start(kind, self.house, &upstream),
                None => peers::start_sidecar(self.house, &upstream, Mode::attested()),
            };
            self.progress.now(&format!("idle: {arm}"));
            match started.and_then(|peer| self.climb(&peer, wanted)) {
                Ok(outcome) => {
                    let each = figure(outcome.per_connection(outcome.rested));
                    self.progress
                        .line(&format!("{wanted} idle, {arm}: {each} KB each"));
                    self.report.idle.push(Climb { arm, outcome });
                }
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => self.remark(format!("idle, {arm}: {error}")),
            }
        }
        Ok(())
    }

    fn climb(&self, peer: &Peer, wanted: usize) -> Result<idle::Outcome> {
        let plan = idle::Plan {
            target: peer.target.clone(),
            login: peer.login.clone(),
            steps: vec![wanted / 5, wanted / 2, wanted],
            rest: REST,
            pid: peer.pid().ok_or(Error::Stopped)?,
        };
        plan.run(self.progress)
    }

    pub(super) fn growth(&mut self) -> Result<()> {
        let (_fake, upstream) = fake(self.house)?;
        let many = self
            .options
            .growth
            .min(self.house.most_connections())
            .max(ACTIVE);
        let wanted = [Kind::Twin, Kind::Sidecar].into_iter();
        let wanted = wanted.filter(|kind| self.options.arms.contains(kind));
        let peers = wanted
            .map(|kind| peers::start(kind, self.house, &upstream))
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
        let title = format!("SELECT, {ACTIVE} active of so many connections, fake Postgres");
        self.rounds("growth", &title, query_columns(), &names, |index, _| {
            let (peer, all) = arms.get(index).ok_or(Error::Stopped)?;
            let (target, login) = (peer.target.clone(), peer.login.clone());
            let plan = query::Plan {
                resting: all - ACTIVE,
                threads,
                pid: peer.pid(),
                ..query::Plan::new(target, login, ACTIVE, seconds)
            };
            Ok(sample(&plan.run(progress)?))
        })
    }

    pub(super) fn storm(&mut self) -> Result<()> {
        let mode = Mode {
            spread: true,
            ..Mode::attested()
        };
        let (house, progress, threads) = (self.house, self.progress, self.threads);
        let (upstream, count) = (&self.postgres.upstream, self.options.strangers);
        let title = format!("{count} certificates never seen, beside {SESSIONS} sessions");
        self.so_many_rounds(
            self.options.rounds * STORMS,
            "storm",
            &title,
            STORM,
            &["sidecar".to_owned()],
            |_, round| {
                // A new one each time: the last one has seen the strangers.
                let peer = peers::start_sidecar(house, upstream, mode)?;
                let (target, login) = (peer.target.clone(), peer.login.clone());
                let stranger = |number| {
                    let chain = house.tdx.chain(&format!("stranger {round} {number}"))?;
                    peer.target.with_identity(&chain)
                };
                let plan = connection_storm::Plan {
                    strangers: (0..count).map(stranger).collect::<Result<_>>()?,
                    sessions: query::Plan {
                        scale: SCALE,
                        threads,
                        pid: peer.pid(),
                        ..query::Plan::new(target, login.clone(), SESSIONS, 1.0)
                    },
                    login,
                    quiet: QUIET,
                    stormy: STORMY,
                };
                let outcome = plan.run(progress)?;
                if let Some(reason) = &outcome.flood.reason {
                    progress.line(&format!("a stranger was refused: {reason}"));
                }
                let (quiet, stormy) = outcome.p99();
                let whole =
                    |count: usize| Some(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
                Ok(figures([
                    Some(quiet),
                    Some(stormy),
                    Some(outcome.p999()),
                    whole(outcome.flood.admitted),
                    whole(outcome.flood.refused),
                    Some(outcome.flood.took.as_secs_f64()),
                ]))
            },
        )
    }

    pub(super) fn verdicts(&mut self) -> Result<()> {
        let (house, certificates) = (self.house, self.options.certificates);
        let title = "Verdicts, without a network";
        self.rounds(
            "verdicts",
            title,
            VERDICTS,
            &["attest".to_owned()],
            |_, _| {
                let verdicts = in_memory::verdicts(&house.tdx, certificates)?;
                Ok(figures([
                    Some(verdicts.cached),
                    Some(verdicts.first),
                    Some(verdicts.known),
                    Some(verdicts.bare),
                ]))
            },
        )
    }
}

/// The arm of a proxy with so many connections.
pub(super) fn growth_arm(kind: Kind, connections: usize) -> String {
    format!("{kind}, {connections}")
}

/// A fake Postgres in a process of its own.
fn fake(house: &House) -> Result<(Process, Upstream)> {
    let address = free_address()?;
    let program = house.program("teesql-loadtest")?;
    let mut fake = command(&program, &house.cores.others, false);
    fake.args(["fake-postgres", "--listen", &address.to_string()]);
    let log = house.path(&format!("fake-{}.log", address.port()));
    let mut process = Process::start("fake-postgres", fake, log, Signal::SIGTERM)?;
    process.until_listening(address)?;
    let socket = None;
    Ok((process, Upstream { address, socket }))
}
