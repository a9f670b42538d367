//! A whole run: clients, faults from a seed, and the check afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Config;

use super::checker::{self, FaultWindow, Violation};
use super::history::{History, Outcome};
use super::inject;
use super::plan::{self, Fault, Kind, PlannedFault, Target};
use super::table;
use super::workload::{self, Clients, Counters};
use crate::dev_cluster::{self, DevCluster, MemberState, variable};
use crate::error::{Error, Result, io_context};
use crate::progress::Progress;

/// How long the cluster may take to be whole again after a fault: Patroni's ttl, an election, and a rewind.
const RECOVERY_LIMIT: Duration = Duration::from_secs(180);
/// How long the next write may take once the cluster is whole: more than a client waits for a statement.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// The time without a fault after each recovery, in which nothing may fail.
const QUIET: Duration = Duration::from_secs(5);
/// The last failures of a run may be seen this long after the cluster is whole again.
const SETTLE: Duration = Duration::from_secs(3);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stands for the faults and their order.
    pub seed: u64,
    /// The number of faults.
    pub faults: usize,
    /// Only these kinds of faults. None stands for all.
    pub kinds: Vec<Kind>,
    /// The number of writers, and of readers of each member.
    pub clients: Clients,
}

/// Runs it, and returns the report.
///
/// # Errors
/// The cluster does not work at all, or a promise was broken.
pub fn run(options: &Options, progress: &Progress) -> Result<String> {
    let cluster = DevCluster::from_environment()?;
    let writer = dev_cluster::leader_config()?;
    let forwarders = Forwarders::start(cluster.members())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(io_context("cannot start a runtime"))?;
    inject::await_complete(&cluster, RECOVERY_LIMIT)
        .map_err(|seen| Error::Peer(format!("the cluster is not whole: {seen}")))?;
    let readers = forwarders.configs()?;
    runtime.block_on(async {
        let created = table::create(&writer).await?;
        for reader in &readers {
            table::await_replayed(reader, created).await?;
        }
        Ok::<_, Error>(())
    })?;
    let start = Instant::now();
    let counters = Arc::new(Counters::default());
    let clients = {
        let writer = writer.clone();
        let (counters, clients) = (Arc::clone(&counters), options.clients);
        runtime
            .spawn(async move { workload::run(&writer, &readers, clients, &counters, start).await })
    };
    let mut run = Run {
        cluster,
        progress,
        counters,
        start,
        windows: Vec::new(),
        failed: Vec::new(),
    };
    let injected = run.inject_all(options);
    run.counters.stop();
    let history = runtime.block_on(clients);
    let history = history.map_err(|error| Error::Peer(error.to_string()))?;
    injected?;
    let rows = runtime.block_on(async {
        let read = tokio::time::timeout(WRITE_LIMIT, table::read(&writer)).await;
        read.map_err(|_| Error::Peer("the table was not read in time".to_owned()))?
    });
    // A cluster that has not recovered may still have all writes, or not.
    let violations = match rows {
        Ok(rows) => checker::check(&history, &rows, &run.windows),
        Err(error) => {
            let what = format!("nothing was checked, because the table cannot be read: {error}");
            run.failed.push(what);
            Vec::new()
        }
    };
    run.conclude(options, &history, &violations)
}

struct Run<'a> {
    cluster: DevCluster,
    progress: &'a Progress,
    counters: Arc<Counters>,
    start: Instant,
    windows: Vec<FaultWindow>,
    /// Faults after which the cluster did not recover.
    failed: Vec<String>,
}

