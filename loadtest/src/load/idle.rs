//! Idle connections, logged in, and the memory that the measured process uses for them.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::MAX_CONNECTIONS;
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::{Error, Result};
use crate::message::query;
use crate::process_usage::{self, Pid};
use crate::progress::Progress;
use crate::runtime::{Runtime, with_timeout};

/// Concurrent logins. Surges of new connections are the subject of other loads.
const CONCURRENT_LOGINS: usize = 32;
/// Time limit for one step.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Delay between the last login and the memory sample.
const SETTLE: Duration = Duration::from_millis(500);

/// The number of idle connections and the process to measure.
#[derive(Clone, Debug)]
pub struct IdleLoad {
    /// The server to connect to.
    pub endpoint: Endpoint,
    /// The role that logs in.
    pub login: Login,
    /// Numbers of connections at which memory is sampled, ascending.
    pub steps: Vec<usize>,
    /// How long all connections stay idle before the last sample.
    pub idle_time: Duration,
    /// The process whose memory is sampled.
    pub pid: Pid,
}

/// Memory of the process at one number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Open connections, all logged in.
    pub connections: usize,
    /// Proportional set size, in KB.
    pub pss: f64,
    /// Resident set size, in KB.
    pub rss: f64,
}

/// Memory samples of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Without connections, after a first one that warmed the process up.
    pub before: MemorySample,
    /// At each step.
    #[serde(alias = "climb")]
    pub steps: Vec<MemorySample>,
    /// At the last step, after the idle time.
    #[serde(alias = "rested")]
    pub after_idle: MemorySample,
}

impl Outcome {
    /// KB for each connection in `sample`, above the memory before.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "20,000 at most")]
    pub fn per_connection(&self, sample: MemorySample) -> f64 {
        (sample.pss - self.before.pss) / sample.connections.max(1) as f64
    }
}

impl IdleLoad {
    /// Opens the connections step by step and samples the memory.
    ///
    /// # Errors
    /// The failure of any connection, or more than 20,000 of them.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        if self.steps.iter().any(|step| *step > MAX_CONNECTIONS) {
            return Err(Error::Usage(format!(
                "idle load: at most {MAX_CONNECTIONS} connections"
            )));
        }
        let mut runtime = Runtime::new()?;
        let prepared = PreparedLogin::new(&self.login)?;
        progress.done.store(0, Ordering::Relaxed);
        runtime.block_on(async {
            let open = RefCell::new(Vec::new());
            self.warm_up(&prepared).await?;
            let before = self.sample_memory(0).await?;
            let mut steps = Vec::new();
            for step in &self.steps {
                progress.check_signal()?;
                self.open(&prepared, *step, &open, progress).await?;
                steps.push(self.sample_memory(*step).await?);
            }
            self.idle_time(progress).await?;
            let connections = open.borrow().len();
            let after_idle = self.sample_memory(connections).await?;
            Ok(Outcome {
                before,
                steps,
                after_idle,
            })
        })
    }

    async fn warm_up(&self, prepared: &PreparedLogin) -> Result<()> {
        with_timeout(TIMEOUT, "the first connection", async {
            open_idle(&self.endpoint, prepared).await?.close().await
        })
        .await
    }

    async fn sample_memory(&self, connections: usize) -> Result<MemorySample> {
        monoio::time::sleep(SETTLE).await;
        let memory = process_usage::memory(self.pid)?;
        let kilobytes = |bytes: u64| f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
        Ok(MemorySample {
            connections,
            pss: kilobytes(memory.pss),
            rss: kilobytes(memory.rss),
        })
    }

    async fn idle_time(&self, progress: &Progress) -> Result<()> {
        let end = Instant::now() + self.idle_time;
        while Instant::now() < end {
            progress.check_signal()?;
            progress.status("connections are idle");
            monoio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Logs in until `wanted` connections are open.
    async fn open(
        &self,
        prepared: &PreparedLogin,
        wanted: usize,
        open: &RefCell<Vec<Client>>,
        progress: &Progress,
    ) -> Result<()> {
        let missing = Cell::new(wanted.saturating_sub(open.borrow().len()));
        let openers = (0..CONCURRENT_LOGINS).map(|_| async {
            while let Some(left) = missing.get().checked_sub(1) {
                missing.set(left);
                let client = open_idle(&self.endpoint, prepared).await?;
                open.borrow_mut().push(client);
                let count = progress.done.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_multiple_of(100) {
                    progress.status(&format!("{count} idle connections"));
                }
            }
            Ok(())
        });
        let all = futures_util::future::try_join_all(openers);
        with_timeout(TIMEOUT, "opening idle connections", all)
            .await
            .map(drop)
    }
}

/// Opens a connection and runs one query on it: a proxy that defers work until the first query has
/// then done it.
async fn open_idle(endpoint: &Endpoint, prepared: &PreparedLogin) -> Result<Client> {
    let mut client = Client::log_in(endpoint, prepared).await?;
    client.request(&query("SELECT 1"), 1).await?;
    client.release_buffers();
    Ok(client)
}
