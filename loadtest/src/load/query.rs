//! QueryWorkload on connections that are logged in: closed loop, or open loop at a
//! fixed rate.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Meter;
use super::open_loop::{DueQueue, DueRequest, start_pacer};
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::{Error, Result};
use crate::latency::{LatencyHistogram, Schedule};
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::script::{QueryMode, Script};
use crate::worker_group::{self, Timing, Window, Worker, Workload};

/// Units between two additions to the shared counter that a person watches.
const SHOWN_EVERY: u64 = 64;
/// Messages of a thread's connections begin this far from one another.
const STRIDE: usize = 61;
/// [PostgreSQL 15, Appendix A: undefined_table](https://www.postgresql.org/docs/15/errcodes-appendix.html).
const UNDEFINED_TABLE: &str = "42P01";
/// A load may be told apart in so many phases.
pub const PHASES: usize = 3;

/// What to ask, how often, of whom.
#[derive(Clone, Debug)]
pub struct QueryLoad {
    /// The other end.
    pub endpoint: Endpoint,
    /// Who logs in.
    pub login: Login,
    /// What is asked.
    pub mode: QueryMode,
    /// Scale of pgbench's tables.
    pub scale: u32,
    /// Connections that ask.
    pub clients: usize,
    /// Connections beside them that are logged in and rest.
    pub idle: usize,
    /// Threads of the load.
    pub threads: usize,
    /// For how long.
    pub timing: Timing,
    /// Units a second over all connections: an open loop. Without: a closed one.
    pub rate: Option<f64>,
    /// Whoever holds it may say which phase a latency belongs to, 0 to 2.
    pub phase: Arc<AtomicUsize>,
    /// The process whose CPU counts.
    pub pid: Option<Pid>,
}

impl QueryLoad {
    /// Prepared SELECTs in a closed loop on so many connections.
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

    /// Runs it.
    ///
    /// # Errors
    /// Any connection's failure: a load that loses queries has measured nothing.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        let mut meter = Meter::new(self.pid);
        let threads = self.threads.clamp(1, self.clients.max(1));
        let work = QueryWorkload {
            load: self,
            progress,
        };
        let edge = |edge| meter.edge(edge);
        let done = worker_group::run(&work, threads, self.timing, progress, edge)
            .map_err(|error| self.explained(error))?;
        let mut all = Counters::new()?;
        done.iter().for_each(|counters| all.add(counters));
        Ok(Outcome {
            queries: all.queries,
            unserved: all.unserved,
            seconds: self.timing.measured.as_secs_f64(),
            latencies: all.latencies,
            lateness: all.lateness,
            meter,
        })
    }

    /// Says what to do where pgbench's tables are missing.
    fn explained(&self, error: Error) -> Error {
        match error {
            Error::Server(text) if text.contains(UNDEFINED_TABLE) => Error::Server(format!(
                "{text} (`pgbench -i -s {}` in that database makes the tables)",
                self.scale
            )),
            error => error,
        }
    }
}

/// What a load of queries came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// QueryWorkload whose unit ended with_timeout the window.
    pub queries: u64,
    /// Units of an open loop that were due and not started when the window ended.
    pub unserved: u64,
    /// The window's length.
    pub seconds: f64,
    /// A unit's latency, by phase: in an open loop from the intended start.
    pub latencies: [LatencyHistogram; PHASES],
    /// How late this instrument itself sent an open loop's unit for which a
    /// connection was free.
    pub lateness: LatencyHistogram,
    /// The CPU that it took.
    pub meter: Meter,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Outcome {
    /// QueryWorkload a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.queries as f64 / self.seconds
    }

    /// µs of the measured process for each query.
    #[must_use]
    pub fn micros_per_query(&self) -> Option<f64> {
        let micros = self.meter.process_cpu?.as_secs_f64() * 1e6;
        (self.queries > 0).then(|| micros / self.queries as f64)
    }

    /// µs of this process for each query.
    #[must_use]
    pub fn load_micros_per_query(&self) -> f64 {
        self.meter.load_cpu.as_secs_f64() * 1e6 / self.queries.max(1) as f64
    }
}

/// One thread's count.
struct Counters {
    queries: u64,
    unserved: u64,
    latencies: [LatencyHistogram; PHASES],
    lateness: LatencyHistogram,
}

impl Counters {
    fn new() -> Result<Self> {
        Ok(Self {
            queries: 0,
            unserved: 0,
            latencies: [
                LatencyHistogram::new()?,
                LatencyHistogram::new()?,
                LatencyHistogram::new()?,
            ],
            lateness: LatencyHistogram::new()?,
        })
    }

    fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.unserved += other.unserved;
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.add(theirs);
        }
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
        let turn = u32::try_from(worker.index).unwrap_or(0);
        let seed = 0x9e37_79b9_7f4a_7c15_u64.rotate_left(turn);
        let script = Rc::new(Script::new(load.mode, load.scale, seed));
        let mut idle = Vec::new();
        for _ in 0..worker.share(load.idle) {
            let mut client = Client::log_in(&load.endpoint, &prepared).await?;
            client.release_buffers();
            idle.push(client);
        }
        let mut active = Vec::new();
        for _ in 0..worker.share(load.clients) {
            let mut client = Client::log_in(&load.endpoint, &prepared).await?;
            if let Some(before) = &script.setup {
                client.request(&before.bytes, before.ready).await?;
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
        // What was due waited at least so long: leaving it out would be the
        // omission that an open loop is there to avoid.
        for due in queue
            .drain_unstarted()
            .into_iter()
            .filter(|due| *due < window.end)
        {
            counters.unserved += 1;
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

/// One connection that asks.
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
            self.transaction().await?;
            let ended = Instant::now();
            done += 1;
            if done.is_multiple_of(SHOWN_EVERY) {
                self.progress.done.fetch_add(SHOWN_EVERY, Ordering::Relaxed);
            }
            if window.counts(ended) {
                let mut counters = self.counters.borrow_mut();
                counters.queries += queries;
                counters.record(self.phase.load(Ordering::Relaxed), ended - started);
                if let Some(late) = late {
                    counters.lateness.record(late);
                }
            }
        }
        // Nothing is measured any more.
        let _ = self.client.close().await;
        Ok(())
    }

    /// When the next unit is meant to begin, which is now or was a moment ago;
    /// and how late that is if only this instrument is to blame.
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
