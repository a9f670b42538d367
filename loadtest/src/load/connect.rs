//! New connections, as many as there can be: handshakes alone, or with the
//! login behind them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Meter;
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::Result;
use crate::latency::LatencyHistogram;
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::runtime::with_timeout;
use crate::stream::Stream;
use crate::worker_group::{self, Timing, Window, Worker, Workload};

/// For one connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How far each connection goes before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The handshake is complete on both sides: both have said goodbye.
    Handshake,
    /// ReadyForQuery.
    Login,
}

/// Which of the endpoints, and so which certificate, a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUse {
    /// All take the first one: its verdict is cached after the first time.
    Shared,
    /// Each client has one of its own: fresh once, cached from then on.
    PerClient,
    /// Every connection takes another one, that nobody has seen. It ends when
    /// they are used up.
    PerConnection,
}

/// What to connect to.
#[derive(Clone, Debug)]
pub struct ConnectLoad {
    /// One or more, that differ by certificate.
    pub endpoints: Vec<Endpoint>,
    /// Which of them.
    pub certificate_use: CertificateUse,
    /// Who logs in.
    pub login: Login,
    /// How far.
    pub until: Until,
    /// Connections at a time.
    pub clients: usize,
    /// Threads of the load.
    pub threads: usize,
    /// For how long.
    pub timing: Timing,
    /// The process whose CPU counts.
    pub pid: Option<Pid>,
}

impl ConnectLoad {
    /// ConnectWorkload to one endpoint over and over.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        login: Login,
        until: Until,
        clients: usize,
        seconds: f64,
    ) -> Self {
        Self {
            endpoints: vec![endpoint],
            certificate_use: CertificateUse::Shared,
            login,
            until,
            clients,
            threads: 1,
            timing: Timing::measuring(seconds),
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
        let work = ConnectWorkload {
            load: self,
            progress,
            used: AtomicUsize::new(0),
        };
        let edge = |edge| meter.edge(edge);
        let done = worker_group::run(&work, threads, self.timing, progress, edge)?;
        let mut all = Counters::new()?;
        done.into_iter().for_each(|counters| all.add(counters));
        Ok(Outcome {
            connections: all.latencies.count(),
            failed: all.failed,
            reason: all.reason,
            seconds: all.last.as_secs_f64(),
            latencies: all.latencies,
            meter,
        })
    }

    fn endpoint(&self, client: usize, used: &AtomicUsize) -> Option<&Endpoint> {
        match self.certificate_use {
            CertificateUse::Shared => self.endpoints.first(),
            CertificateUse::PerClient => self.endpoints.get(client % self.endpoints.len().max(1)),
            CertificateUse::PerConnection => {
                self.endpoints.get(used.fetch_add(1, Ordering::Relaxed))
            }
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// That came as far as they were to, with_timeout the window.
    pub connections: u64,
    /// That did not, at any time.
    pub failed: u64,
    /// Why the first of those did not.
    pub reason: Option<String>,
    /// From the window's start to the end of the last connection in it.
    pub seconds: f64,
    /// From connecting to where the connection was to come.
    pub latencies: LatencyHistogram,
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
        let seconds = self.meter.process_cpu?.as_secs_f64();
        (seconds > 0.0).then(|| self.connections as f64 / seconds)
    }
}

struct Counters {
    latencies: LatencyHistogram,
    failed: u64,
    reason: Option<String>,
    last: Duration,
}

impl Counters {
    fn new() -> Result<Self> {
        Ok(Self {
            latencies: LatencyHistogram::new()?,
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

struct ConnectWorkload<'a> {
    load: &'a ConnectLoad,
    progress: &'a Progress,
    used: AtomicUsize,
}

impl Workload for ConnectWorkload<'_> {
    type Ready = PreparedLogin;
    type Done = Counters;

    async fn prepare(&self, _: Worker) -> Result<PreparedLogin> {
        PreparedLogin::new(&self.load.login)
    }

    async fn work(
        &self,
        worker: Worker,
        prepared: PreparedLogin,
        window: Window,
    ) -> Result<Counters> {
        let counters = RefCell::new(Counters::new()?);
        let before = (0..worker.index).map(|index| Worker { index, ..worker });
        let first: usize = before.map(|worker| worker.share(self.load.clients)).sum();
        let clients = (0..worker.share(self.load.clients))
            .map(|client| self.client(first + client, &prepared, window, &counters));
        futures_util::future::join_all(clients).await;
        Ok(counters.into_inner())
    }
}

impl ConnectWorkload<'_> {
    async fn client(
        &self,
        number: usize,
        prepared: &PreparedLogin,
        window: Window,
        counters: &RefCell<Counters>,
    ) {
        while Instant::now() < window.end {
            let Some(endpoint) = self.load.endpoint(number, &self.used) else {
                return;
            };
            let one = with_timeout(TIMEOUT, "a connection", self.one(endpoint, prepared)).await;
            let (now, mut counters) = (Instant::now(), counters.borrow_mut());
            match one {
                Ok(latency) if window.counts(now) => {
                    counters.record(latency, now.saturating_duration_since(window.start));
                    self.progress.done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(error) => {
                    counters.failed += 1;
                    counters.reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }

    /// How long it took to come as far as it was to; its end is not in that.
    async fn one(&self, endpoint: &Endpoint, prepared: &PreparedLogin) -> Result<Duration> {
        let started = Instant::now();
        match self.load.until {
            Until::Handshake => {
                let stream = Stream::open(endpoint).await?;
                let latency = started.elapsed();
                stream.close().await?;
                Ok(latency)
            }
            Until::Login => {
                let client = Client::log_in(endpoint, prepared).await?;
                let latency = started.elapsed();
                client.close().await?;
                Ok(latency)
            }
        }
    }
}
