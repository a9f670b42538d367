//! Keeps the roles in Postgres as provisioning set them up: a reconciliation loop, and the source of the
//! settings that new sessions begin with.
//!
//! Any client of a role may change the role's password and stored settings, for all clients. The loop
//! compares a fingerprint of the catalogs, which is cheap, and runs provisioning if that has changed; from
//! time to time it runs provisioning anyway, since the fingerprint does not cover tables. A login that
//! Postgres refuses starts a comparison at once. At most one repair per second is made, so that a client
//! that undoes each of them does not occupy Postgres. In a cluster only the member that leads sets up roles, and one whose
//! Postgres takes writes without that must never be ready.

mod lead;

use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::Latch;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout, timeout_at};

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::postgres::provision::blockers::BlockerWatch;
use crate::postgres::provision::{self, ProvisionError, ProvisionTarget, Report};
use crate::postgres::session_settings::{ServerSettings, SessionSettings};
use crate::postgres::superuser::{Error, Superuser};
use crate::tasks::coalesced_sleep;
use crate::telemetry::metrics::Metrics;
pub(crate) use lead::Lead;

/// Minimum time between two comparisons, however many logins are refused.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The interval if only the settings of the server are read.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(5);
/// The interval while the superuser cannot log in, which each attempt writes into Postgres' log.
const LOGIN_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Time after which tables and everything else is compared, even if the fingerprint is the same.
const FULL_INTERVAL: Duration = Duration::from_secs(60);
/// The limit for one comparison, above that of provisioning. A Postgres that neither answers nor closes the
/// connection must not end the comparisons.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(90);
/// The limit for reading the settings before the first client can connect.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Sessions in one line of the log.
const MAX_SESSIONS: usize = 20;

/// The rows of the catalogs that provisioning sets up, apart from those of tables. Each change of a row
/// gives it another `xmin`.
const FINGERPRINT: &str = "\
SELECT coalesce(md5(string_agg(line, ',' ORDER BY line)), '') FROM (
  SELECT format('role %s %s', oid, xmin) FROM pg_authid WHERE rolname LIKE 'teesql\\_read%' OR rolname IN ('replicator', 'rewind')
  UNION ALL SELECT format('member %s %s %s', roleid, member, xmin) FROM pg_auth_members
  UNION ALL SELECT format('setting %s %s %s', setrole, setdatabase, xmin) FROM pg_db_role_setting
  UNION ALL SELECT format('database %s %s', oid, xmin) FROM pg_database
  UNION ALL SELECT format('schema %s %s', oid, xmin) FROM pg_namespace WHERE nspname = 'public'
  UNION ALL SELECT format('default %s %s', oid, xmin) FROM pg_default_acl
  UNION ALL SELECT format('routine %s %s', oid, xmin) FROM pg_proc
             WHERE pronamespace = 'pg_catalog'::regnamespace
               AND (proname LIKE 'lo%' OR proname LIKE 'pg\\_%\\_backend' OR proname LIKE 'pg\\_stat\\_get\\_%activity'
                    OR proname IN ('pg_ls_dir', 'pg_stat_file', 'pg_read_binary_file'))
  UNION ALL SELECT format('slots %s %s', current_setting('max_connections'), current_setting('max_wal_senders'))
) AS t (line)";

const IN_RECOVERY: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// The sessions of the two roles: any of them may have made the change.
const SESSIONS: &str = "\
SELECT pid, usename::text, to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       coalesce(client_port, -1)
  FROM pg_stat_activity WHERE usename IN ('teesql_read', 'teesql_readwrite') ORDER BY pid LIMIT 1000";

/// Starts a comparison when Postgres refuses a login.
#[derive(Debug, Default)]
pub(crate) struct RepairTrigger(Notify);

impl RepairTrigger {
    pub(crate) fn request(&self) {
        self.0.notify_one();
    }
}

