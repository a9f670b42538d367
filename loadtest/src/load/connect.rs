//! New connections at the maximum rate, in a closed loop: handshakes alone, or with the login.

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

/// Time limit for one connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How far each connection proceeds before it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The TLS handshake is complete and both sides have sent close_notify.
    Handshake,
    /// The login is complete: ReadyForQuery was received.
    Login,
}

/// Which endpoint, and so which client certificate, a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUse {
    /// All connections use the first one. Its verdict is cached after the first connection.
    Shared,
    /// Each client has its own. Its verdict is cached after the client's first connection.
    PerClient,
    /// Each connection uses one that the server has not seen before. The load ends when all are
    /// used.
    PerConnection,
}

/// What to connect to, and how.
#[derive(Clone, Debug)]
pub struct ConnectLoad {
    /// One or more endpoints that differ only in the client certificate.
    pub endpoints: Vec<Endpoint>,
    /// Which of them a connection uses.
    pub certificate_use: CertificateUse,
    /// The role that logs in.
    pub login: Login,
    /// How far each connection proceeds.
    pub until: Until,
    /// Concurrent connections.
    pub clients: usize,
    /// Threads of the load.
    pub threads: usize,
    /// Durations.
    pub timing: Timing,
    /// The process whose CPU time is measured.
    pub pid: Option<Pid>,
}

impl ConnectLoad {
    /// Connects to one endpoint repeatedly.
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

    /// Runs the load.
    ///
    /// # Errors
    /// System errors only. A failed connection is counted in [`Outcome::failed`].
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

/// Results of a connect load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Connections that completed within the window.
    pub connections: u64,
    /// Connections that failed, at any time.
    pub failed: u64,
    /// The error of the first failed connection.
    pub reason: Option<String>,
    /// From the start of the window to the end of the last connection in it.
    pub seconds: f64,
    /// Time from connecting to completion.
    pub latencies: LatencyHistogram,
    /// CPU time used.
    pub meter: Meter,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
impl Outcome {
    /// Completed connections per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.connections as f64 / self.seconds.max(1e-9)
    }

    /// Completed connections per second of the measured process' CPU time: the rate that one fully
    /// used core would sustain.
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
            let connecting = self.connect_once(endpoint, prepared);
            let connected = with_timeout(TIMEOUT, "a connection", connecting).await;
            let (now, mut counters) = (Instant::now(), counters.borrow_mut());
            match connected {
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

    /// Opens one connection and closes it. The returned time does not include closing.
    async fn connect_once(
        &self,
        endpoint: &Endpoint,
        prepared: &PreparedLogin,
    ) -> Result<Duration> {
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
