//! The clients of a run: writers with a sequence each, and readers, in the manner of Jepsen's set and
//! monotonic-read workloads. All of them connect again when their connection ends.
//!
//! A write whose outcome a client does not know for certain is [`Outcome::Unknown`]. It must never
//! be repeated with the same number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::history::{Failure, History, Outcome, Read, Write};
use super::table;

/// Longer than a login waits for a leader, which is 30 s by default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Longer than an election.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a connection that has ended may take to say why.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client waits after a failure before it connects again.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// The pause of a reader between two looks, and of a writer between two writes.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum number of failures that one client records.
const MAX_FAILURES: usize = 10_000;

/// How many clients there are of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// All of them connect to the leader.
    pub writers: u32,
    /// Of each member.
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

/// Runs the clients until `counters` stops them, and returns what they recorded. The clock of the history begins at
/// `start`.
pub async fn run(
    writer: &Config,
    readers: &[Config],
    clients: Clients,
    counters: &Arc<Counters>,
    start: Instant,
) -> History {
    let mut tasks = JoinSet::new();
    for number in 0..clients.writers {
        let (config, counters) = (writer.clone(), Arc::clone(counters));
        tasks.spawn(async move { write(number, &config, &counters, start).await });
    }
    for (member, config) in readers.iter().enumerate() {
        for _ in 0..clients.readers {
            let (config, counters) = (config.clone(), Arc::clone(counters));
            tasks.spawn(async move { read(member, &config, &counters, start).await });
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

async fn write(writer: u32, config: &Config, counters: &Counters, start: Instant) -> History {
    let mut recorder = Recorder::new(format!("writer {writer}"), start);
    let mut number = 0;
    while !counters.is_stopped() {
        let mut session = match Session::log_in(config).await {
            Ok(session) => session,
            Err(failed) => {
                recorder.fail(failed).await;
                continue;
            }
        };
        while !counters.is_stopped() {
            number += 1;
            let begun = start.elapsed();
            let inserted = insert(session, writer, number).await;
            let (outcome, next) = match inserted {
                Ok((session, timeline)) => {
                    counters.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let at = start.elapsed();
                    (Outcome::Acknowledged { at, timeline }, Ok(session))
                }
                Err(failed) if failed.refused => (Outcome::Refused, Err(failed)),
                Err(failed) => (Outcome::Unknown, Err(failed)),
            };
            recorder.history.writes.push(Write {
                writer,
                number,
                begun,
                outcome,
            });
            match next {
                Ok(next) => session = next,
                Err(failed) => {
                    recorder.fail(failed).await;
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    recorder.history
}

/// Inserts a row. A session that fails is not used again.
async fn insert(session: Session, writer: u32, number: u64) -> Result<(Session, u32), Failed> {
    let inserted = table::insert(&session.client, writer, number);
    match tokio::time::timeout(STATEMENT_TIMEOUT, inserted).await {
        Ok(Ok(timeline)) => Ok((session, timeline)),
        Ok(Err(error)) => Err(session.failed(error).await),
        Err(_) => Err(Failed::timeout("a statement")),
    }
}

async fn read(member: usize, config: &Config, counters: &Counters, start: Instant) -> History {
    let mut recorder = Recorder::new(format!("a reader of member {member}"), start);
    while !counters.is_stopped() {
        let session = match Session::log_in(config).await {
            Ok(session) => session,
            Err(failed) => {
                recorder.fail(failed).await;
                continue;
            }
        };
        let connection = counters.connections.fetch_add(1, Ordering::Relaxed);
        while !counters.is_stopped() {
            let answer =
                tokio::time::timeout(STATEMENT_TIMEOUT, table::latest(&session.client)).await;
            let failed = match answer {
                Ok(Ok(latest)) => {
                    let at = start.elapsed();
                    let read = |(writer, number)| Read {
                        connection,
                        writer,
                        number,
                        at,
                    };
                    recorder.history.reads.extend(latest.into_iter().map(read));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(error)) => session.failed(error).await,
                Err(_) => Failed::timeout("a statement"),
            };
            recorder.fail(failed).await;
            break;
        }
    }
    recorder.history
}

struct Recorder {
    client: String,
    history: History,
    start: Instant,
}

impl Recorder {
    fn new(client: String, start: Instant) -> Self {
        Self {
            client,
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
                text: format!("{}: {}", self.client, failed.text),
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

/// A session, and how its connection ends: an error that the server sends between two statements is in no answer.
struct Session {
    client: Client,
    end: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Session {
    async fn log_in(config: &Config) -> Result<Self, Failed> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await;
        let connected = connected.map_err(|_| Failed::timeout("a login"))?;
        let (client, connection) = connected.map_err(|error| Failed::new(&error))?;
        let end = tokio::spawn(connection);
        Ok(Self { client, end })
    }

    /// Why a statement failed.
    async fn failed(self, error: tokio_postgres::Error) -> Failed {
        if error.is_closed()
            && let Ok(Ok(Err(reason))) = tokio::time::timeout(END_TIMEOUT, self.end).await
            && reason.as_db_error().is_some()
        {
            return Failed::new(&reason);
        }
        Failed::new(&error)
    }
}
