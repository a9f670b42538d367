//! A whole run: clients, faults from a seed, and the check afterwards.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checker::{self, FaultWindow, Violation};
use super::history::{History, Outcome};
use super::members::Members;
use super::plan::{self, Fault, PlannedFault};
use super::workload::{self, Clients, Counters, Login};
use crate::error::{Error, Result, io_context};

/// How long the cluster may take to be whole again after a fault: Patroni's ttl, an election, and a rewind.
const RECOVERY_LIMIT: Duration = Duration::from_secs(180);
/// The time without a fault after each recovery, in which nothing may fail.
const QUIET: Duration = Duration::from_secs(5);
/// The last failures of a run may be seen this long after the cluster is whole again.
const SETTLE: Duration = Duration::from_secs(3);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stands for the faults and their order.
    pub seed: u64,
    /// The number of faults.
    pub faults: usize,
    /// The number of writers, and of readers of each member.
    pub clients: Clients,
}

/// Runs it, and returns the report. Progress goes to standard error.
///
/// # Errors
/// The cluster does not work at all, or a promise was broken.
pub fn run(options: &Options) -> Result<String> {
    let members = Members::from_environment()?;
    let writer = Login::from_environment()?;
    let forwarders = Forwarders::start(members.names())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(io_context("cannot start a runtime"))?;
    if !members.await_healthy(RECOVERY_LIMIT) {
        return Err(Error::Peer("the cluster is not whole".to_owned()));
    }
    runtime.block_on(workload::create_table(&writer))?;
    let start = Instant::now();
    let counters = Arc::new(Counters::default());
    let clients = {
        let (writer, readers) = (writer.clone(), forwarders.logins()?);
        let (counters, clients) = (Arc::clone(&counters), options.clients);
        runtime
            .spawn(async move { workload::run(&writer, &readers, clients, &counters, start).await })
    };
    let mut run = Run {
        members,
        counters,
        start,
        windows: Vec::new(),
        failed: Vec::new(),
    };
    run.inject_all(options);
    run.counters.stop();
    let history = runtime.block_on(clients);
    let history = history.map_err(|error| Error::Peer(error.to_string()))?;
    let table = runtime.block_on(workload::read_table(&writer))?;
    let violations = checker::check(&history, &BTreeSet::from_iter(table), &run.windows);
    run.conclude(options, &history, &violations)
}

struct Run {
    members: Members,
    counters: Arc<Counters>,
    start: Instant,
    windows: Vec<FaultWindow>,
    /// Faults after which the cluster did not recover.
    failed: Vec<String>,
}

impl Run {
    fn inject_all(&mut self, options: &Options) {
        std::thread::sleep(QUIET);
        let count = self.members.names().len();
        for (number, planned) in plan::faults(options.seed, count)
            .take(options.faults)
            .enumerate()
        {
            self.inject(number, planned);
            if !self.failed.is_empty() {
                return;
            }
            std::thread::sleep(QUIET);
        }
    }

    fn inject(&mut self, number: usize, planned: PlannedFault) {
        let names = self.members.names();
        let Some(member) = names.get(planned.member).cloned() else {
            return;
        };
        let from = self.start.elapsed();
        let before = self.counters.acknowledged();
        let mut outcome = match self.members.inject(&member, planned.fault) {
            Ok(()) => String::new(),
            Err(error) => format!(", not possible: {error}"),
        };
        if planned.fault != Fault::Switchover {
            std::thread::sleep(planned.length);
        }
        if let Err(error) = self.members.heal(&member, planned.fault) {
            outcome = format!("{outcome}, not healed: {error}");
        }
        let healed = Instant::now();
        if !self.members.await_healthy(RECOVERY_LIMIT) {
            self.failed.push(format!("fault {number} ({planned:?})"));
            outcome = format!("{outcome}, NOT RECOVERED");
        }
        std::thread::sleep(SETTLE);
        let until = self.start.elapsed();
        self.windows.push(FaultWindow { from, until });
        progress(&format!(
            "{:>6.1} s  fault {number}: {:?} of {member} for {:.1} s, whole again after {:.1} s, {} writes since{outcome}",
            from.as_secs_f64(),
            planned.fault,
            planned.length.as_secs_f64(),
            healed.elapsed().saturating_sub(SETTLE).as_secs_f64(),
            self.counters.acknowledged().saturating_sub(before),
        ));
    }

