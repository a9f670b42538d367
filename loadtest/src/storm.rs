//! A storm of reconnecting clients: tens of thousands of clients with certificates that a new sidecar has not seen
//! connect at the same time, beside running sessions.
//!
//! Unlike the storm of a comparison ([`crate::load::connection_storm`]) it starts its own sidecar, with a fake
//! Postgres, and its clients log in, and come back if they are told to. The clients are in separate processes
//! ([`clients`]), since a process may have fewer descriptors than there are clients, and each client has one of several
//! source addresses on loopback, since one has 28,000 ports.
//!
//! The clients' own handshakes take CPU from the sidecar on a small machine, so that its times are upper bounds. The
//! CPU time of the load is therefore part of the result.

pub mod clients;
pub mod cpu_limit;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::endpoint::Login;
use crate::error::{Error, Result};
use crate::load::query::{self, QueryLoad};
use crate::mock_tdx::MockTdx;
use crate::peers::workspace::{Cores, Placement, Workspace};
use crate::peers::{self, Peer, SidecarMode, fake_postgres};
use crate::process_usage;
use crate::progress::Progress;
use crate::stats::format_figure;
use clients::{ClientProcess, Results};
use cpu_limit::{CpuLimit, Throttling};

/// Maximum clients of a storm.
pub const MAX_CLIENTS: usize = 100_000;
/// Clients of one process: two processes for 10,000 of them, each of which computes for 0.3 ms a client.
const CLIENTS_PER_PROCESS: usize = 5_000;

/// Phases of the sessions' load.
const BEFORE: usize = 0;
const DURING: usize = 1;
const AFTER: usize = 2;

/// What a storm consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Clients that connect, each with another certificate.
    pub clients: usize,
    /// Platform families of the clients' certificates.
    pub platforms: u8,
    /// Sessions that send queries in a closed loop meanwhile.
    pub sessions: usize,
    /// Share of the machine's CPU that the sidecar may use, 0 to 1. `None` sets no limit.
    pub cpu_share: Option<f64>,
    /// How long a client waits before it closes its connection and comes back. `None` is long enough for everybody.
    pub patience: Option<Duration>,
    /// Time before the storm, and the longest time that the sessions continue after its start.
    pub before: Duration,
    /// See `before`.
    pub during: Duration,
    /// Directory of the programs; by default that of the running one.
    pub programs: Option<PathBuf>,
}

/// The result of a storm.
#[derive(Debug)]
pub struct Report {
    options: Options,
    results: Results,
    /// The sessions' p99 before and during the storm, and their p99.9 during it, in µs.
    p99_before: f64,
    p99_during: f64,
    p999_during: f64,
    sessions_failed: Option<String>,
    /// CPU time of the sidecar, from the first connect to the last result.
    sidecar_cpu: Duration,
    took: Duration,
    throttling: Option<Throttling>,
    prepared: Duration,
}

