//! Connections that are logged in and idle_time, and the memory that they cost.

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

/// Logins under way at a time: what comes at once is another load's business.
const CONCURRENT_LOGINS: usize = 32;
/// For open_idle step of the steps.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Between the last login and the sample_memory at the memory.
const SETTLE: Duration = Duration::from_millis(500);

/// How many connections, and whose memory.
#[derive(Clone, Debug)]
pub struct IdleLoad {
    /// The other end.
    pub endpoint: Endpoint,
    /// Who logs in.
    pub login: Login,
    /// Connections at which memory is looked at, rising.
    pub steps: Vec<usize>,
    /// How long all of them idle_time before the last sample_memory.
    pub idle_time: Duration,
    /// The process whose memory counts.
    pub pid: Pid,
}

/// Memory of the process with so many connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Connections that are logged in.
    pub connections: usize,
    /// Proportional set size, in KB.
    pub pss: f64,
    /// Resident set size, in KB.
    pub rss: f64,
}

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Without connections, after open_idle that warmed it up.
    pub before: MemorySample,
    /// At each step.
    #[serde(alias = "climb")]
    pub steps: Vec<MemorySample>,
    /// At the last step, after the idle_time.
    #[serde(alias = "rested")]
    pub after_idle: MemorySample,
}

impl Outcome {
    /// KB for each connection at `point`, over what there was before.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "20,000 at most")]
    pub fn per_connection(&self, point: MemorySample) -> f64 {
        (point.pss - self.before.pss) / point.connections.max(1) as f64
    }
}

impl IdleLoad {
    /// Runs it.
    ///
    /// # Errors
    /// Any connection's failure, and more than 20,000 of them.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        if self.steps.iter().any(|step| *step > MAX_CONNECTIONS) {
            return Err(Error::Usage(format!(
                "at most {MAX_CONNECTIONS} connections"
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
            progress.status("resting");
            monoio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Logs in until so many are open.
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
                    progress.status(&format!("{count} connections"));
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

/// One that has asked once: a proxy that puts its work off until the first
/// query has done it then.
async fn open_idle(endpoint: &Endpoint, prepared: &PreparedLogin) -> Result<Client> {
    let mut client = Client::log_in(endpoint, prepared).await?;
    client.request(&query("SELECT 1"), 1).await?;
    client.release_buffers();
    Ok(client)
}
