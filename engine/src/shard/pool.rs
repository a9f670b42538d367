//! The threads: shards and workers, and what the sidecar's are built from.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::Process;
use crate::config::mode::Mode;
use crate::io::driver::{self, Driver};
use crate::io::listener::Listener;
use crate::io::mailbox::{Sender, mailbox};
use crate::io::offload::PendingJobs;
use crate::shard::context::{Desk, Plan};

use crate::sched::busy_poll::{BusyPoll, Polling};
use crate::sched::handshake_queue::Lane;
use crate::sched::yield_budget::Turns;
use crate::shard::balancer::Balance;
use crate::shard::{Limit, Message, Neighbours, Shard, Times};
use crate::telemetry::log::Journal;
use crate::telemetry::metrics::{Meters, Metrics};

/// What all shards of a process have in common, whatever they serve.
pub(crate) struct Site {
    metrics: Arc<Metrics>,
    driver: Driver,
    mode: Mode,
    limit: Arc<Limit>,
    times: Times,
    pin: bool,
    busy_poll: Polling,
}

impl Site {
    pub(crate) fn new(
        config: &Process,
        metrics: &Arc<Metrics>,
        driver: Driver,
        mode: Mode,
    ) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::clone(metrics),
            driver,
            mode,
            limit: Limit::new(config.max_connections),
            times: Times {
                login: config.login_timeout,
                idle: config.idle_timeout,
                revocation: config.revocation_grace,
            },
            pin: config.pin,
            busy_poll: config.busy_poll,
        })
    }
}

/// The running shards.
pub(crate) struct Shards {
    mailboxes: Arc<[Sender<Message>]>,
    running: usize,
    ended: mpsc::UnboundedReceiver<Result<(), String>>,
}

/// Starts a shard for each listener.
///
/// # Errors
/// The system has no thread or descriptor left.
pub(crate) fn start<P: Plan>(
    plan: &Arc<P>,
    site: &Arc<Site>,
    listeners: Vec<Listener>,
) -> io::Result<Shards> {
    let cores = site.pin.then(core_affinity::get_core_ids).flatten();
    let cores = cores.unwrap_or_default();
    let (report, ended) = mpsc::unbounded_channel();
    let (made, all_made) = std::sync::mpsc::channel::<()>();
    let ends = listeners.iter().map(|_| mailbox());
    let ends = ends.collect::<io::Result<Vec<_>>>()?;
    let mailboxes: Arc<[_]> = ends.iter().map(|(sender, _)| sender.clone()).collect();
    let balance = Balance::new(listeners.len());
    for (index, (listener, (sender, inbox))) in listeners.into_iter().zip(ends).enumerate() {
        let core = cores.get(index).copied();
        let neighbours = Neighbours {
            own: index,
            balance: Arc::clone(&balance),
            mailboxes: Arc::clone(&mailboxes),
        };
        let (plan, site, report) = (Arc::clone(plan), Arc::clone(site), report.clone());
        let made = made.clone();
        let start = std::thread::Builder::new().name(format!("shard-{index}"));
        start.spawn(move || {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            // Its first use takes 25 ms, which nobody should find in a handshake.
            let _ = aws_lc_rs::rand::fill(&mut [0]);
            let main = async {
                let shard = shard(&plan, &site, neighbours, sender);
                drop(made);
                shard.run(listener, inbox).await
            };
            let run = std::panic::AssertUnwindSafe(|| driver::block_on(site.driver, main));
            let end = match std::panic::catch_unwind(run) {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(error)) | Err(error)) => Err(error.to_string()),
                Err(_) => Err("panic".to_owned()),
            };
            // The control thread may be gone already.
            let _ = report.send(end);
        })?;
    }
    drop(made);
    // Ends when each shard has made its things or has failed: its series are
    // there before anybody is told that it runs.
    let _ = all_made.recv();
    Ok(Shards {
        running: mailboxes.len(),
        mailboxes,
        ended,
    })
}

fn shard<P: Plan>(
    plan: &Arc<P>,
    site: &Site,
    neighbours: Neighbours,
    sender: Sender<Message>,
) -> Rc<Shard<P::Service>> {
    let jobs = PendingJobs::new(Arc::new(move |result| {
        sender.send(Message::JobDone(result))
    }));
    let turns = Turns::new(jobs.clone());
    let service = plan.service(Desk {
        jobs: jobs.clone(),
        lane: Lane::new(site.times.login),
        meters: Rc::new(Meters::new(&site.metrics, neighbours.own)),
        journal: Rc::new(Journal::new(site.mode)),
    });
    Shard::new(
        service,
        jobs,
        site.times,
        Arc::clone(&site.limit),
        neighbours,
        BusyPoll::new(site.busy_poll),
        turns,
    )
}

impl Shards {
    pub(crate) fn tell(&self, message: impl Fn() -> Message) {
        for shard in self.mailboxes.iter() {
            shard.send(message());
        }
    }

    /// Why a shard ended that should not have.
    pub(crate) async fn failure(&mut self) -> String {
        match self.ended.recv().await {
            Some(Err(reason)) => reason,
            Some(Ok(())) => "it stopped accepting".to_owned(),
            None => "all of them".to_owned(),
        }
    }

    /// Until every one has ended after a drain.
    ///
    /// # Errors
    /// One of them failed.
    pub(crate) async fn all_ended(&mut self) -> Result<(), String> {
        while self.running > 0 {
            match self.ended.recv().await {
                Some(Ok(())) => self.running -= 1,
                Some(Err(reason)) => return Err(reason),
                None => return Err("all of them".to_owned()),
            }
        }
        Ok(())
    }
}
