//! Queries for single values, each with a time limit.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::FromSqlOwned;

use super::{Error, Superuser};

/// The limit for one query. Postgres answers each of them from memory.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub(super) String);

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl Superuser {
    /// Runs `sql`, which must return one row, and reads its first column.
    pub(super) async fn query_value<T: FromSqlOwned>(&self, sql: &str) -> Result<T, Unreadable> {
        let mut rows = self.query_column(sql).await?;
        rows.pop()
            .ok_or_else(|| Unreadable("Postgres answered with no row".to_owned()))
    }

    /// Runs `sql` and reads the first column of every row.
    pub(super) async fn query_column<T: FromSqlOwned>(
        &self,
        sql: &str,
    ) -> Result<Vec<T>, Unreadable> {
        let rows = match timeout(QUERY_TIMEOUT, self.client.query(sql, &[])).await {
            Ok(rows) => rows.map_err(Error::from)?,
            Err(_) => return Err(Error::TimedOut(QUERY_TIMEOUT).into()),
        };
        let values = rows.iter().map(|row| row.try_get(0).map_err(Error::from));
        Ok(values.collect::<Result<_, _>>()?)
    }
}
