//! Queries on connections that are logged in: a closed loop, or an open loop at a fixed rate.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Meter;
use super::open_loop::{DueQueue, DueRequest, prioritize_thread, start_pacer};
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::{Error, Result};
use crate::latency::{LatencyHistogram, Schedule};
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::script::{QueryMode, Script};
use crate::worker_group::{self, Timing, Window, Worker, Workload};

/// Transactions between two updates of the shared progress counter.
const PROGRESS_INTERVAL: u64 = 64;
/// Distance between the first transactions of two connections in the thread's script.
const STRIDE: usize = 61;
/// [PostgreSQL 15, Appendix A: undefined_table](https://www.postgresql.org/docs/15/errcodes-appendix.html).
const UNDEFINED_TABLE: &str = "42P01";
/// Maximum phases by which the latencies of a load are recorded separately.
pub const PHASES: usize = 3;

/// What to query, how often, and from which server.
#[derive(Clone, Debug)]
pub struct QueryLoad {
    /// The server to query.
    pub endpoint: Endpoint,
    /// The role that logs in.
    pub login: Login,
    /// The queries.
    pub mode: QueryMode,
    /// Scale factor of pgbench's tables.
    pub scale: u32,
    /// Connections that send queries.
    pub clients: usize,
    /// Additional connections that are logged in and idle.
    pub idle: usize,
    /// Threads of the load.
    pub threads: usize,
    /// Durations.
    pub timing: Timing,
    /// Transactions per second over all connections, as an open loop. `None` is a closed loop.
    pub rate: Option<f64>,
    /// The current phase, 0 to 2: latencies are recorded under it.
    pub phase: Arc<AtomicUsize>,
    /// The process whose CPU time is measured.
    pub pid: Option<Pid>,
}

/// Transactions that each connection completes before the load starts. The first ones of a new Postgres process take it a
/// multiple of the time of later ones: it reads the catalogs, and plans a prepared statement five times before it keeps
/// a plan. An open loop near the limit would need longer than its window to make up for that.
const WARM_UP: usize = 10;

impl QueryLoad {
    /// Prepared SELECTs in a closed loop on `clients` connections.
    #[must_use]
    pub fn new(endpoint: Endpoint, login: Login, clients: usize, seconds: f64) -> Self {
        Self {
            endpoint,
            login,
            mode: QueryMode::Prepared,
            scale: 1,
            clients,
            idle: 0,
            threads: 1,
            timing: Timing::measuring(seconds),
            rate: None,
            phase: Arc::default(),
            pid: None,
        }
    }

    /// Runs the load.
    ///
    /// # Errors
    /// The failure of any connection: a load that lost queries has no valid result.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        let mut meter = Meter::new(self.pid);
        let threads = self.threads.clamp(1, self.clients.max(1));
        let work = QueryWorkload {
            load: self,
            progress,
        };
        let edge = |edge| meter.edge(edge);
        let done = worker_group::run(&work, threads, self.timing, progress, edge)
            .map_err(|error| self.add_hint(error))?;
        let mut all = Counters::new()?;
        done.iter().for_each(|counters| all.add(counters));
        Ok(Outcome {
            queries: all.queries,
            unstarted: all.unstarted,
            seconds: self.timing.measured.as_secs_f64(),
            latencies: all.latencies,
            large: all.large,
            lateness: all.lateness,
            meter,
        })
    }

    /// Adds a hint to the error if pgbench's tables are missing.
    fn add_hint(&self, error: Error) -> Error {
        match error {
            Error::Server(text) if text.contains(UNDEFINED_TABLE) => Error::Server(format!(
                "{text} (create the tables with `pgbench -i -s {}`)",
                self.scale
            )),
            error => error,
        }
    }
}

