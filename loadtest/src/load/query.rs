//! Queries on connections that are logged in: closed loop, or open loop at a
//! fixed rate.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Meter;
use super::open_loop::{Due, Queue, pace};
use crate::client::Client;
use crate::endpoint::{Login, Member, Target};
use crate::error::{Error, Result};
use crate::latency::{Latencies, Schedule};
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::script::{Mode, Script};
use crate::worker_group::{self, Seat, Times, Window, Work};

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
pub struct Plan {
    /// The other end.
    pub target: Target,
    /// Who logs in.
    pub login: Login,
    /// What is asked.
    pub mode: Mode,
    /// Scale of pgbench's tables.
    pub scale: u32,
    /// Connections that ask.
    pub clients: usize,
    /// Connections beside them that are logged in and rest.
    pub resting: usize,
    /// Threads of the load.
    pub threads: usize,
    /// For how long.
    pub times: Times,
    /// Units a second over all connections: an open loop. Without: a closed one.
    pub rate: Option<f64>,
    /// Whoever holds it may say which phase a latency belongs to, 0 to 2.
    pub phase: Arc<AtomicUsize>,
    /// The process whose CPU counts.
    pub pid: Option<Pid>,
}

impl Plan {
    /// Prepared SELECTs in a closed loop on so many connections.
    #[must_use]
    pub fn new(target: Target, login: Login, clients: usize, seconds: f64) -> Self {
        Self {
            target,
            login,
            mode: Mode::Prepared,
            scale: 1,
            clients,
            resting: 0,
            threads: 1,
            times: Times::measuring(seconds),
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
        let work = Queries {
            plan: self,
            progress,
        };
        let edge = |edge| meter.edge(edge);
        let done = worker_group::run(&work, threads, self.times, progress, edge)
            .map_err(|error| self.explained(error))?;
        let mut all = Tally::new()?;
        done.iter().for_each(|tally| all.add(tally));
        Ok(Outcome {
            queries: all.queries,
            unserved: all.unserved,
            seconds: self.times.measured.as_secs_f64(),
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
    /// Queries whose unit ended within the window.
    pub queries: u64,
    /// Units of an open loop that were due and not begun when the window ended.
    pub unserved: u64,
    /// The window's length.
    pub seconds: f64,
    /// A unit's latency, by phase: in an open loop from the intended start.
    pub latencies: [Latencies; PHASES],
    /// How late this instrument itself sent an open loop's unit for which a
    /// connection was free.
    pub lateness: Latencies,
    /// The CPU that it took.
    pub meter: Meter,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Outcome {
    /// Queries a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.queries as f64 / self.seconds
    }

    /// µs of the measured process for each query.
    #[must_use]
    pub fn micros_per_query(&self) -> Option<f64> {
        let micros = self.meter.theirs?.as_secs_f64() * 1e6;
        (self.queries > 0).then(|| micros / self.queries as f64)
    }

    /// µs of this process for each query.
    #[must_use]
    pub fn own_micros_per_query(&self) -> f64 {
        self.meter.ours.as_secs_f64() * 1e6 / self.queries.max(1) as f64
    }
}

/// One thread's count.
struct Tally {
    queries: u64,
    unserved: u64,
    latencies: [Latencies; PHASES],
    lateness: Latencies,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self {
            queries: 0,
            unserved: 0,
            latencies: [Latencies::new()?, Latencies::new()?, Latencies::new()?],
            lateness: Latencies::new()?,
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

struct Queries<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
}

struct Connections {
    script: Rc<Script>,
    asking: Vec<Client>,
    resting: Vec<Client>,
}

impl Work for Queries<'_> {
    type Ready = Connections;
    type Done = Tally;

    async fn prepare(&self, seat: Seat) -> Result<Connections> {
        let plan = self.plan;
        let member = Member::new(&plan.login)?;
        let turn = u32::try_from(seat.thread).unwrap_or(0);
        let seed = 0x9e37_79b9_7f4a_7c15_u64.rotate_left(turn);
        let script = Rc::new(Script::new(plan.mode, plan.scale, seed));
        let mut resting = Vec::new();
        for _ in 0..seat.share(plan.resting) {
            let mut client = Client::log_in(&plan.target, &member).await?;
            client.rest();
            resting.push(client);
        }
        let mut asking = Vec::new();
        for _ in 0..seat.share(plan.clients) {
            let mut client = Client::log_in(&plan.target, &member).await?;
            if let Some(before) = &script.before {
                client.ask(&before.bytes, before.ready).await?;
            }
            asking.push(client);
        }
        Ok(Connections {
            script,
            asking,
            resting,
        })
    }

    async fn work(&self, seat: Seat, ready: Connections, window: Window) -> Result<Tally> {
        let queue = Queue::new();
        let source = match self.plan.rate {
            Some(rate) => {
                let schedule = Schedule::new(window.begin, rate);
                pace(seat, schedule, window, Rc::clone(&queue))?;
                Source::Queue(Rc::clone(&queue))
            }
            None => Source::AtOnce,
        };
        let tally = Rc::new(RefCell::new(Tally::new()?));
        let mut tasks = Vec::new();
        for (index, client) in ready.asking.into_iter().enumerate() {
            let asker = Asker {
                client,
                next: index * STRIDE,
                script: Rc::clone(&ready.script),
                source: source.clone(),
                tally: Rc::clone(&tally),
                phase: Arc::clone(&self.plan.phase),
                progress: self.progress.clone(),
            };
            tasks.push(monoio::spawn(asker.run(window)));
        }
        let mut outcome = Ok(());
        for task in tasks {
            outcome = outcome.and(task.await);
        }
        drop(ready.resting);
        outcome?;
        let mut tally = tally.replace(Tally::new()?);
        // What was due waited at least so long: leaving it out would be the
        // omission that an open loop is there to avoid.
        for due in queue.left().into_iter().filter(|due| *due < window.end) {
            tally.unserved += 1;
            tally.record(self.plan.phase.load(Ordering::Relaxed), window.end - due);
        }
        Ok(tally)
    }
}

#[derive(Clone)]
enum Source {
    AtOnce,
    Queue(Rc<Queue>),
}

/// One connection that asks.
struct Asker {
    client: Client,
    next: usize,
    script: Rc<Script>,
    source: Source,
    tally: Rc<RefCell<Tally>>,
    phase: Arc<AtomicUsize>,
    progress: Progress,
}

impl Asker {
    async fn run(mut self, window: Window) -> Result<()> {
        let queries = u64::try_from(self.script.queries()).unwrap_or(0);
        if let Some(rest) = window.begin.checked_duration_since(Instant::now()) {
            monoio::time::sleep(rest).await;
        }
        let mut done = 0_u64;
        while let Some((begun, late)) = self.turn(window).await {
            self.unit().await?;
            let ended = Instant::now();
            done += 1;
            if done.is_multiple_of(SHOWN_EVERY) {
                self.progress.done.fetch_add(SHOWN_EVERY, Ordering::Relaxed);
            }
            if window.counts(ended) {
                let mut tally = self.tally.borrow_mut();
                tally.queries += queries;
                tally.record(self.phase.load(Ordering::Relaxed), ended - begun);
                if let Some(late) = late {
                    tally.lateness.record(late);
                }
            }
        }
        // Nothing is measured any more.
        let _ = self.client.close().await;
        Ok(())
    }

    /// When the next unit is meant to begin, which is now or was a moment ago;
    /// and how late that is if only this instrument is to blame.
    async fn turn(&self, window: Window) -> Option<(Instant, Option<Duration>)> {
        let begun = match &self.source {
            Source::AtOnce => (Instant::now(), None),
            Source::Queue(queue) => {
                let Due {
                    intended,
                    waited_for,
                } = queue.next().await?;
                let late = Instant::now().saturating_duration_since(intended);
                (intended, waited_for.then_some(late))
            }
        };
        (Instant::now() < window.end).then_some(begun)
    }

    async fn unit(&mut self) -> Result<()> {
        let script = Rc::clone(&self.script);
        for step in script.unit(self.next) {
            self.client.ask(&step.bytes, step.ready).await?;
        }
        self.next = self.next.wrapping_add(1);
        Ok(())
    }
}
