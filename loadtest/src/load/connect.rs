//! New connections, as many as there can be: handshakes alone, or with the
//! login behind them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Meter;
use crate::client::Client;
use crate::endpoint::{Login, Member, Target};
use crate::error::Result;
use crate::latency::Latencies;
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::runtime::within;
use crate::stream::Stream;
use crate::worker_group::{self, Seat, Times, Window, Work};

/// For one connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far each connection goes before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The handshake is complete on both sides: both have said goodbye.
    Handshake,
    /// ReadyForQuery.
    Login,
}

/// Which of the targets, and so which certificate, a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// All take the first one: its verdict is cached after the first time.
    First,
    /// Each client has one of its own: fresh once, cached from then on.
    Mine,
    /// Every connection takes another one, that nobody has seen. It ends when
    /// they are used up.
    Next,
}

/// What to connect to.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One or more, that differ by certificate.
    pub targets: Vec<Target>,
    /// Which of them.
    pub pick: Pick,
    /// Who logs in.
    pub login: Login,
    /// How far.
    pub until: Until,
    /// Connections at a time.
    pub clients: usize,
    /// Threads of the load.
    pub threads: usize,
    /// For how long.
    pub times: Times,
    /// The process whose CPU counts.
    pub pid: Option<Pid>,
}

impl Plan {
    /// Connects to one target over and over.
    #[must_use]
    pub fn new(target: Target, login: Login, until: Until, clients: usize, seconds: f64) -> Self {
        Self {
            targets: vec![target],
            pick: Pick::First,
            login,
            until,
            clients,
            threads: 1,
            times: Times::measuring(seconds),
            pid: None,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// The system's. A connection that fails is counted, and is none.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        let mut meter = Meter::new(self.pid);
        let threads = self.threads.clamp(1, self.clients.max(1));
        let work = Connects {
            plan: self,
            progress,
            used: AtomicUsize::new(0),
        };
        let edge = |edge| meter.edge(edge);
        let done = worker_group::run(&work, threads, self.times, progress, edge)?;
        let mut all = Tally::new()?;
        done.into_iter().for_each(|tally| all.add(tally));
        Ok(Outcome {
            connections: all.latencies.count(),
            failed: all.failed,
            reason: all.reason,
            seconds: all.last.as_secs_f64(),
            latencies: all.latencies,
            meter,
        })
    }

    fn target(&self, client: usize, used: &AtomicUsize) -> Option<&Target> {
        match self.pick {
            Pick::First => self.targets.first(),
            Pick::Mine => self.targets.get(client % self.targets.len().max(1)),
            Pick::Next => self.targets.get(used.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// That came as far as they were to, within the window.
    pub connections: u64,
    /// That did not, at any time.
    pub failed: u64,
    /// Why the first of those did not.
    pub reason: Option<String>,
    /// From the window's start to the end of the last connection in it.
    pub seconds: f64,
    /// From connecting to where the connection was to come.
    pub latencies: Latencies,
    /// The CPU that it took.
    pub meter: Meter,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Outcome {
    /// Connections a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.connections as f64 / self.seconds.max(1e-9)
    }

    /// Connections for each second of the measured process' CPU: what one core
    /// would carry that did nothing else.
    #[must_use]
    pub fn per_core(&self) -> Option<f64> {
        let seconds = self.meter.theirs?.as_secs_f64();
        (seconds > 0.0).then(|| self.connections as f64 / seconds)
    }
}

struct Tally {
    latencies: Latencies,
    failed: u64,
    reason: Option<String>,
    last: Duration,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self {
            latencies: Latencies::new()?,
            failed: 0,
            reason: None,
            last: Duration::ZERO,
        })
    }

    fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies);
        self.failed += other.failed;
        self.reason = self.reason.take().or(other.reason);
        self.last = self.last.max(other.last);
    }

    fn record(&mut self, latency: Duration, since_start: Duration) {
        self.latencies.record(latency);
        self.last = self.last.max(since_start);
    }
}

struct Connects<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
    used: AtomicUsize,
}

impl Work for Connects<'_> {
    type Ready = Member;
    type Done = Tally;

    async fn prepare(&self, _: Seat) -> Result<Member> {
        Member::new(&self.plan.login)
    }

    async fn work(&self, seat: Seat, member: Member, window: Window) -> Result<Tally> {
        let tally = RefCell::new(Tally::new()?);
        let before = (0..seat.thread).map(|thread| Seat { thread, ..seat });
        let first: usize = before.map(|seat| seat.share(self.plan.clients)).sum();
        let clients = (0..seat.share(self.plan.clients))
            .map(|client| self.client(first + client, &member, window, &tally));
        futures_util::future::join_all(clients).await;
        Ok(tally.into_inner())
    }
}

impl Connects<'_> {
    async fn client(&self, number: usize, member: &Member, window: Window, tally: &RefCell<Tally>) {
        while Instant::now() < window.end {
            let Some(target) = self.plan.target(number, &self.used) else {
                return;
            };
            let one = within(PATIENCE, "a connection", self.one(target, member)).await;
            let (now, mut tally) = (Instant::now(), tally.borrow_mut());
            match one {
                Ok(latency) if window.counts(now) => {
                    tally.record(latency, now.saturating_duration_since(window.start));
                    self.progress.done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(error) => {
                    tally.failed += 1;
                    tally.reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }

    /// How long it took to come as far as it was to; its end is not in that.
    async fn one(&self, target: &Target, member: &Member) -> Result<Duration> {
        let begun = Instant::now();
        match self.plan.until {
            Until::Handshake => {
                let stream = Stream::open(target).await?;
                let latency = begun.elapsed();
                stream.close().await?;
                Ok(latency)
            }
            Until::Login => {
                let client = Client::log_in(target, member).await?;
                let latency = begun.elapsed();
                client.close().await?;
                Ok(latency)
            }
        }
    }
}
