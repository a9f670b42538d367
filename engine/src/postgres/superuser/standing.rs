//! Whether a Postgres takes writes, and how far it is behind: what the role of a cluster's member depends on.

use std::net::IpAddr;

use tokio::time::timeout;
use tokio_postgres::Statement;

use super::query::QUERY_TIMEOUT;
use super::state::TIMELINE;
use super::{Error, Superuser};

/// How far a standby is behind the server that it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Bytes of WAL that are not replayed yet. `None` on a primary, and on a standby that receives no WAL.
    pub bytes: Option<u64>,
    /// Seconds since the last transaction that was replayed; 0 if all is replayed.
    pub seconds: Option<u64>,
}

/// What a Postgres says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It is a standby, or still recovering.
    pub in_recovery: bool,
    /// Transactions are read-only by default, as `default_transaction_read_only` sets it.
    pub read_only: bool,
    /// The same on all members of a cluster, and on no other.
    pub system_identifier: Option<u64>,
    /// The timeline of its WAL.
    pub timeline: Option<u64>,
    /// How far it is behind.
    pub lag: Lag,
    /// The port on loopback that a standby receives its WAL from.
    pub upstream_port: Option<u16>,
}

impl Standing {
    /// Whether clients can write.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        !self.in_recovery && !self.read_only
    }
}

/// The end of the WAL that a standby knows of: `latest_end_lsn` is what the primary said last.
const STANDING: &str = "SELECT r.recovering, current_setting('transaction_read_only')::bool,
       (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN r.recovering AND w.pid IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(w.known, r.replayed), 0)::bigint END,
       CASE WHEN NOT r.recovering THEN NULL
            WHEN w.pid IS NOT NULL AND w.known <= r.replayed THEN 0
            ELSE greatest(extract(epoch FROM now() - pg_last_xact_replay_timestamp()), 0)::bigint END,
       w.sender_host, w.sender_port,
       (TIMELINE)
  FROM (SELECT pg_is_in_recovery() AS recovering, pg_last_wal_replay_lsn() AS replayed) AS r
  LEFT JOIN (SELECT pid, sender_host, sender_port,
                    greatest(latest_end_lsn, pg_last_wal_receive_lsn()) AS known
               FROM pg_stat_wal_receiver) AS w ON true";

/// Ends the sessions that came from other members: those of this one have ended before. `postgres` is not among
/// them, because Patroni is that role as well.
const END_WRITERS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'teesql_readwrite'";

/// The query for the standing, prepared in one session: asked each second, it takes one round trip.
pub(crate) struct StandingQuery(Statement);

impl Superuser {
    /// Prepares the query for [`Self::standing`].
    ///
    /// # Errors
    /// The session has ended, or it took more than 2 s.
    pub(crate) async fn prepare_standing(&self) -> Result<StandingQuery, Error> {
        let query = STANDING.replace("TIMELINE", TIMELINE);
        match timeout(QUERY_TIMEOUT, self.client.prepare(&query)).await {
            Ok(statement) => Ok(StandingQuery(statement?)),
            Err(_) => Err(Error::TimedOut(QUERY_TIMEOUT)),
        }
    }

    /// Reads whether Postgres takes writes, by a query of this session.
    ///
    /// # Errors
    /// The session has ended, or the query took more than 2 s.
    pub(crate) async fn standing(&self, query: &StandingQuery) -> Result<Standing, Error> {
        let read = async {
            let row = self.client.query_one(&query.0, &[]).await?;
            let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
            // A 64-bit number without a sign, which Postgres shows as one with a sign.
            let system_identifier: Option<i64> = row.try_get(2)?;
            let host: Option<String> = row.try_get(5)?;
            let port: Option<i32> = row.try_get(6)?;
            Ok::<_, tokio_postgres::Error>(Standing {
                in_recovery: row.try_get(0)?,
                read_only: row.try_get(1)?,
                system_identifier: system_identifier.map(i64::cast_unsigned),
                timeline: number(row.try_get(7)?),
                lag: Lag {
                    bytes: number(row.try_get(3)?),
                    seconds: number(row.try_get(4)?),
                },
                upstream_port: port
                    .filter(|_| host.is_some_and(|host| is_loopback(&host)))
                    .and_then(|port| port.try_into().ok()),
            })
        };
        match timeout(QUERY_TIMEOUT, read).await {
            Ok(standing) => Ok(standing?),
            Err(_) => Err(Error::TimedOut(QUERY_TIMEOUT)),
        }
    }

    /// Ends all sessions of `teesql_readwrite`. Returns how many.
    ///
    /// # Errors
    /// As [`Self::standing`].
    pub(crate) async fn end_writers(&self) -> Result<i64, Error> {
        match timeout(QUERY_TIMEOUT, self.client.query_one(END_WRITERS, &[])).await {
            Ok(row) => Ok(row?.try_get(0)?),
            Err(_) => Err(Error::TimedOut(QUERY_TIMEOUT)),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