    fn conclude(
        &self,
        options: &Options,
        history: &History,
        violations: &[Violation],
    ) -> Result<String> {
        let count = |wanted: fn(&Outcome) -> bool| {
            let outcomes = history.writes.iter().map(|write| &write.outcome);
            outcomes.filter(|outcome| wanted(outcome)).count()
        };
        let text = format!(
            "seed {}: {} faults in {:.0} s; {} writes acknowledged, {} unknown, {} refused; {} reads; {} failures with \
             or without a reason",
            options.seed,
            self.windows.len(),
            self.start.elapsed().as_secs_f64(),
            count(|outcome| matches!(outcome, Outcome::Acknowledged { .. })),
            count(|outcome| *outcome == Outcome::Unknown),
            count(|outcome| *outcome == Outcome::Refused),
            history.reads.len(),
            history.failures.len(),
        );
        if violations.is_empty() && self.failed.is_empty() {
            return Ok(format!("{text}\nevery promise was kept"));
        }
        let failed = self
            .failed
            .iter()
            .map(|fault| format!("\nnot recovered after {fault}"));
        Err(Error::Peer(format!(
            "{text}{}\n{}",
            failed.collect::<String>(),
            checker::report(violations)
        )))
    }
}

/// A forwarder for the readers of each member.
struct Forwarders(Vec<(Child, PathBuf)>);

impl Forwarders {
    fn start(members: &[String]) -> Result<Self> {
        let folder = PathBuf::from(variable("TEESQL_DEV_FOLDER")?);
        let program = Path::new(&variable("TEESQL_DEV_BINARY")?).with_file_name("teesql-forward");
        let mut started = Self(Vec::new());
        for (position, member) in members.iter().enumerate() {
            let socket = folder.join(format!("readers-{member}"));
            std::fs::create_dir(&socket).map_err(io_context("cannot create a directory"))?;
            let target = variable("TEESQL_DEV_SIDECARS")?;
            let target = target
                .split(',')
                .nth(position)
                .unwrap_or_default()
                .to_owned();
            let child = Command::new(&program)
                .env("TEESQL_TARGET", target)
                .env("TEESQL_FORWARD_LISTEN", &socket)
                .env("TEESQL_GUEST_AGENT", variable("TEESQL_DEV_GUEST_AGENT")?)
                .stdin(Stdio::null())
                .spawn()
                .map_err(io_context("cannot start teesql-forward"))?;
            started.0.push((child, socket));
        }
        Ok(started)
    }

    fn logins(&self) -> Result<Vec<Login>> {
        let password = variable("TEESQL_DEV_READ_SECRET")?;
        let login = |(_, socket): &(Child, PathBuf)| Login {
            host: socket.display().to_string(),
            port: 5432,
            user: "teesql_read".to_owned(),
            password: password.clone(),
        };
        Ok(self.0.iter().map(login).collect())
    }
}

impl Drop for Forwarders {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Login {
    /// libpq's variables, which `dev` sets for the forwarder that knows all members.
    ///
    /// # Errors
    /// One is not set.
    pub fn from_environment() -> Result<Self> {
        Ok(Self {
            host: variable("PGHOST")?,
            port: variable("PGPORT")?
                .parse()
                .map_err(|_| Error::Usage("PGPORT is not a port".to_owned()))?,
            user: variable("PGUSER")?,
            password: variable("PGPASSWORD")?,
        })
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| Error::Usage(format!("{name} is not set")))
}

fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
