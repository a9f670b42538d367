//! The table of the writes: a row for each, with its writer and number.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Config};

use crate::dev_cluster::{TIMELINE, connect, server_error};
use crate::error::{Error, Result};

const NAME: &str = "teesql_writes";

/// How long a standby may take to replay the creation of the table.
const REPLAY_LIMIT: Duration = Duration::from_secs(30);
const REPLAY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Creates it, empty. Returns a position of the write-ahead log after that.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub(crate) async fn create(config: &Config) -> Result<PgLsn> {
    let client = connect(config).await.map_err(server_error)?;
    let sql = format!(
        "DROP TABLE IF EXISTS {NAME}; \
         CREATE TABLE {NAME} (writer int, number bigint, PRIMARY KEY (writer, number))"
    );
    client.batch_execute(&sql).await.map_err(server_error)?;
    let position = client.query_one("SELECT pg_current_wal_lsn()", &[]).await;
    position
        .and_then(|row| row.try_get(0))
        .map_err(server_error)
}

/// Waits until a server has replayed the write-ahead log up to a position.
///
/// # Errors
/// The server cannot be reached, refuses, or takes too long.
pub(crate) async fn await_replayed(config: &Config, position: PgLsn) -> Result<()> {
    let client = connect(config).await.map_err(server_error)?;
    let sql = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= $1";
    let deadline = Instant::now() + REPLAY_LIMIT;
    loop {
        let row = client.query_one(sql, &[&position]).await;
        if row.and_then(|row| row.try_get(0)).map_err(server_error)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Peer(format!(
                "a standby has not replayed {position} within {REPLAY_LIMIT:?}"
            )));
        }
        tokio::time::sleep(REPLAY_POLL_INTERVAL).await;
    }
}

/// Inserts a row. Returns the timeline of the server that committed it.
///
/// # Errors
/// Whether the row exists is not known, unless the server says that it refused the statement.
pub(crate) async fn insert(
    client: &Client,
    writer: u32,
    number: u64,
) -> std::result::Result<u32, tokio_postgres::Error> {
    let sql = format!("INSERT INTO {NAME} (writer, number) VALUES ($1, $2) RETURNING {TIMELINE}");
    let (writer, number) = (writer.cast_signed(), number.cast_signed());
    let parameters: [&(dyn ToSql + Sync); 2] = [&writer, &number];
    let row = client.query_one(&sql, &parameters).await?;
    Ok(row.try_get::<_, i32>(0)?.cast_unsigned())
}

/// The highest number of each writer.
///
/// # Errors
/// The session has ended, or the server refuses.
pub(crate) async fn latest(
    client: &Client,
) -> std::result::Result<Vec<(u32, u64)>, tokio_postgres::Error> {
    // A loose index scan: its cost does not grow with the table.
    let sql = format!(
        "WITH RECURSIVE w AS ( \
           SELECT min(writer) AS writer FROM {NAME} UNION ALL \
           SELECT (SELECT min(writer) FROM {NAME} WHERE writer > w.writer) FROM w WHERE w.writer IS NOT NULL) \
         SELECT writer, (SELECT max(number) FROM {NAME} AS t WHERE t.writer = w.writer) FROM w WHERE writer IS NOT NULL"
    );
    client
        .query(&sql, &[])
        .await?
        .iter()
        .map(write_in)
        .collect()
}

/// All rows.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub(crate) async fn read(config: &Config) -> Result<BTreeSet<(u32, u64)>> {
    let client = connect(config).await.map_err(server_error)?;
    let sql = format!("SELECT writer, number FROM {NAME}");
    let rows = client.query(&sql, &[]).await.map_err(server_error)?;
    let rows = rows
        .iter()
        .map(write_in)
        .collect::<std::result::Result<_, _>>();
    rows.map_err(server_error)
}

fn write_in(row: &tokio_postgres::Row) -> std::result::Result<(u32, u64), tokio_postgres::Error> {
    Ok((
        row.try_get::<_, i32>(0)?.cast_unsigned(),
        row.try_get::<_, i64>(1)?.cast_unsigned(),
    ))
}