impl Run<'_> {
    fn inject_all(&mut self, options: &Options) -> Result<()> {
        self.pause(QUIET)?;
        let count = self.cluster.members().len();
        let faults = plan::faults(options.seed, count)
            .filter(|planned| planned.is_one_of(&options.kinds))
            .take(options.faults);
        for (number, planned) in faults.enumerate() {
            self.inject(number, planned)?;
            if !self.failed.is_empty() {
                break;
            }
            self.pause(QUIET)?;
        }
        Ok(())
    }

    /// Sleeps, unless a signal has been received.
    fn pause(&self, time: Duration) -> Result<()> {
        self.progress.check_signal()?;
        std::thread::sleep(time);
        Ok(())
    }

    fn inject(&mut self, number: usize, planned: PlannedFault) -> Result<()> {
        let Some(member) = self.target(planned.target)? else {
            return Ok(());
        };
        let role = match planned.target {
            Target::Leader => "the leader ",
            Target::Member(_) => "",
        };
        let from = self.start.elapsed();
        let before = self.counters.acknowledged();
        let mut outcome = match inject::begin(&self.cluster, &member, planned.fault) {
            Ok(()) => String::new(),
            // Patroni refuses a switchover while no standby is in sync.
            Err(error) if planned.fault == Fault::Switchover => format!(", not possible: {error}"),
            Err(error) => {
                self.failed
                    .push(format!("fault {number} was not possible: {error}"));
                String::new()
            }
        };
        if planned.fault != Fault::Switchover {
            self.pause(planned.length)?;
        }
        if let Err(error) = inject::end(&self.cluster, &member, planned.fault) {
            self.failed
                .push(format!("fault {number} did not end: {error}"));
        }
        let healed = Instant::now();
        if let Err(seen) = inject::await_complete(&self.cluster, RECOVERY_LIMIT) {
            self.failed.push(format!(
                "not recovered after fault {number} ({planned:?}): {seen}"
            ));
            outcome = format!("{outcome}, NOT RECOVERED");
        }
        if !self.writes_go_on()? {
            self.failed
                .push(format!("no write after fault {number} ({planned:?})"));
        }
        self.pause(SETTLE)?;
        let until = self.start.elapsed();
        self.windows.push(FaultWindow { from, until });
        self.progress.log(&format!(
            "{:>6.1} s  fault {number}: {:?} of {role}{member} for {:.1} s, whole again after {:.1} s, {} writes since{outcome}",
            from.as_secs_f64(),
            planned.fault,
            planned.length.as_secs_f64(),
            healed.elapsed().saturating_sub(SETTLE).as_secs_f64(),
            self.counters.acknowledged().saturating_sub(before),
        ));
        Ok(())
    }

    /// The name of the member that a fault hits.
    fn target(&self, target: Target) -> Result<Option<String>> {
        Ok(match target {
            Target::Leader => {
                let list = self.cluster.list()?;
                let leader = list.into_iter().find(MemberState::leads);
                leader.map(|leader| leader.name)
            }
            Target::Member(position) => self.cluster.members().get(position).cloned(),
        })
    }

    /// Whether a further write is acknowledged before a client gives its statement up.
    fn writes_go_on(&self) -> Result<bool> {
        let before = self.counters.acknowledged();
        let deadline = Instant::now() + WRITE_LIMIT;
        while self.counters.acknowledged() == before {
            if Instant::now() > deadline {
                return Ok(false);
            }
            self.pause(Duration::from_millis(100))?;
        }
        Ok(true)
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
        let seen = count(|outcome| matches!(outcome, Outcome::Acknowledged { .. })) > 0
            && (options.clients.readers == 0 || !history.reads.is_empty());
        if violations.is_empty() && self.failed.is_empty() && seen {
            return Ok(format!("{text}\nevery promise was kept"));
        }
        let nothing = (!seen).then(|| "\nno writes or no reads to check".to_owned());
        let failed = self.failed.iter().map(|failure| format!("\n{failure}"));
        let failed = failed.chain(nothing);
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
                // Its server is away on purpose.
                .env("TEESQL_LOG", "error")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(io_context("cannot start teesql-forward"))?;
            started.0.push((child, socket));
        }
        Ok(started)
    }

    /// How readers connect to each member.
    fn configs(&self) -> Result<Vec<Config>> {
        let password = variable("TEESQL_DEV_READ_SECRET")?;
        let config = |(_, socket): &(Child, PathBuf)| {
            let mut config = Config::new();
            config
                .host_path(socket)
                .user("teesql_read")
                .password(&password)
                .dbname("postgres");
            config
        };
        Ok(self.0.iter().map(config).collect())
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
