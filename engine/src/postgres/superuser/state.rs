//! The state of Postgres for the attestation report: WAL position, version, recovery and control
//! data.
//!
//! A value that cannot be read is replaced by the reason. The report as a whole never fails.

use std::path::Path;

use super::Superuser;
use super::controldata::{self, ControlData};
use super::query::Unreadable;

/// `pg_last_wal_replay_lsn` is null until the first record is replayed. Until then the position
/// received is used.
const WAL_LSN: &str = "SELECT CASE WHEN pg_is_in_recovery() \
     THEN coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn()) \
     ELSE pg_current_wal_lsn() END::text";

/// On a primary, that of the WAL file in use: the control file has a new timeline only after the first checkpoint
/// on it. On a standby, that of the WAL that it receives, or else of its last checkpoint.
pub(super) const TIMELINE: &str = "SELECT CASE WHEN pg_is_in_recovery() \
     THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), \
                   (SELECT timeline_id FROM pg_control_checkpoint()))::bigint \
     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END";

/// The state of a Postgres server.
#[derive(Debug)]
pub struct PostgresState {
    /// The position up to which WAL was written, or replayed on a standby, e.g. `0/16B3748`.
    pub wal_lsn: Result<String, Unreadable>,
    /// `server_version`, e.g. `15.14 (Debian 15.14-0+deb12u1)`.
    pub pg_version: Result<String, Unreadable>,
    /// Whether it is a standby or still recovering.
    pub in_recovery: Result<bool, Unreadable>,
    /// The timeline of the WAL, e.g. 1.
    pub timeline: Result<i64, Unreadable>,
    /// The content of the control file.
    pub controldata: Result<ControlData, Unreadable>,
}

impl Superuser {
    /// Reads the state. `pg_controldata` is the path of that program; `None` to search for it.
    pub async fn state(&self, pg_controldata: Option<&Path>) -> PostgresState {
        PostgresState {
            wal_lsn: self.wal_lsn().await,
            pg_version: self.query_value("SHOW server_version").await,
            in_recovery: self.query_value("SELECT pg_is_in_recovery()").await,
            timeline: self.query_value(TIMELINE).await,
            controldata: controldata::read(self, pg_controldata).await,
        }
    }

    async fn wal_lsn(&self) -> Result<String, Unreadable> {
        let lsn: Option<String> = self.query_value(WAL_LSN).await?;
        lsn.ok_or_else(|| Unreadable("no WAL has been received or replayed yet".to_owned()))
    }
}