/// Compares, repairs, counts and reports.
pub(crate) struct RoleRepair {
    pub(crate) target: ProvisionTarget,
    /// How often to compare. `None` only reads the settings of the server.
    pub(crate) interval: Option<Duration>,
    /// The roles were not set up at start, as in a cluster: a standby gets them from its leader, and Postgres may only
    /// come up after this sidecar's links. They are set up as soon as this Postgres leads.
    pub(crate) set_up: bool,
    /// Whether this member may set up roles.
    pub(crate) lead: Lead,
    pub(crate) watch: BlockerWatch,
    /// The passwords in use, which a reload may replace.
    pub(crate) passwords: Box<dyn Fn() -> ResolvedPasswords + Send>,
    pub(crate) session_settings: Arc<SessionSettings>,
    pub(crate) trigger: Arc<RepairTrigger>,
    pub(crate) latch: Latch,
    pub(crate) metrics: Arc<Metrics>,
}

/// What is remembered from one comparison to the next.
#[derive(Default)]
struct Memory {
    /// The fingerprint of a state without differences, and when all of it was compared.
    converged: Option<(String, Instant)>,
    /// The last error, which is logged once.
    error: Option<String>,
    /// Comparisons in a row that ended with [`Compared::NotLeading`].
    not_leading: u32,
}

/// How a comparison ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    /// The roles are as they should be, or are not this sidecar's.
    Done,
    /// Postgres is not in recovery, so that no other member sets up its roles, and this one does not lead.
    NotLeading,
}

/// What `/ready` and the log say of it.
const NOT_LEADING: &str =
    "not set up or compared while this member does not lead the cluster: see the check cluster";

impl RoleRepair {
    /// Reads the settings of the server once, before the first client can connect: connection pools open their
    /// sessions as soon as they can, and keep them. [`Self::run`] reports an error.
    pub(crate) async fn read_settings(&self) {
        let passwords = (self.passwords)();
        let read = async {
            let session = Superuser::connect_plain(
                &self.target.server,
                passwords.superuser.as_ref(),
                &self.target.database,
            )
            .await?;
            let settings = ServerSettings::read(&session).await;
            session.close().await;
            settings
        };
        if let Ok(Ok(settings)) = timeout(FIRST_READ_TIMEOUT, read).await {
            self.session_settings.set_server(settings);
        }
    }

    /// Never returns.
    pub(crate) async fn run(mut self) {
        let mut memory = Memory::default();
        loop {
            let compared = timeout(COMPARE_TIMEOUT, self.compare(&mut memory)).await;
            let result = match compared {
                Ok(result) => result,
                Err(_) => Err(Error::TimedOut(COMPARE_TIMEOUT).into()),
            };
            let no_login =
                matches!(&result, Err(ProvisionError::Postgres(error)) if error.is_login());
            let no_postgres = matches!(
                &result,
                Err(ProvisionError::Postgres(Error::Unreachable { .. }))
            );
            let not_leading = matches!(&result, Ok(Compared::NotLeading));
            self.report(&mut memory, result);
            if not_leading {
                // Nothing was repaired. At start the watcher knows the role only a moment later.
                if timeout(MIN_INTERVAL, self.lead.changed()).await.is_ok() {
                    continue;
                }
            } else {
                sleep(MIN_INTERVAL).await;
            }
            if no_login {
                // Patroni may set the password when it founds a cluster, and leads then.
                let _ = timeout(LOGIN_RETRY_INTERVAL, self.lead.changed()).await;
                continue;
            }
            let mut interval = self.interval.unwrap_or(SETTINGS_INTERVAL);
            if !self.session_settings.knows_server() || no_postgres && self.set_up {
                // Postgres was not up yet: its first sessions are to have the settings, and the roles.
                interval = MIN_INTERVAL;
            }
            let remaining = interval.saturating_sub(MIN_INTERVAL);
            let requested = async {
                tokio::select! {
                    () = self.trigger.0.notified() => {}
                    () = self.lead.changed() => {}
                }
            };
            // All outcomes lead to the next comparison.
            let _ = timeout_at(coalesced_sleep::end(remaining), requested).await;
        }
    }