/// Results of a query load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Queries of the transactions that completed within the window.
    pub queries: u64,
    /// Open loop: transactions that were due, but not started when the window ended.
    pub unstarted: u64,
    /// Length of the window.
    pub seconds: f64,
    /// Latency of a transaction, by phase. In an open loop it counts from the intended start.
    pub latencies: [LatencyHistogram; PHASES],
    /// The same for the large results of [`QueryMode::Mixture`], which `latencies` does not have.
    pub large: LatencyHistogram,
    /// Open loop: delay of the load generator itself, i.e. of transactions for which a connection
    /// was free.
    pub lateness: LatencyHistogram,
    /// CPU time used.
    pub meter: Meter,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Outcome {
    /// Queries per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.queries as f64 / self.seconds
    }

    /// Open loop with one query in each transaction: the share of the requests of the window that
    /// were served, 0 to 1. A queue that was there before the window and is still there at its end
    /// counts as not served.
    #[must_use]
    pub fn served(&self, rate: f64) -> f64 {
        let due = rate * self.seconds;
        let completed = self.queries as f64 / due;
        completed
            .min(1.0 - self.unstarted as f64 / due)
            .clamp(0.0, 1.0)
    }

    /// CPU time of the measured process for each query, in µs.
    #[must_use]
    pub fn micros_per_query(&self) -> Option<f64> {
        let micros = self.meter.process_cpu?.as_secs_f64() * 1e6;
        (self.queries > 0).then(|| micros / self.queries as f64)
    }

    /// CPU time of the load for each query, in µs.
    #[must_use]
    pub fn load_micros_per_query(&self) -> f64 {
        self.meter.load_cpu.as_secs_f64() * 1e6 / self.queries.max(1) as f64
    }
}

/// Counters of one worker.
struct Counters {
    queries: u64,
    unstarted: u64,
    latencies: [LatencyHistogram; PHASES],
    large: LatencyHistogram,
    lateness: LatencyHistogram,
}

impl Counters {
    fn new() -> Result<Self> {
        Ok(Self {
            queries: 0,
            unstarted: 0,
            latencies: [
                LatencyHistogram::new()?,
                LatencyHistogram::new()?,
                LatencyHistogram::new()?,
            ],
            large: LatencyHistogram::new()?,
            lateness: LatencyHistogram::new()?,
        })
    }

    fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.unstarted += other.unstarted;
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.add(theirs);
        }
        self.large.add(&other.large);
        self.lateness.add(&other.lateness);
    }

    fn record(&mut self, phase: usize, latency: Duration) {
        if let Some(latencies) = self.latencies.get_mut(phase) {
            latencies.record(latency);
        }
    }
}

struct QueryWorkload<'a> {
    load: &'a QueryLoad,
    progress: &'a Progress,
}

struct Connections {
    script: Rc<Script>,
    active: Vec<Client>,
    idle: Vec<Client>,
}

