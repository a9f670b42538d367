//! Finds the sessions whose locks provisioning waits for, and ends them after a time.
//!
//! A client can hold the locks of an uncommitted `ALTER ROLE` for as long as it likes. Without this, an
//! idle transaction would keep the sidecar from starting, and so would a prepared transaction, which outlives
//! its session. A superuser's session is never ended: an operator decides that.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use postgres_protocol::escape::escape_literal;
use tokio::time::sleep;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::postgres::server::PostgresServer;
use crate::postgres::superuser::{Error, Superuser};

/// The first and every further time at which blockers are searched for while a run lasts.
const POLL: Duration = Duration::from_millis(500);

/// The blockers of the backend `$1`. Names resolve in `pg_catalog` only.
///
/// `pg_blocking_pids` has 0 for a prepared transaction and does not say which. Only one that has changed
/// a role is rolled back; that is possible in its own database only.
const BLOCKERS: &str = "\
WITH blocker (pid) AS (SELECT unnest(pg_blocking_pids($1)))
SELECT a.pid, coalesce(a.usename::text, ''), coalesce(r.rolsuper, true),
       to_char(coalesce(a.xact_start, a.backend_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       NULL::text
  FROM blocker
  JOIN pg_stat_activity a ON a.pid = blocker.pid
  LEFT JOIN pg_roles r ON r.oid = a.usesysid
 UNION
SELECT 0, x.owner::text,
       coalesce(r.rolsuper, true) OR x.database <> current_database() OR NOT EXISTS (
         SELECT FROM pg_locks t JOIN pg_locks l ON l.virtualtransaction = t.virtualtransaction
          WHERE t.pid IS NULL AND t.locktype = 'transactionid' AND t.transactionid = x.transaction
            AND l.pid IS NULL AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
            AND l.relation IN ('pg_authid'::regclass, 'pg_db_role_setting'::regclass)),
       to_char(x.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), x.gid
  FROM pg_prepared_xacts x
  LEFT JOIN pg_roles r ON r.rolname = x.owner
 WHERE 0 IN (SELECT pid FROM blocker)
 ORDER BY 1, 5";

/// A session or a prepared transaction that provisioning waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Blocker {
    /// 0 for a prepared transaction.
    pid: i32,
    role: String,
    /// A superuser's session, or a prepared transaction that must not be ended from here.
    exempt: bool,
    /// The start of its transaction in UTC.
    since: String,
    /// The identifier of a prepared transaction.
    prepared: Option<String>,
}

/// The blockers that were seen, across all attempts of one provisioning.
pub(crate) struct BlockerWatch {
    timeout: Duration,
    first_seen: HashMap<Blocker, Instant>,
    /// When the first blocker was seen since provisioning last succeeded.
    blocked_since: Option<Instant>,
}

impl BlockerWatch {
    /// Ends a blocker `timeout` after it was first seen. Transactions that block alternately are ended
    /// after twice that time.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            first_seen: HashMap::new(),
            blocked_since: None,
        }
    }

    /// Names blockers and ends none.
    pub(crate) fn only_names() -> Self {
        Self::new(Duration::MAX)
    }

    /// Whether a blocker was found since provisioning last succeeded.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.first_seen.is_empty()
    }

    /// Forgets the blockers: provisioning has succeeded.
    pub(super) fn succeeded(&mut self) {
        self.first_seen.clear();
        self.blocked_since = None;
    }

    /// Notes that `blocker` was found at `now`. Returns whether it is to be ended.
    fn is_due(&mut self, blocker: &Blocker, now: Instant) -> bool {
        let seen = *self.first_seen.entry(blocker.clone()).or_insert(now);
        if blocker.exempt {
            return false;
        }
        let blocked = *self.blocked_since.get_or_insert(now);
        now.saturating_duration_since(seen) >= self.timeout
            || now.saturating_duration_since(blocked) >= self.timeout.saturating_mul(2)
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
                exempt: row.try_get(2)?,
                since: row.try_get(3)?,
                prepared: row.try_get(4)?,
            });
        }
        if blockers.is_empty() {
            // Between two attempts nothing is waited for, so that what was seen is kept.
            return Ok(());
        }
        self.first_seen.retain(|known, _| blockers.contains(known));
        report(describe(&blockers));
        let now = Instant::now();
        for blocker in blockers {
            if self.is_due(&blocker, now) {
                blocker.end(session).await?;
            }
        }
        Ok(())
    }
}

impl Blocker {
    async fn end(self, session: &Superuser) -> Result<(), Error> {
        let Blocker {
            pid, role, since, ..
        } = self;
        if let Some(gid) = self.prepared {
            let sql = format!("ROLLBACK PREPARED {}", escape_literal(&gid));
            session.client().batch_execute(&sql).await?;
            tracing::warn!(
                gid,
                role,
                since,
                "rolled back a prepared transaction that blocked provisioning"
            );
            return Ok(());
        }
        let sql = "SELECT pg_terminate_backend($1)";
        session.client().query(sql, &[&pid]).await?;
        tracing::warn!(
            pid,
            role,
            since,
            "ended a session that blocked provisioning"
        );
        Ok(())
    }
}

fn describe(blockers: &[Blocker]) -> String {
    let each = blockers.iter().map(|blocker| {
        let Blocker {
            pid, role, since, ..
        } = blocker;
        match &blocker.prepared {
            None => format!("pid {pid} ({role}, since {since})"),
            Some(gid) => format!("prepared transaction {gid:?} ({role}, since {since})"),
        }
    });
    let each: Vec<_> = each.take(5).collect();
    format!("provisioning waits for a lock of {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn transaction(since: u64) -> Blocker {
        Blocker {
            pid: 7,
            role: "teesql_read".to_owned(),
            exempt: false,
            since: since.to_string(),
            prepared: None,
        }
    }

    #[test]
    fn a_blocker_is_ended_after_the_timeout_unless_it_is_exempt() {
        let start = Instant::now();
        let mut watch = BlockerWatch::new(TIMEOUT);
        let superuser = Blocker {
            exempt: true,
            ..transaction(1)
        };
        for (after, due) in [(0, false), (9, false), (10, true)] {
            let now = start + Duration::from_secs(after);
            assert_eq!(watch.is_due(&transaction(0), now), due, "{after}");
            assert!(!watch.is_due(&superuser, now));
        }
        let now = start + Duration::from_secs(1_000_000);
        let mut names = BlockerWatch::only_names();
        assert!(!names.is_due(&transaction(0), start) && !names.is_due(&transaction(0), now));
    }

    /// Each transaction blocks for less than the timeout, and another one begins before it ends.
    #[test]
    fn alternating_transactions_are_ended() {
        let start = Instant::now();
        let mut watch = BlockerWatch::new(TIMEOUT);
        let due = |watch: &mut BlockerWatch, second: u64| {
            watch.is_due(
                &transaction(second / 8),
                start + Duration::from_secs(second),
            )
        };
        for second in 0..20 {
            assert!(!due(&mut watch, second), "{second}");
        }
        assert!(due(&mut watch, 20));
        watch.succeeded();
        assert!(!watch.is_blocked() && !due(&mut watch, 21));
    }

    #[test]
    fn blockers_are_named() {
        let prepared = Blocker {
            pid: 0,
            prepared: Some("it's\nmine".to_owned()),
            ..transaction(3)
        };
        assert_eq!(
            describe(&[transaction(2), prepared]),
            "provisioning waits for a lock of pid 7 (teesql_read, since 2), \
             prepared transaction \"it's\\nmine\" (teesql_read, since 3)"
        );
    }
}