    async fn compare(&mut self, memory: &mut Memory) -> Result<Compared, ProvisionError> {
        let passwords = (self.passwords)();
        let session = Superuser::connect_plain(
            &self.target.server,
            passwords.superuser.as_ref(),
            &self.target.database,
        )
        .await?;
        let result = self.compare_in(&session, &passwords, memory).await;
        session.close().await;
        result
    }

    async fn compare_in(
        &mut self,
        session: &Superuser,
        passwords: &ResolvedPasswords,
        memory: &mut Memory,
    ) -> Result<Compared, ProvisionError> {
        let settings = ServerSettings::read(session).await?;
        self.session_settings.set_server(settings);
        if self.interval.is_none() && !self.set_up {
            return Ok(Compared::Done);
        }
        if !self.lead.allows() {
            let row = session.client().query_one(IN_RECOVERY, &[]).await?;
            return match row.try_get(0)? {
                true => Err(ProvisionError::InRecovery),
                false => Ok(Compared::NotLeading),
            };
        }
        let fingerprint: String = session
            .client()
            .query_one(FINGERPRINT, &[])
            .await?
            .try_get(0)?;
        if let Some((known, at)) = &memory.converged
            && *known == fingerprint
            && at.elapsed() < FULL_INTERVAL
        {
            return Ok(Compared::Done);
        }
        memory.converged = None;
        let latch = self.latch.clone();
        let waits = |text| latch.set_not_ready(text);
        let report = self
            .target
            .establish(passwords, &mut self.watch, waits)
            .await?;
        self.set_up = false;
        if report.repaired.is_empty() {
            memory.converged = Some((fingerprint, Instant::now()));
        } else {
            self.count(&report);
            log_repairs(&report, session).await?;
        }
        Ok(Compared::Done)
    }

    fn count(&self, report: &Report) {
        for what in &report.kinds {
            let labels = [("what", *what)];
            self.metrics.counter(REPAIRS, &labels).increment(1);
        }
    }

    fn report(&self, memory: &mut Memory, result: Result<Compared, ProvisionError>) {
        let not_leading = std::mem::take(&mut memory.not_leading);
        match result {
            // A standby gets its roles from its primary.
            Ok(Compared::Done) | Err(ProvisionError::InRecovery) => {
                memory.error = None;
                self.latch.set_ready();
            }
            Ok(Compared::NotLeading) => {
                memory.error = None;
                memory.not_leading = not_leading.saturating_add(1);
                self.latch.set_not_ready(NOT_LEADING);
                // The first one is usual at start.
                if memory.not_leading == 2 {
                    tracing::info!("the roles in Postgres are {NOT_LEADING}");
                }
            }
            // The probe of Postgres reports that.
            Err(ProvisionError::Postgres(Error::Unreachable { .. })) => {}
            Err(error) => {
                let text = error.to_string();
                if self.interval.is_some() || self.set_up {
                    self.latch.set_not_ready(text.clone());
                }
                if memory.error.as_ref() != Some(&text) {
                    tracing::warn!(%error, "cannot compare the roles in Postgres");
                    memory.error = Some(text);
                }
            }
        }
    }
}

const REPAIRS: &str = "teesql_provision_repairs_total";

/// Creates the series of the metric with the value 0.
pub(crate) fn register(metrics: &Metrics) {
    for what in provision::KINDS {
        drop(metrics.counter(REPAIRS, &[("what", what)]));
    }
}

/// Logs each difference, and the sessions of the two roles: one of them may have caused it.
async fn log_repairs(report: &Report, session: &Superuser) -> Result<(), Error> {
    let rows = session.client().query(SESSIONS, &[]).await?;
    let mut sessions = Vec::new();
    for row in rows.iter().take(MAX_SESSIONS) {
        let (pid, role): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        let (since, port): (String, i32) = (row.try_get(2)?, row.try_get(3)?);
        sessions.push(format!("{pid} ({role}, since {since}, port {port})"));
    }
    if rows.len() > MAX_SESSIONS {
        sessions.push(format!("and {} more", rows.len() - MAX_SESSIONS));
    }
    let sessions = sessions.join(", ");
    for difference in &report.repaired {
        tracing::warn!(difference, sessions, "repaired a role in Postgres");
    }
    Ok(())
}
