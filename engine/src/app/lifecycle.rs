//! The lifecycle that both processes share: run, drain, terminate.
//!
//! A process accepts connections until it is asked to stop. It then drains: the listeners
//! close and sessions may finish for `drain_timeout`. Sessions that are left are terminated
//! with a message to their clients, for which they have `TERMINATE_GRACE`. Everything here
//! runs on the control thread; no connection is served on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::Latch;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::error::{StartError, system};
use crate::app::runtime;
use crate::app::signals::SignalSource;
use crate::app::systemd;
use crate::io::backoff::Backoff;
use crate::io::driver::{self, DriverChoice, IoDriver};
use crate::shard::message::Message;
use crate::shard::pool::ShardPool;
use crate::telemetry::metrics::Metrics;

/// Termination takes a connection at most twice 2 s (`CLOSE_GRACE`). A shard that is not
/// done after this time is abandoned.
const TERMINATE_GRACE: Duration = Duration::from_secs(6);
/// Histograms keep every sample until they are summed up, by a scrape or at this interval.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every session has ended.
    Drained,
    /// A second signal arrived while it drained; its number.
    Interrupted(i32),
}

/// What a second stop request does while sessions drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecondStop {
    /// The process exits without waiting for its sessions.
    Exit,
    /// Draining ends, and the sessions are terminated.
    Terminate,
}

/// What differs between the sidecar and the forwarder while they run.
pub(crate) trait Process {
    /// What a second stop request does.
    const SECOND_STOP: SecondStop;
    /// Whether systemd is notified. A forwarder that is part of another program does not do so.
    const NOTIFY_SYSTEMD: bool;

    /// Handles SIGHUP. Returns whether sessions must be verified again.
    async fn reload(&mut self) -> bool;

    /// Waits for the next work that is due at a certain time, and does it. Must be safe to
    /// cancel while it waits.
    async fn timed_work(&mut self);
}

/// The running shards and what the lifecycle needs besides them.
pub(crate) struct Lifecycle {
    pub(crate) shards: ShardPool,
    /// Signals that collateral has changed.
    pub(crate) collateral_changed: mpsc::UnboundedReceiver<()>,
    /// The readiness check `accepting`.
    pub(crate) accepting: Latch,
    pub(crate) drain_timeout: Duration,
}

impl Lifecycle {
    /// Serves until a stop request, then drains.
    ///
    /// # Errors
    /// A shard failed, or has sessions left after [`TERMINATE_GRACE`].
    pub(crate) async fn run<P: Process>(
        &mut self,
        process: &mut P,
        signals: &mut impl SignalSource,
    ) -> Result<Outcome, StartError> {
        notify::<P>(systemd::notify_ready);
        let signal = loop {
            tokio::select! {
                Some(()) = self.collateral_changed.recv() => self.revalidate(),
                () = process.timed_work() => {}
                reason = self.shards.failure() => return Err(StartError::Shard(reason)),
                signal = signals.next() => {
                    if signal != SignalKind::hangup() {
                        break signal;
                    }
                    notify::<P>(systemd::notify_reloading);
                    if process.reload().await {
                        self.revalidate();
                    }
                    notify::<P>(systemd::notify_ready);
                }
            }
        };
        let drain_timeout = self.drain_timeout;
        tracing::info!(
            signal = signal.as_raw_value(),
            ?drain_timeout,
            "draining: no new connections are accepted"
        );
        notify::<P>(systemd::notify_stopping);
        self.accepting.set_not_ready("draining");
        self.shards.broadcast(|| Message::Drain);
        match self.wait_for_end(signals, drain_timeout).await? {
            Wait::Ended => return Ok(Outcome::Drained),
            Wait::Stop(signal) if P::SECOND_STOP == SecondStop::Exit => {
                return Ok(Outcome::Interrupted(signal.as_raw_value()));
            }
            Wait::Stop(_) => {}
            Wait::Timeout => {
                tracing::info!("drain timeout reached, terminating the remaining sessions");
            }
        }
        self.shards.broadcast(|| Message::TerminateAll);
        let deadline = Instant::now() + TERMINATE_GRACE;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.wait_for_end(signals, remaining).await? {
                Wait::Ended => return Ok(Outcome::Drained),
                Wait::Stop(signal) if P::SECOND_STOP == SecondStop::Exit => {
                    return Ok(Outcome::Interrupted(signal.as_raw_value()));
                }
                Wait::Stop(_) => {}
                Wait::Timeout => {
                    let reason = "sessions remain after their termination";
                    return Err(StartError::Shard(reason.to_owned()));
                }
            }
        }
    }

    /// Has every shard verify the peers of its sessions again.
    fn revalidate(&self) {
        self.shards.broadcast(|| Message::Revalidate);
    }

    /// Waits until every shard has ended, a stop request arrives, or `limit` has passed.
    async fn wait_for_end(
        &mut self,
        signals: &mut impl SignalSource,
        limit: Duration,
    ) -> Result<Wait, StartError> {
        tokio::select! {
            signal = signals.next_stop() => Ok(Wait::Stop(signal)),
            ended = timeout_at(Instant::now() + limit, self.shards.all_ended()) => match ended {
                Ok(Ok(())) => Ok(Wait::Ended),
                Ok(Err(reason)) => Err(StartError::Shard(reason)),
                Err(_) => Ok(Wait::Timeout),
            },
        }
    }
}

fn notify<P: Process>(state: fn()) {
    if P::NOTIFY_SYSTEMD {
        state();
    }
}

enum Wait {
    Ended,
    Stop(SignalKind),
    Timeout,
}

/// Runs `main` on this thread, which becomes the control thread.
///
/// # Errors
/// The runtime cannot be created, or `main` failed.
pub(crate) fn run_control_thread<T>(
    main: impl Future<Output = Result<T, StartError>>,
) -> Result<T, StartError> {
    runtime::new_current_thread()
        .map_err(system("cannot start the control thread"))?
        .block_on(main)
}

/// The I/O driver of the shards.
///
/// # Errors
/// The setting requires io_uring, and the kernel does not allow it.
pub(crate) fn choose_driver(choice: DriverChoice) -> Result<IoDriver, StartError> {
    let (driver, refusal) = driver::choose(choice).map_err(system("io_uring is not available"))?;
    if let Some(error) = refusal {
        tracing::warn!(%error, "io_uring is not available, using epoll");
    }
    Ok(driver)
}

/// Serves HTTP on `address`, if there is one.
///
/// # Errors
/// The address cannot be bound, or no thread can be started.
pub(crate) fn serve_admin(
    address: Option<SocketAddr>,
    start: impl FnOnce(std::net::TcpListener) -> io::Result<admin::Server>,
) -> Result<Option<admin::Server>, StartError> {
    let Some(address) = address else {
        return Ok(None);
    };
    std::net::TcpListener::bind(address)
        .and_then(start)
        .map(Some)
        .map_err(system(format!("cannot serve HTTP on {address}")))
}

/// Sums up histograms regularly, for as long as the control thread's runtime lives.
pub(crate) fn spawn_metrics_upkeep(metrics: &Arc<Metrics>) {
    let metrics = Arc::clone(metrics);
    tokio::spawn(async move {
        loop {
            sleep(METRICS_UPKEEP).await;
            metrics.upkeep();
        }
    });
}

/// The delays between attempts to reach a guest agent or a Postgres that is not up yet.
pub(crate) fn start_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}
