//! The clients that write, and the ledger of what was acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls};

use crate::error::{Error, Result};

/// Longest time for a connection and a write: a client without a limit waits for a dead member.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(35);
/// Longest time for a write in an open session.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two writes of a client.
const WRITE_PAUSE: Duration = Duration::from_millis(20);

/// The row's key, and the timeline of the server that wrote it.
const INSERT: &str = "INSERT INTO acknowledged (id) VALUES ($1) \
     RETURNING ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) id: i64,
    pub(super) timeline: u32,
    pub(super) sent: Instant,
    pub(super) acknowledged: Instant,
}

/// All acknowledged writes.
#[derive(Default)]
pub(super) struct Ledger {
    writes: RefCell<Vec<Write>>,
    next: Cell<i64>,
}

impl Ledger {
    pub(super) fn writes(&self) -> Vec<Write> {
        self.writes.borrow().clone()
    }

    /// The latest timeline.
    pub(super) fn timeline(&self) -> u32 {
        let writes = self.writes.borrow();
        writes.iter().map(|write| write.timeline).max().unwrap_or(0)
    }

    /// When the first write on a later timeline was acknowledged.
    pub(super) fn first_after(&self, timeline: u32) -> Option<Instant> {
        let writes = self.writes.borrow();
        let later = writes.iter().filter(|write| write.timeline > timeline);
        later.map(|write| write.acknowledged).min()
    }

    /// When the last write until this timeline was acknowledged.
    pub(super) fn last_until(&self, timeline: u32) -> Option<Instant> {
        let writes = self.writes.borrow();
        let earlier = writes.iter().filter(|write| write.timeline <= timeline);
        earlier.map(|write| write.acknowledged).max()
    }

    fn next_id(&self) -> i64 {
        let id = self.next.get();
        self.next.set(id + 1);
        id
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
        let (ledger, stop) = (Rc::<Ledger>::default(), Rc::<Cell<bool>>::default());
        let task = |keep: bool| {
            let (config, ledger, stop) = (config.clone(), Rc::clone(&ledger), Rc::clone(&stop));
            tokio::task::spawn_local(write_until(config, ledger, stop, keep))
        };
        let tasks = [task(true), task(false)];
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
async fn write_until(config: Config, ledger: Rc<Ledger>, stop: Rc<Cell<bool>>, keep: bool) {
    let mut session = None;
    while !stop.get() {
        if session.is_none() {
            session = timeout(ATTEMPT_TIMEOUT, connect(&config))
                .await
                .ok()
                .and_then(Result::ok);
        }
        let written = match &session {
            Some(client) => write(client, &ledger).await,
            None => None,
        };
        if written.is_none() || !keep {
            session = None;
        }
        match written {
            Some(write) => {
                ledger.writes.borrow_mut().push(write);
                tokio::time::sleep(WRITE_PAUSE).await;
            }
            None => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

async fn write(client: &Client, ledger: &Ledger) -> Option<Write> {
    let id = ledger.next_id();
    let sent = Instant::now();
    let row = timeout(WRITE_TIMEOUT, client.query_one(INSERT, &[&id])).await;
    let row = row.ok()?.ok()?;
    let timeline: i32 = row.try_get(0).ok()?;
    Some(Write {
        id,
        timeline: u32::try_from(timeline).ok()?,
        sent,
        acknowledged: Instant::now(),
    })
}

/// libpq's variables that `dev --members` sets.
pub(super) fn config_from_environment() -> Result<Config> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut config = Config::new();
    for host in variable("PGHOST").split(',') {
        match host.starts_with('/') {
            true => config.host_path(Path::new(host)),
            false => config.host(host),
        };
    }
    if variable("PGTARGETSESSIONATTRS") == "read-write" {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    let port = variable("PGPORT").parse().unwrap_or(5432);
    config
        .port(port)
        .user(variable("PGUSER"))
        .password(variable("PGPASSWORD"))
        .dbname(variable("PGDATABASE"))
        .connect_timeout(WRITE_TIMEOUT);
    Ok(config)
}

/// Opens a session.
pub(super) async fn connect(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await.map_err(server)?;
    tokio::spawn(async move {
        // The client gets the same error.
        let _ = connection.await;
    });
    Ok(client)
}

/// Creates an empty table for the writes.
pub(super) async fn create_table(config: &Config) -> Result<()> {
    let client = connect(config).await?;
    let sql =
        "DROP TABLE IF EXISTS acknowledged; CREATE TABLE acknowledged (id bigint PRIMARY KEY)";
    client.batch_execute(sql).await.map_err(server)
}

/// The keys of all writes that exist.
pub(super) async fn existing(config: &Config) -> Result<HashSet<i64>> {
    let client = connect(config).await?;
    let rows = client
        .query("SELECT id FROM acknowledged", &[])
        .await
        .map_err(server)?;
    rows.iter()
        .map(|row| row.try_get(0).map_err(server))
        .collect()
}

fn server(error: tokio_postgres::Error) -> Error {
    let detail = error.as_db_error().map(|error| error.message().to_owned());
    Error::Server(detail.unwrap_or_else(|| error.to_string()))
}
