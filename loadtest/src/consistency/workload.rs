//! The clients of a run: writers with a sequence each, and readers, in the manner of Jepsen's set and
//! monotonic-read workloads. All of them connect again when their connection ends.
//!
//! A write whose outcome a client does not know for certain is [`Outcome::Unknown`]. It must never
//! be repeated with the same number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::history::{Failure, History, Outcome, Read, Write};
use crate::error::{Error, Result};

/// Longer than a login waits for a leader, which is 30 s by default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Longer than an election.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a client waits after a failure before it connects again.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// The pause of a reader between two looks, and of a writer between two writes.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum number of failures that one client records.
const MAX_FAILURES: usize = 10_000;

/// The timeline is that of the segment which the server writes: a promoted server has a new one.
const INSERT: &str = "INSERT INTO teesql_consistency (writer, number) VALUES ($1, $2) \
    RETURNING ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int";
const SELECT: &str = "SELECT writer, max(number) FROM teesql_consistency GROUP BY writer";

/// How to connect: to a forwarder, without TLS.
#[derive(Clone)]
pub struct Login {
    /// An IP address or a host name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The cluster secret.
    pub password: String,
}

/// How many clients there are of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// All of them use the first login of `run`.
    pub writers: u32,
    /// For each login of readers.
    pub readers: u32,
}

/// The progress of the clients while they run.
#[derive(Default)]
pub struct Counters {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    connections: AtomicU64,
}

impl Counters {
    /// Ends all clients after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The number of acknowledged writes so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Creates the table of the writes.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn create_table(login: &Login) -> Result<()> {
    let client = connect(login)
        .await
        .map_err(|failed| Error::Server(failed.text))?;
    let table = "CREATE TABLE IF NOT EXISTS teesql_consistency \
        (writer int, number bigint, PRIMARY KEY (writer, number)); TRUNCATE teesql_consistency";
    client
        .batch_execute(table)
        .await
        .map_err(|error| Error::Server(error.to_string()))
}

/// The rows of the table: writer and number.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn read_table(login: &Login) -> Result<Vec<(u32, u64)>> {
    let client = connect(login)
        .await
        .map_err(|failed| Error::Server(failed.text))?;
    let rows = client
        .query("SELECT writer, number FROM teesql_consistency", &[])
        .await;
    let rows = rows.map_err(|error| Error::Server(error.to_string()))?;
    let row = |row: tokio_postgres::Row| {
        Some((
            unsigned(row.get::<_, i32>(0))?,
            unsigned(row.get::<_, i64>(1))?,
        ))
    };
    Ok(rows.into_iter().filter_map(row).collect())
}

fn unsigned<A, B: TryFrom<A>>(number: A) -> Option<B> {
    number.try_into().ok()
}

/// Runs the clients until `counters` stops them, and returns what they recorded. The clock of the history begins at
/// `start`.
pub async fn run(
    writer: &Login,
    readers: &[Login],
    clients: Clients,
    counters: &Arc<Counters>,
    start: Instant,
) -> History {
    let mut tasks = JoinSet::new();
    for number in 0..clients.writers {
        let (login, counters) = (writer.clone(), Arc::clone(counters));
        tasks.spawn(async move { write(number, &login, &counters, start).await });
    }
    for login in readers {
        for _ in 0..clients.readers {
            let (login, counters) = (login.clone(), Arc::clone(counters));
            tasks.spawn(async move { read(&login, &counters, start).await });
        }
    }
    let mut history = History::default();
    while let Some(recorded) = tasks.join_next().await {
        if let Ok(recorded) = recorded {
            history.merge(recorded);
        }
    }
    history
}

