//! Finds the sessions whose locks provisioning waits for, and ends them after a time.
//!
//! A client can hold the locks of an uncommitted `ALTER ROLE` for as long as it likes. Without this, an
//! idle transaction would keep the sidecar from starting. A superuser's session is never ended: an
//! operator decides that.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::postgres::server::PostgresServer;
use crate::postgres::superuser::{Error, Superuser};

/// The first and every further time at which blockers are searched for while a run lasts.
const POLL: Duration = Duration::from_millis(500);

/// The blockers of the backend `$1`. Names resolve in `pg_catalog` only.
const BLOCKERS: &str = "\
SELECT a.pid, coalesce(a.usename::text, ''), coalesce(r.rolsuper, true),
       to_char(coalesce(a.xact_start, a.backend_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
  FROM unnest(pg_blocking_pids($1)) AS blocker
  JOIN pg_stat_activity a ON a.pid = blocker
  LEFT JOIN pg_roles r ON r.oid = a.usesysid
 ORDER BY a.pid";

/// A session that provisioning waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Blocker {
    pid: i32,
    role: String,
    superuser: bool,
    /// The start of its transaction in UTC.
    since: String,
}

/// The blockers that were seen, across all attempts of one provisioning.
pub(crate) struct BlockerWatch {
    timeout: Duration,
    first_seen: HashMap<Blocker, Instant>,
}

impl BlockerWatch {
    /// Ends a blocker `timeout` after it was first seen.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            first_seen: HashMap::new(),
        }
    }

    /// Whether the last search found a blocker.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.first_seen.is_empty()
    }

    /// Watches what the backend `pid` waits for, over a separate session that is opened only if that
    /// backend has not finished soon. Passes a text about the blockers to `report`. Never returns.
    pub(super) async fn watch(
        &mut self,
        server: &PostgresServer,
        passwords: &ResolvedPasswords,
        database: &str,
        pid: i32,
        report: impl Fn(String),
    ) -> Infallible {
        loop {
            sleep(POLL).await;
            let password = passwords.superuser.as_ref();
            let Ok(session) = Superuser::connect(server, password, database).await else {
                continue;
            };
            while self.examine(&session, pid, &report).await.is_ok() {
                sleep(POLL).await;
            }
            session.close().await;
        }
    }

    async fn examine(
        &mut self,
        session: &Superuser,
        pid: i32,
        report: &impl Fn(String),
    ) -> Result<(), Error> {
        let mut blockers = Vec::new();
        for row in session.client().query(BLOCKERS, &[&pid]).await? {
            blockers.push(Blocker {
                pid: row.try_get(0)?,
                role: row.try_get(1)?,
                superuser: row.try_get(2)?,
                since: row.try_get(3)?,
            });
        }
        if blockers.is_empty() {
            // Between two attempts nothing is waited for, so that what was seen is kept.
            return Ok(());
        }
        self.first_seen.retain(|known, _| blockers.contains(known));
        report(describe(&blockers));
        for blocker in blockers {
            let seen = *self
                .first_seen
                .entry(blocker.clone())
                .or_insert_with(Instant::now);
            if blocker.superuser || seen.elapsed() < self.timeout {
                continue;
            }
            let Blocker {
                pid, role, since, ..
            } = blocker;
            let sql = "SELECT pg_terminate_backend($1)";
            session.client().query(sql, &[&pid]).await?;
            tracing::warn!(
                pid,
                role,
                since,
                "ended a session that blocked provisioning"
            );
        }
        Ok(())
    }
}

fn describe(blockers: &[Blocker]) -> String {
    let each = blockers.iter().map(|blocker| {
        let Blocker {
            pid, role, since, ..
        } = blocker;
        format!("pid {pid} ({role}, since {since})")
    });
    let each: Vec<_> = each.take(5).collect();
    format!("provisioning waits for a lock of {}", each.join(", "))
}
