//! How long writes stop when the leader of a cluster fails or hands over, and whether an acknowledged write is lost.
//!
//! It runs as the command of `teesql-sidecar dev --members`, whose members it kills and starts. Two clients write
//! without pause: one keeps its session for as long as it works, the other opens one for each write. Each write returns
//! the timeline that took it. A round ends at the first acknowledged write on a new timeline.
//!
//! It must never count a write whose acknowledgement it did not receive: such a write may or may not exist.

mod cpu;
mod report;
mod throughput;
mod writer;

use std::time::{Duration, Instant};

use crate::consistency::table;
use crate::dev_cluster::{self, DevCluster};
use crate::error::{Error, Result, io_context};
use crate::progress::Progress;
pub use report::Report;
use writer::{Ledger, Writers};

/// Longest time for writes to return, and for a member to come back.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);
/// Between the end of a round and the next one, in which both clients write.
const PAUSE: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of kills of the leader's member.
    pub failovers: u32,
    /// Number of planned switchovers.
    pub switchovers: u32,
    /// Seconds for which the CPU of the idle sidecars is measured; 0 for not at all.
    pub idle: u64,
    /// MiB of a table for a base backup over a link and for COPY; 0 for neither.
    pub backup: u64,
    /// Name of the results.
    pub label: String,
}

/// Measures, and returns the results.
///
/// # Errors
/// The cluster does not come back, or the environment is not that of `dev --members`.
pub fn run(options: &Options, progress: &Progress) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_context("cannot start a runtime"))?;
    runtime.block_on(writer::with_local_tasks(measure(options, progress)))
}

async fn measure(options: &Options, progress: &Progress) -> Result<Report> {
    let cluster = DevCluster::from_environment()?;
    let config = dev_cluster::leader_config()?;
    wait_until_complete(&cluster).await?;
    let mut report = Report::new(&options.label);
    if options.idle > 0 {
        progress.log("CPU of the idle sidecars");
        report.idle_percent = cpu::of_sidecars(Duration::from_secs(options.idle)).await;
    }
    if options.backup > 0 {
        progress.log("throughput of a base backup and of COPY");
        report.throughput = Some(throughput::measure(&cluster, &config, options.backup).await?);
    }
    table::create(&config).await?;
    let writers = Writers::start(&config);
    for round in 1..=options.failovers {
        let outage = fail_over(&cluster, writers.ledger(), progress).await?;
        progress.log(&format!("failover {round}: {outage}"));
        report.failovers.push(outage);
    }
    for round in 1..=options.switchovers {
        let outage = switch_over(&cluster, writers.ledger(), progress).await?;
        progress.log(&format!("switchover {round}: {outage}"));
        report.switchovers.push(outage);
    }
    let ledger = writers.stop().await;
    report.check(ledger.writes(), &table::read(&config).await?);
    Ok(report)
}

/// Kills everything on the leader's member, and starts it again once writes have returned.
async fn fail_over(
    cluster: &DevCluster,
    ledger: &Ledger,
    progress: &Progress,
) -> Result<report::Outage> {
    let leader = settle(cluster, ledger, progress).await?;
    let timeline = ledger.timeline();
    let began = ledger.now();
    request(cluster, "kill", &leader).await?;
    let outage = wait_for_write(ledger, timeline, began, progress).await?;
    request(cluster, "start", &leader).await?;
    Ok(outage)
}

/// Asks for an action on a member while the clients go on.
async fn request(cluster: &DevCluster, action: &'static str, member: &str) -> Result<()> {
    let member = member.to_owned();
    let ask = move |cluster: &DevCluster| cluster.request(&[action, &member]);
    cluster.in_background(ask).await.map(drop)
}

async fn switch_over(
    cluster: &DevCluster,
    ledger: &Ledger,
    progress: &Progress,
) -> Result<report::Outage> {
    let leader = settle(cluster, ledger, progress).await?;
    let timeline = ledger.timeline();
    let began = ledger.now();
    request_switchover(cluster, &leader).await?;
    wait_for_write(ledger, timeline, began, progress).await
}

/// Asks Patroni for a switchover to any standby: its REST API answers sooner than patronictl starts.
async fn request_switchover(cluster: &DevCluster, leader: &str) -> Result<()> {
    let line = format!(
        "address=$(sed -n 's/^  listen: *\"\\{{0,1\\}}\\([^\"]*\\)\"\\{{0,1\\}}$/\\1/p' patroni.yml | head -n 1); \
         curl -sS -X POST -d '{{\"leader\":\"{leader}\"}}' \"http://$address/switchover\""
    );
    let leader = leader.to_owned();
    let shell = move |cluster: &DevCluster| cluster.request(&["exec", &leader, "sh", "-c", &line]);
    cluster.in_background(shell).await.map(drop)
}

/// Waits until all members run and a client writes, and lets both write for a while. Returns the leader's name.
async fn settle(cluster: &DevCluster, ledger: &Ledger, progress: &Progress) -> Result<String> {
    progress.check_signal()?;
    wait_until_complete(cluster).await?;
    let complete = ledger.now();
    // Without a write the timeline is not known, and any write would end the round.
    while ledger
        .last_until(u32::MAX)
        .is_none_or(|last| last <= complete)
    {
        progress.check_signal()?;
        if ledger.now().saturating_sub(complete) > ROUND_TIMEOUT {
            return Err(Error::Timeout("a write"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(PAUSE).await;
    let list = cluster.in_background(DevCluster::list).await?;
    let leader = list.into_iter().find(|member| member.leads());
    let leader = leader.ok_or_else(|| Error::Peer("no member leads".to_owned()))?;
    Ok(leader.name)
}

async fn wait_until_complete(cluster: &DevCluster) -> Result<()> {
    let deadline = Instant::now() + ROUND_TIMEOUT;
    loop {
        let list = cluster.in_background(DevCluster::list).await;
        if list.is_ok_and(|list| cluster.is_complete(&list)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout("all members to replicate"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits for the first write on a later timeline.
async fn wait_for_write(
    ledger: &Ledger,
    timeline: u32,
    began: Duration,
    progress: &Progress,
) -> Result<report::Outage> {
    loop {
        if let Some(first) = ledger.first_after(timeline) {
            let last = ledger.last_until(timeline).unwrap_or(began);
            return Ok(report::Outage {
                from_command: first.saturating_sub(began).as_secs_f64(),
                gap: first.saturating_sub(last).as_secs_f64(),
            });
        }
        if ledger.now().saturating_sub(began) > ROUND_TIMEOUT {
            return Err(Error::Timeout("writes to return"));
        }
        progress.check_signal()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