/// Runs a storm.
///
/// # Errors
/// A process cannot be started, or the CPU cannot be limited. A refused client is counted.
pub fn run(options: &Options, progress: &Progress) -> Result<Report> {
    let cores = Cores::assign(Placement::Shared)?;
    let all_cores = cores.usable.len();
    let mut workspace = Workspace::new(cores, options.programs.as_deref())?;
    workspace.tdx = MockTdx::with_platforms(options.platforms)?;
    let (_fake, upstream) = fake_postgres::start(&workspace)?;
    let limit = options
        .cpu_share
        .map(|share| CpuLimit::new(share, all_cores));
    // Dropped after the sidecar: a cgroup with a process cannot be removed.
    let limit = limit.transpose()?;
    let mode = SidecarMode {
        all_cores: true,
        ..SidecarMode::attested()
    };
    let sidecar = peers::start_sidecar(&workspace, &upstream, mode)?;
    let pid = sidecar.pid().ok_or(Error::Stopped)?;
    if let Some(limit) = &limit {
        limit.add(pid)?;
    }
    let started = Instant::now();
    let mut processes = start_clients(options, &workspace, &sidecar)?;
    for process in &mut processes {
        process.wait_ready()?;
    }
    let prepared = started.elapsed();
    progress.log(&format!("{} clients are ready", options.clients));
    let storm = Storm {
        options,
        sidecar: &sidecar,
        login: &sidecar.login,
        progress,
    };
    let (sessions, clients) = storm.run(processes)?;
    let throttling = limit.as_ref().map(CpuLimit::throttling);
    drop(sidecar);
    let (sessions, sessions_failed) = match sessions {
        Ok(sessions) => (Some(sessions), None),
        Err(Error::Stopped) => return Err(Error::Stopped),
        Err(error) => (None, Some(error.to_string())),
    };
    let percentile = |phase: usize, percent| {
        let sessions = sessions.as_ref();
        let latencies = sessions.and_then(|sessions| sessions.latencies.get(phase));
        latencies.map_or(f64::NAN, |latencies| latencies.percentile(percent))
    };
    Ok(Report {
        options: options.clone(),
        results: clients.results,
        p99_before: percentile(BEFORE, 99.0),
        p99_during: percentile(DURING, 99.0),
        p999_during: percentile(DURING, 99.9),
        sessions_failed,
        sidecar_cpu: clients.sidecar_cpu,
        took: clients.took,
        throttling: throttling.transpose()?,
        prepared,
    })
}

/// Starts the processes of the clients, which prepare their certificates and ClientHellos.
fn start_clients(
    options: &Options,
    workspace: &Workspace,
    sidecar: &Peer,
) -> Result<Vec<ClientProcess>> {
    let firsts = (0..options.clients).step_by(CLIENTS_PER_PROCESS);
    firsts
        .map(|first| {
            let count = CLIENTS_PER_PROCESS.min(options.clients - first);
            let clients = clients::Clients {
                to: sidecar.endpoint.address,
                first,
                count,
                platforms: options.platforms,
                patience: options.patience,
            };
            ClientProcess::start(workspace, &clients)
        })
        .collect()
}

/// A storm that can begin.
struct Storm<'a> {
    options: &'a Options,
    sidecar: &'a Peer,
    login: &'a Login,
    progress: &'a Progress,
}

/// What all clients have seen, and what it cost.
struct ClientOutcome {
    results: Results,
    sidecar_cpu: Duration,
    took: Duration,
}

impl Storm<'_> {
    /// Runs the sessions and the storm beside them. The first result is that of the sessions.
    fn run(
        &self,
        processes: Vec<ClientProcess>,
    ) -> Result<(Result<query::Outcome>, ClientOutcome)> {
        let Options { before, during, .. } = self.options;
        let (endpoint, login) = (self.sidecar.endpoint.clone(), self.login.clone());
        let mut sessions = QueryLoad {
            pid: self.sidecar.pid(),
            ..QueryLoad::new(endpoint, login, self.options.sessions, 1.0)
        };
        sessions.timing.measured = *before + *during;
        let phase = Arc::clone(&sessions.phase);
        phase.store(BEFORE, Ordering::Relaxed);
        let before = sessions.timing.warmup + *before;
        let pid = self.sidecar.pid().ok_or(Error::Stopped)?;
        std::thread::scope(|scope| {
            let clients = scope.spawn(move || {
                std::thread::sleep(before);
                phase.store(DURING, Ordering::Relaxed);
                let outcome = run_clients(processes, pid);
                phase.store(AFTER, Ordering::Relaxed);
                outcome
            });
            let sessions = sessions.run(self.progress);
            let panicked = |_| Err(Error::Server("the clients' thread panicked".to_owned()));
            let clients = clients.join().unwrap_or_else(panicked)?;
            Ok((sessions, clients))
        })
    }
}

/// Lets all clients connect, and waits for their results.
fn run_clients(
    mut processes: Vec<ClientProcess>,
    pid: process_usage::Pid,
) -> Result<ClientOutcome> {
    let (started, cpu) = (Instant::now(), process_usage::cpu_of(pid)?);
    for process in &mut processes {
        process.begin()?;
    }
    let mut results = Results::default();
    for process in processes {
        results.add(process.results()?);
    }
    Ok(ClientOutcome {
        results,
        sidecar_cpu: process_usage::cpu_of(pid)?.saturating_sub(cpu),
        took: started.elapsed(),
    })
}

