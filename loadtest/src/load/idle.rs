//! Connections that are logged in and rest, and the memory that they cost.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::MAX_CONNECTIONS;
use crate::client::Client;
use crate::endpoint::{Login, Member, Target};
use crate::error::{Error, Result};
use crate::message::query;
use crate::process_usage::{self, Pid};
use crate::progress::Progress;
use crate::runtime::{Runtime, within};

/// Logins under way at a time: what comes at once is another load's business.
const ABREAST: usize = 32;
/// For one step of the climb.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between the last login and the look at the memory.
const SETTLE: Duration = Duration::from_millis(500);

/// How many connections, and whose memory.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The other end.
    pub target: Target,
    /// Who logs in.
    pub login: Login,
    /// Connections at which memory is looked at, rising.
    pub steps: Vec<usize>,
    /// How long all of them rest before the last look.
    pub rest: Duration,
    /// The process whose memory counts.
    pub pid: Pid,
}

/// Memory of the process with so many connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Connections that are logged in.
    pub connections: usize,
    /// Proportional set size, in KB.
    pub pss: f64,
    /// Resident set size, in KB.
    pub rss: f64,
}

/// The climb.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Without connections, after one that warmed it up.
    pub before: Point,
    /// At each step.
    pub climb: Vec<Point>,
    /// At the last step, after the rest.
    pub rested: Point,
}

impl Outcome {
    /// KB for each connection at `point`, over what there was before.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "20,000 at most")]
    pub fn per_connection(&self, point: Point) -> f64 {
        (point.pss - self.before.pss) / point.connections.max(1) as f64
    }
}

impl Plan {
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
        let member = Member::new(&self.login)?;
        progress.done.store(0, Ordering::Relaxed);
        runtime.block_on(async {
            let held = RefCell::new(Vec::new());
            self.warm_up(&member).await?;
            let before = self.look(0).await?;
            let mut climb = Vec::new();
            for step in &self.steps {
                progress.check()?;
                self.open(&member, *step, &held, progress).await?;
                climb.push(self.look(*step).await?);
            }
            self.rest(progress).await?;
            let connections = held.borrow().len();
            let rested = self.look(connections).await?;
            Ok(Outcome {
                before,
                climb,
                rested,
            })
        })
    }

    async fn warm_up(&self, member: &Member) -> Result<()> {
        within(PATIENCE, "the first connection", async {
            one(&self.target, member).await?.close().await
        })
        .await
    }

    async fn look(&self, connections: usize) -> Result<Point> {
        monoio::time::sleep(SETTLE).await;
        let memory = process_usage::memory(self.pid)?;
        let kilobytes = |bytes: u64| f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX));
        Ok(Point {
            connections,
            pss: kilobytes(memory.pss),
            rss: kilobytes(memory.rss),
        })
    }

    async fn rest(&self, progress: &Progress) -> Result<()> {
        let end = Instant::now() + self.rest;
        while Instant::now() < end {
            progress.check()?;
            progress.now("resting");
            monoio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Logs in until so many are held.
    async fn open(
        &self,
        member: &Member,
        wanted: usize,
        held: &RefCell<Vec<Client>>,
        progress: &Progress,
    ) -> Result<()> {
        let missing = Cell::new(wanted.saturating_sub(held.borrow().len()));
        let openers = (0..ABREAST).map(|_| async {
            while let Some(left) = missing.get().checked_sub(1) {
                missing.set(left);
                let client = one(&self.target, member).await?;
                held.borrow_mut().push(client);
                let count = progress.done.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_multiple_of(100) {
                    progress.now(&format!("{count} connections"));
                }
            }
            Ok(())
        });
        let all = futures_util::future::try_join_all(openers);
        within(PATIENCE, "opening idle connections", all)
            .await
            .map(drop)
    }
}

/// One that has asked once: a proxy that puts its work off until the first
/// query has done it then.
async fn one(target: &Target, member: &Member) -> Result<Client> {
    let mut client = Client::log_in(target, member).await?;
    client.ask(&query("SELECT 1"), 1).await?;
    client.rest();
    Ok(client)
}