impl Workload for QueryWorkload<'_> {
    type Ready = Connections;
    type Done = Counters;

    async fn prepare(&self, worker: Worker) -> Result<Connections> {
        let load = self.load;
        let prepared = PreparedLogin::new(&load.login)?;
        let rotation = u32::try_from(worker.index).unwrap_or(0);
        let seed = 0x9e37_79b9_7f4a_7c15_u64.rotate_left(rotation);
        let script = Rc::new(Script::new(load.mode, load.scale, seed));
        let mut idle = Vec::new();
        for _ in 0..worker.share(load.idle) {
            let mut client = Client::log_in(&load.endpoint, &prepared).await?;
            client.release_buffers();
            idle.push(client);
        }
        let mut active = Vec::new();
        for index in 0..worker.share(load.clients) {
            let mut client = Client::log_in(&load.endpoint, &prepared).await?;
            if let Some(setup) = &script.setup {
                client.request(&setup.bytes, setup.ready).await?;
            }
            let first = index * STRIDE;
            for step in (first..first + WARM_UP).flat_map(|number| script.transaction(number)) {
                client.request(&step.bytes, step.ready).await?;
            }
            active.push(client);
        }
        Ok(Connections {
            script,
            active,
            idle,
        })
    }

    async fn work(&self, worker: Worker, ready: Connections, window: Window) -> Result<Counters> {
        let queue = DueQueue::new();
        let loop_kind = match self.load.rate {
            Some(rate) => {
                prioritize_thread();
                let schedule = Schedule::new(window.warmup_start, rate);
                start_pacer(worker, schedule, window, Rc::clone(&queue))?;
                LoopKind::Open(Rc::clone(&queue))
            }
            None => LoopKind::Closed,
        };
        let counters = Rc::new(RefCell::new(Counters::new()?));
        let mut tasks = Vec::new();
        for (index, client) in ready.active.into_iter().enumerate() {
            let task = QueryTask {
                client,
                next: index * STRIDE,
                script: Rc::clone(&ready.script),
                loop_kind: loop_kind.clone(),
                counters: Rc::clone(&counters),
                phase: Arc::clone(&self.load.phase),
                progress: self.progress.clone(),
            };
            tasks.push(monoio::spawn(task.run(window)));
        }
        let mut outcome = Ok(());
        for task in tasks {
            outcome = outcome.and(task.await);
        }
        drop(ready.idle);
        outcome?;
        let mut counters = counters.replace(Counters::new()?);
        // A transaction that was never started waited at least this long. Leaving it out would be
        // coordinated omission.
        for due in queue
            .drain_unstarted()
            .into_iter()
            .filter(|due| *due < window.end)
        {
            counters.unstarted += 1;
            // In a mixture it is not known which of them would have been large.
            counters.record(self.load.phase.load(Ordering::Relaxed), window.end - due);
        }
        Ok(counters)
    }
}

#[derive(Clone)]
enum LoopKind {
    Closed,
    Open(Rc<DueQueue>),
}

/// Sends the queries of one connection.
struct QueryTask {
    client: Client,
    next: usize,
    script: Rc<Script>,
    loop_kind: LoopKind,
    counters: Rc<RefCell<Counters>>,
    phase: Arc<AtomicUsize>,
    progress: Progress,
}

impl QueryTask {
    async fn run(mut self, window: Window) -> Result<()> {
        let queries = u64::try_from(self.script.queries()).unwrap_or(0);
        if let Some(rest) = window.warmup_start.checked_duration_since(Instant::now()) {
            monoio::time::sleep(rest).await;
        }
        let mut done = 0_u64;
        while let Some((started, late)) = self.next_start(window).await {
            let large = self.script.is_large(self.next);
            self.transaction().await?;
            let ended = Instant::now();
            done += 1;
            if done.is_multiple_of(PROGRESS_INTERVAL) {
                self.progress
                    .done
                    .fetch_add(PROGRESS_INTERVAL, Ordering::Relaxed);
            }
            if window.counts(ended) {
                let mut counters = self.counters.borrow_mut();
                counters.queries += queries;
                match large {
                    true => counters.large.record(ended - started),
                    false => counters.record(self.phase.load(Ordering::Relaxed), ended - started),
                }
                if let Some(late) = late {
                    counters.lateness.record(late);
                }
            }
        }
        // The measurement is over: an error no longer matters.
        let _ = self.client.close().await;
        Ok(())
    }

    /// Waits for the next transaction. Returns its intended start, and the delay caused by the load
    /// generator, if a connection was free when the transaction fell due. `None` after the window.
    async fn next_start(&self, window: Window) -> Option<(Instant, Option<Duration>)> {
        let started = match &self.loop_kind {
            LoopKind::Closed => (Instant::now(), None),
            LoopKind::Open(queue) => {
                let DueRequest {
                    intended,
                    connection_free,
                } = queue.next().await?;
                let late = Instant::now().saturating_duration_since(intended);
                (intended, connection_free.then_some(late))
            }
        };
        (Instant::now() < window.end).then_some(started)
    }

    async fn transaction(&mut self) -> Result<()> {
        let script = Rc::clone(&self.script);
        for step in script.transaction(self.next) {
            self.client.request(&step.bytes, step.ready).await?;
        }
        self.next = self.next.wrapping_add(1);
        Ok(())
    }
}