impl Report {
    /// What the clients have seen.
    #[must_use]
    pub fn results(&self) -> &Results {
        &self.results
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            clients,
            platforms,
            sessions,
            ..
        } = &self.options;
        let admitted = self.results.admitted_after_ms.len();
        write!(
            f,
            "{clients} clients of {platforms} platforms beside {sessions} sessions"
        )?;
        match self.options.cpu_share {
            Some(share) => writeln!(f, ", the sidecar on {share} of the CPU")?,
            None => writeln!(f)?,
        }
        writeln!(
            f,
            "admitted: {admitted}, of which {} came back after an earlier attempt",
            self.results.admitted_after_refusal
        )?;
        if let Some(last) = percentile(&self.results.admitted_after_ms, 100.0) {
            let times = [50.0, 99.0].map(|percent| {
                format_figure(percentile(&self.results.admitted_after_ms, percent).unwrap_or(0.0))
            });
            writeln!(
                f,
                "from the first connect to the last admission: {} s; half of them after {} ms, 99 % after {} ms; \
                 {} verifications a second",
                format_figure(last / 1e3),
                times[0],
                times[1],
                format_figure(f64::from(u32::try_from(admitted).unwrap_or(u32::MAX)) * 1e3 / last),
            )?;
        }
        counts(f, "attempts that failed", &self.results.refusals)?;
        if let Some(median) = percentile(&self.results.refused_after_ms, 50.0) {
            let last = percentile(&self.results.refused_after_ms, 100.0).unwrap_or(0.0);
            writeln!(
                f,
                "  such an attempt took {} ms (median), {} ms at most",
                format_figure(median),
                format_figure(last)
            )?;
        }
        counts(f, "gave up", &self.results.gave_up)?;
        counts(f, "failed without an answer", &self.results.unanswered)?;
        match &self.sessions_failed {
            Some(why) => writeln!(f, "sessions: {why}")?,
            None => writeln!(
                f,
                "sessions: p99 {} µs before, {} µs during, ratio {}; p99.9 during {} µs",
                format_figure(self.p99_before),
                format_figure(self.p99_during),
                format_figure(self.p99_during / self.p99_before),
                format_figure(self.p999_during),
            )?,
        }
        write!(
            f,
            "CPU: sidecar {} s, clients {} s, in {} s; clients prepared in {} s, {} KB each",
            format_figure(self.sidecar_cpu.as_secs_f64()),
            format_figure(self.results.cpu_ms / 1e3),
            format_figure(self.took.as_secs_f64()),
            format_figure(self.prepared.as_secs_f64()),
            format_figure(self.results.kilobytes / self.options.clients.max(1) as f64),
        )?;
        if let Some(throttling) = self.throttling {
            write!(
                f,
                "\nthe CPU limit stopped the sidecar in {} of {} periods, for {} s in all",
                throttling.throttled,
                throttling.periods,
                format_figure(throttling.time.as_secs_f64())
            )?;
        }
        Ok(())
    }
}

/// Shows how often each reason occurred, if any did.
fn counts(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    reasons: &BTreeMap<String, usize>,
) -> fmt::Result {
    writeln!(f, "{what}: {}", reasons.values().sum::<usize>())?;
    reasons
        .iter()
        .try_for_each(|(reason, count)| writeln!(f, "  {count} × {reason}"))
}

/// The nearest-rank percentile of times in ms; `None` if there are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank among at most 100,000"
)]
fn percentile(times: &[u32], percent: f64) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() as f64 * percent / 100.0).ceil() as usize;
    let time = times.get(rank.saturating_sub(1))?;
    Some(f64::from(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<u32> = (1..=200).rev().collect();
        let of = |percent| percentile(&times, percent);
        assert_eq!(
            [of(50.0), of(99.0), of(100.0)],
            [Some(100.0), Some(198.0), Some(200.0)]
        );
        assert_eq!(percentile(&[], 50.0), None);
    }
}
