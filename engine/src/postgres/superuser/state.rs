//! The state of the database, for a report that a verifier can compare with
//! others: how far its WAL is, what version it is, what its control file says.
//!
//! What cannot be read is a reason in the place of a value: the report as a
//! whole never fails.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::FromSqlOwned;

use super::controldata::{self, ControlData};
use super::{Error, Superuser};

/// For each question; Postgres answers them from memory.
const DEADLINE: Duration = Duration::from_secs(2);

/// `pg_last_wal_replay_lsn` is null until the first record is replayed, and
/// what was received is then as far as it is.
const WAL_LSN: &str = "SELECT CASE WHEN pg_is_in_recovery() \
     THEN coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()) \
     ELSE pg_current_wal_lsn() END::text";

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub(super) String);

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// What Postgres and its control file say about themselves.
#[derive(Debug)]
pub struct PostgresState {
    /// Where writing (on a standby: replaying) the WAL has come to, `0/16B3748`.
    pub wal_lsn: Result<String, Unreadable>,
    /// `server_version`, e.g. `15.14 (Debian 15.14-0+deb12u1)`.
    pub pg_version: Result<String, Unreadable>,
    /// Whether it is a standby, or not yet recovered.
    pub in_recovery: Result<bool, Unreadable>,
    /// Its control file.
    pub controldata: Result<ControlData, Unreadable>,
}

impl Superuser {
    /// Asks for all of it. `pg_controldata` names that program where it is not
    /// to be looked for.
    pub async fn state(&self, pg_controldata: Option<&Path>) -> PostgresState {
        PostgresState {
            wal_lsn: self.wal_lsn().await,
            pg_version: self.ask("SHOW server_version").await,
            in_recovery: self.ask("SELECT pg_is_in_recovery()").await,
            controldata: controldata::read(self, pg_controldata).await,
        }
    }

    async fn wal_lsn(&self) -> Result<String, Unreadable> {
        let lsn: Option<String> = self.ask(WAL_LSN).await?;
        lsn.ok_or_else(|| Unreadable("no WAL has been received or replayed yet".to_owned()))
    }

    /// The one value of the one row that `sql` gives.
    pub(super) async fn ask<T: FromSqlOwned>(&self, sql: &str) -> Result<T, Unreadable> {
        let mut rows = self.rows(sql).await?;
        rows.pop()
            .ok_or_else(|| Unreadable("Postgres answered with no row".to_owned()))
    }

    /// The first column of all rows.
    pub(super) async fn rows<T: FromSqlOwned>(&self, sql: &str) -> Result<Vec<T>, Unreadable> {
        let rows = match timeout(DEADLINE, self.client.query(sql, &[])).await {
            Ok(rows) => rows.map_err(Error::from)?,
            Err(_) => return Err(Error::TimedOut(DEADLINE).into()),
        };
        let values = rows.iter().map(|row| row.try_get(0).map_err(Error::from));
        Ok(values.collect::<Result<_, _>>()?)
    }
}