async fn write(writer: u32, login: &Login, counters: &Counters, start: Instant) -> History {
    let mut recorder = Recorder::new(start);
    let mut number = 0;
    while !counters.is_stopped() {
        let client = match connect(login).await {
            Ok(client) => client,
            Err(failed) => {
                recorder.fail(failed).await;
                continue;
            }
        };
        while !counters.is_stopped() {
            number += 1;
            let begun = start.elapsed();
            let (outcome, failed) = match insert(&client, writer, number).await {
                Ok(timeline) => {
                    counters.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let at = start.elapsed();
                    (Outcome::Acknowledged { at, timeline }, None)
                }
                Err(failed) if failed.refused => (Outcome::Refused, Some(failed)),
                Err(failed) => (Outcome::Unknown, Some(failed)),
            };
            recorder.history.writes.push(Write {
                writer,
                number,
                begun,
                outcome,
            });
            if let Some(failed) = failed {
                recorder.fail(failed).await;
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    recorder.history
}

async fn insert(client: &Client, writer: u32, number: u64) -> std::result::Result<u32, Failed> {
    let (writer, number) = (writer.cast_signed(), number.cast_signed());
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&writer, &number];
    let answer = client.query_one(INSERT, &parameters);
    match tokio::time::timeout(STATEMENT_TIMEOUT, answer).await {
        Ok(Ok(row)) => Ok(row.get::<_, i32>(0).cast_unsigned()),
        Ok(Err(error)) => Err(Failed::new(&error)),
        Err(_) => Err(Failed::timeout("a statement")),
    }
}

async fn read(login: &Login, counters: &Counters, start: Instant) -> History {
    let mut recorder = Recorder::new(start);
    while !counters.is_stopped() {
        let client = match connect(login).await {
            Ok(client) => client,
            Err(failed) => {
                recorder.fail(failed).await;
                continue;
            }
        };
        let connection = counters.connections.fetch_add(1, Ordering::Relaxed);
        while !counters.is_stopped() {
            let answer = tokio::time::timeout(STATEMENT_TIMEOUT, client.query(SELECT, &[])).await;
            let failed = match answer {
                Ok(Ok(rows)) => {
                    let at = start.elapsed();
                    let read = |row: tokio_postgres::Row| {
                        Some(Read {
                            connection,
                            writer: unsigned(row.get::<_, i32>(0))?,
                            number: unsigned(row.get::<_, i64>(1))?,
                            at,
                        })
                    };
                    recorder
                        .history
                        .reads
                        .extend(rows.into_iter().filter_map(read));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(error)) => Failed::new(&error),
                Err(_) => Failed::timeout("a statement"),
            };
            recorder.fail(failed).await;
            break;
        }
    }
    recorder.history
}

struct Recorder {
    history: History,
    start: Instant,
}

impl Recorder {
    fn new(start: Instant) -> Self {
        Self {
            history: History::default(),
            start,
        }
    }

    /// Records the failure, and waits before the next attempt.
    async fn fail(&mut self, failed: Failed) {
        if self.history.failures.len() < MAX_FAILURES {
            self.history.failures.push(Failure {
                at: self.start.elapsed(),
                sqlstate: failed.sqlstate,
                text: failed.text,
            });
        }
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}

/// Why a connection or a statement failed.
struct Failed {
    sqlstate: Option<String>,
    text: String,
    /// The server has said that the statement has no effect.
    refused: bool,
}

impl Failed {
    fn new(error: &tokio_postgres::Error) -> Self {
        let database = error.as_db_error();
        let text = match database {
            Some(database) => database.to_string(),
            None => format!("{error}: {:?}", std::error::Error::source(error)),
        };
        // A commit that waits for a standby is ended with 57P01 although it has been committed here.
        let refused = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        Self {
            sqlstate: error.code().map(|code| code.code().to_owned()),
            text,
            refused,
        }
    }

    fn timeout(what: &str) -> Self {
        Self {
            sqlstate: None,
            text: format!("{what} had no answer in time"),
            refused: false,
        }
    }
}

async fn connect(login: &Login) -> std::result::Result<Client, Failed> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&login.host)
        .port(login.port)
        .user(&login.user)
        .password(&login.password)
        .dbname("postgres")
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    match tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Ok(client)
        }
        Ok(Err(error)) => Err(Failed::new(&error)),
        Err(_) => Err(Failed::timeout("a login")),
    }
}
