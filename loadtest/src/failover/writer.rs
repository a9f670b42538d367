//! The clients that write, and the ledger of what became of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;
use tokio_postgres::Config;

use crate::consistency::history::{Outcome, Write};
use crate::consistency::table;
use crate::dev_cluster::connect;

/// Longest time for a connection: a client without a limit waits for a dead member.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(35);
/// Longest time for a write in an open session.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two writes of a client.
const WRITE_PAUSE: Duration = Duration::from_millis(20);

/// All writes. Its clock begins when it is created.
pub(super) struct Ledger {
    start: Instant,
    writes: RefCell<Vec<Write>>,
}

impl Ledger {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            writes: RefCell::default(),
        }
    }

    /// The time since its start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn writes(&self) -> Vec<Write> {
        self.writes.borrow().clone()
    }

    /// The latest timeline.
    pub(super) fn timeline(&self) -> u32 {
        let writes = self.writes.borrow();
        writes
            .iter()
            .filter_map(acknowledged)
            .map(|(_, timeline)| timeline)
            .max()
            .unwrap_or(0)
    }

    /// When the first write on a later timeline was acknowledged.
    pub(super) fn first_after(&self, timeline: u32) -> Option<Duration> {
        let writes = self.writes.borrow();
        let later = writes
            .iter()
            .filter_map(acknowledged)
            .filter(|(_, of)| *of > timeline);
        later.map(|(at, _)| at).min()
    }

    /// When the last write until this timeline was acknowledged.
    pub(super) fn last_until(&self, timeline: u32) -> Option<Duration> {
        let writes = self.writes.borrow();
        let earlier = writes
            .iter()
            .filter_map(acknowledged)
            .filter(|(_, of)| *of <= timeline);
        earlier.map(|(at, _)| at).max()
    }
}

/// When a write was acknowledged, and its timeline.
pub(super) fn acknowledged(write: &Write) -> Option<(Duration, u32)> {
    match write.outcome {
        Outcome::Acknowledged { at, timeline } => Some((at, timeline)),
        Outcome::Unknown | Outcome::Refused => None,
    }
}

/// The two clients.
pub(super) struct Writers {
    ledger: Rc<Ledger>,
    stop: Rc<Cell<bool>>,
    tasks: [JoinHandle<()>; 2],
}

impl Writers {
    /// Starts both.
    pub(super) fn start(config: &Config) -> Self {
        let (ledger, stop) = (Rc::new(Ledger::new()), Rc::<Cell<bool>>::default());
        let task = |writer, keep| {
            let (config, ledger, stop) = (config.clone(), Rc::clone(&ledger), Rc::clone(&stop));
            tokio::task::spawn_local(write_until(writer, config, ledger, stop, keep))
        };
        let tasks = [task(0, true), task(1, false)];
        Self {
            ledger,
            stop,
            tasks,
        }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends both after their current write.
    pub(super) async fn stop(self) -> Rc<Ledger> {
        self.stop.set(true);
        for task in self.tasks {
            let _ = task.await;
        }
        self.ledger
    }
}

/// Runs a future with the tasks that it spawns on this thread.
pub(super) async fn with_local_tasks<T>(future: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(future).await
}

/// Writes until it is told to stop, in one session as long as that works, or in one for each write.
async fn write_until(
    writer: u32,
    config: Config,
    ledger: Rc<Ledger>,
    stop: Rc<Cell<bool>>,
    keep: bool,
) {
    let mut session = None;
    let mut number = 0;
    while !stop.get() {
        let open = match session.take() {
            Some(open) => Some(open),
            None => timeout(ATTEMPT_TIMEOUT, connect(&config))
                .await
                .ok()
                .and_then(Result::ok),
        };
        let Some(client) = open else {
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        number += 1;
        let begun = ledger.now();
        let written = timeout(WRITE_TIMEOUT, table::insert(&client, writer, number)).await;
        let outcome = match written {
            Ok(Ok(timeline)) => Outcome::Acknowledged {
                at: ledger.now(),
                timeline,
            },
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        };
        let works = outcome != Outcome::Unknown;
        ledger.writes.borrow_mut().push(Write {
            writer,
            number,
            begun,
            outcome,
        });
        session = (works && keep).then_some(client);
        tokio::time::sleep(if works { WRITE_PAUSE } else { RETRY_PAUSE }).await;
    }
}
