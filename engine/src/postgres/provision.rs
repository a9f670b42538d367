//! Provisions the two roles that clients log in as, and their privileges on schema `public` of one
//! database, by desired-state reconciliation. In a cluster also the roles with which members read from their leader.
//!
//! `desired.rs` lists the requirements and `state.rs` reads the current state from Postgres. The plan
//! is the difference of the two; both are tested without a server. A plan is carried out in one
//! transaction, which ends with a check that no difference remains. No statement may ever contain
//! a password: Postgres gets a SCRAM verifier.

pub(crate) mod blockers;
mod desired;
mod isolation;
mod replication;
mod script;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, IsolationLevel, Transaction};
use wire::scram::verifier::SALT_LEN;
use wire::scram::{Password, Verifier};

use crate::auth::postgres_passwords::{ReplicationPasswords, ResolvedPasswords};
use crate::auth::random::random_bytes;
use crate::auth::role::Role;
use crate::postgres::server::PostgresServer;
use crate::postgres::superuser::{Error, Superuser};
use blockers::BlockerWatch;
pub(crate) use desired::KINDS;
use desired::Requirement;
use state::CurrentState;

/// The limit for all attempts together, including the delays.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Another session may drop a table or change its privileges at the same time. Postgres then refuses
/// one of the two.
const MAX_ATTEMPTS: usize = 3;
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// An object that is created in one round may need privileges in the next one.
const MAX_ROUNDS: usize = 3;

/// The settings of every transaction. Logging is off because it would show verifiers, which are less
/// sensitive than passwords but still confidential. Names resolve in `pg_catalog` only, and other
/// sessions never wait long for this one.
const SETTINGS: &str = "\
SET LOCAL search_path = pg_catalog;
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL log_statement = 'none';
SET LOCAL log_duration = off;
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_duration_sample = -1;
SET LOCAL log_transaction_sample_rate = 0;
SET LOCAL log_min_error_statement = 'panic';
SET LOCAL track_activities = off;
SET LOCAL pg_stat_statements.track = 'none';
";

/// Makes concurrent runs for different databases wait for each other, and other sessions' ALTER ROLE
/// too. An advisory lock would not suffice, because it belongs to one database and roles belong to all.
/// Logins are not blocked: they only read the tables. A role that changes its stored settings writes only to
/// the second one.
const LOCK: &str = "LOCK TABLE pg_catalog.pg_authid, pg_catalog.pg_db_role_setting \
IN SHARE ROW EXCLUSIVE MODE;\n";

/// One of the provisioned roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ManagedRole {
    Read,
    ReadWrite,
    /// With which standbys stream from the leader. In a cluster only, as the next one.
    Replicator,
    /// With which pg_rewind reads the leader's files.
    Rewind,
}

impl ManagedRole {
    /// The roles that clients log in as.
    const CLIENTS: [Self; 2] = [ManagedRole::Read, ManagedRole::ReadWrite];
    /// The roles that the members of a cluster log in as.
    const REPLICATION: [Self; 2] = [ManagedRole::Replicator, ManagedRole::Rewind];

    fn name(self) -> &'static str {
        match self {
            ManagedRole::Read => Role::Read.name(),
            ManagedRole::ReadWrite => Role::ReadWrite.name(),
            ManagedRole::Replicator => "replicator",
            ManagedRole::Rewind => "rewind",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::CLIENTS.into_iter().chain(Self::REPLICATION);
        all.find(|role| role.name() == name)
    }
}

/// How many sessions a role may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// Computed from `max_connections`, so that the other role and operators find room.
    Auto,
    /// No limit.
    Unlimited,
    /// This number.
    At(u32),
}

impl std::str::FromStr for ConnectionLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "unlimited" => Ok(Self::Unlimited),
            text => match text.parse() {
                // Postgres' own maximum. [PostgreSQL `postmaster.h`, MAX_BACKENDS]
                Ok(limit @ 1..=262_143) => Ok(Self::At(limit)),
                _ => Err("expected auto, unlimited or a number from 1 to 262143"),
            },
        }
    }
}

/// The choices that provisioning leaves to the configuration.
#[derive(Clone, Copy, Debug)]
pub struct ProvisionOptions {
    /// The connection limit of `teesql_read`.
    pub read_connections: ConnectionLimit,
    /// The connection limit of `teesql_readwrite`.
    pub readwrite_connections: ConnectionLimit,
    /// Leave other databases open to PUBLIC.
    pub allow_other_databases: bool,
}

/// A password, and the salt of its verifier.
type SaltedPassword = (Password, [u8; SALT_LEN]);

/// The roles, passwords and privileges to establish.
pub struct DesiredState {
    database: String,
    options: ProvisionOptions,
    read: SaltedPassword,
    readwrite: SaltedPassword,
    replication: Option<ReplicationState>,
}

/// What is desired of the roles with which members of a cluster read from their leader.
struct ReplicationState {
    replicator: SaltedPassword,
    rewind: SaltedPassword,
}

impl DesiredState {
    /// The two roles with these passwords, and their privileges in `database`.
    ///
    /// # Errors
    /// The operating system provides no random bytes for the salts.
    pub fn new(
        database: String,
        options: ProvisionOptions,
        read: Password,
        readwrite: Password,
    ) -> std::io::Result<Self> {
        Ok(Self {
            database,
            options,
            read: (read, random_bytes()?),
            readwrite: (readwrite, random_bytes()?),
            replication: None,
        })
    }

    /// With the roles `replicator` and `rewind` too, if there are passwords for them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn with_replication(
        self,
        passwords: Option<ReplicationPasswords>,
    ) -> std::io::Result<Self> {
        let Some(ReplicationPasswords { replicator, rewind }) = passwords else {
            return Ok(self);
        };
        let replication = Some(ReplicationState {
            replicator: (replicator, random_bytes()?),
            rewind: (rewind, random_bytes()?),
        });
        Ok(Self {
            replication,
            ..self
        })
    }

    fn connection_limit(&self, role: ManagedRole) -> ConnectionLimit {
        match role {
            ManagedRole::Read => self.options.read_connections,
            ManagedRole::ReadWrite => self.options.readwrite_connections,
            ManagedRole::Replicator | ManagedRole::Rewind => ConnectionLimit::Auto,
        }
    }

    /// `None` if this role is not desired.
    fn salted_password(&self, role: ManagedRole) -> Option<&SaltedPassword> {
        let replication = self.replication.as_ref();
        match role {
            ManagedRole::Read => Some(&self.read),
            ManagedRole::ReadWrite => Some(&self.readwrite),
            ManagedRole::Replicator => replication.map(|state| &state.replicator),
            ManagedRole::Rewind => replication.map(|state| &state.rewind),
        }
    }

    /// The SCRAM verifier of the password, with the salt of this value: the same at each call. `None` if this role is
    /// not desired.
    fn verifier(&self, role: ManagedRole) -> Option<Verifier> {
        let (password, salt) = self.salted_password(role)?;
        Some(Verifier::new(password, salt))
    }

    /// A psql script that establishes this state from any starting point. It may be run repeatedly.
    ///
    /// It contains the verifiers of the passwords, and always sets them, because it is written
    /// without a server.
    #[must_use]
    pub fn script(&self) -> zeroize::Zeroizing<String> {
        script::write(self)
    }
}

/// The result of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The differences that were repaired, one line each.
    pub repaired: Vec<String>,
    /// The kinds of the requirements that were not met, one of [`KINDS`] each.
    pub(crate) kinds: Vec<&'static str>,
}

/// Why the roles were not provisioned. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Postgres cannot be reached or refuses.
    #[error(transparent)]
    Postgres(#[from] Error),
    /// A standby gets its roles from its primary.
    #[error("Postgres is in recovery and read-only: provision its primary")]
    InRecovery,
    /// Only a superuser can read the state of the roles.
    #[error("the role {0} is not a superuser of this Postgres")]
    NotSuperuser(String),
    /// The session is in a database other than the one to provision.
    #[error("logged in to the database {0:?} instead of the one to provision")]
    OtherDatabase(String),
    /// Something reverts the changes, an event trigger for example.
    #[error("differences remain after the repair: {}", .0.join("; "))]
    NotConverged(Vec<String>),
    /// The operating system provides no random bytes.
    #[error("cannot generate random bytes: {0}")]
    Random(#[from] std::io::Error),
    /// All attempts together took too long.
    #[error("not completed within {0:?}")]
    TimedOut(Duration),
}

impl From<tokio_postgres::Error> for ProvisionError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

impl ProvisionError {
    /// Whether waiting may help: Postgres may still be starting or recovering, or another session holds
    /// locks or changes the same rows or tables at the same time. Clients that do so all the time must not
    /// end the process.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Postgres(Error::Server { code, .. }) => {
                const TEMPORARY: [SqlState; 10] = [
                    SqlState::INTERNAL_ERROR,
                    SqlState::UNDEFINED_OBJECT,
                    SqlState::UNDEFINED_TABLE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::QUERY_CANCELED,
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::TOO_MANY_CONNECTIONS,
                ];
                TEMPORARY.contains(code)
            }
            Self::Postgres(error) => matches!(
                error,
                Error::Unreachable { .. } | Error::TimedOut(_) | Error::Broken(_)
            ),
            Self::InRecovery | Self::TimedOut(_) | Self::NotConverged(_) => true,
            Self::NotSuperuser(_) | Self::OtherDatabase(_) | Self::Random(_) => false,
        }
    }

    /// Whether another attempt may succeed.
    fn is_transient(&self) -> bool {
        // Postgres reports an internal error if an object is dropped between listing and
        // locking it, or if two sessions update a row of a catalog at the same time.
        const TRANSIENT: [SqlState; 6] = [
            SqlState::INTERNAL_ERROR,
            SqlState::UNDEFINED_DATABASE,
            SqlState::UNDEFINED_OBJECT,
            SqlState::UNDEFINED_TABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ];
        matches!(self, Self::Postgres(Error::Server { code, .. }) if TRANSIENT.contains(code))
    }
}

/// Establishes the desired state, or changes nothing.
///
/// `client` must be a superuser's session in the desired database.
///
/// # Errors
/// [`ProvisionError`]. Nothing was changed.
pub async fn run(client: &mut Client, desired: &DesiredState) -> Result<Report, ProvisionError> {
    let attempts = async {
        for _ in 1..MAX_ATTEMPTS {
            match attempt(client, desired).await {
                Err(error) if error.is_transient() => sleep(RETRY_DELAY).await,
                done => return done,
            }
        }
        attempt(client, desired).await
    };
    match timeout(TIMEOUT, attempts).await {
        Ok(done) => done,
        Err(_) => Err(ProvisionError::TimedOut(TIMEOUT)),
    }
}

/// Where the superuser logs in, and what is established there.
#[derive(Clone)]
pub(crate) struct ProvisionTarget {
    pub(crate) server: PostgresServer,
    pub(crate) database: String,
    pub(crate) options: ProvisionOptions,
    /// The passwords of the roles for replication, in a cluster.
    pub(crate) replication: Option<ReplicationPasswords>,
}

impl ProvisionTarget {
    /// Logs in as the superuser and calls [`run`]. Sessions that hold locks meanwhile are reported to
    /// `report`, and ended by `watch`.
    ///
    /// # Errors
    /// As [`run`].
    pub(crate) async fn establish(
        &self,
        passwords: &ResolvedPasswords,
        watch: &mut BlockerWatch,
        report: impl Fn(String),
    ) -> Result<Report, ProvisionError> {
        let ResolvedPasswords {
            read, readwrite, ..
        } = passwords.clone();
        let desired = DesiredState::new(self.database.clone(), self.options, read, readwrite)?
            .with_replication(self.replication.clone())?;
        let superuser = passwords.superuser.as_ref();
        let mut session = Superuser::connect(&self.server, superuser, &self.database).await?;
        let row = session.client().query_one("SELECT pg_backend_pid()", &[]);
        let pid: i32 = row.await?.try_get(0)?;
        let result = tokio::select! {
            result = run(session.client_mut(), &desired) => result,
            never = watch.watch(&self.server, passwords, &self.database, pid, report) => match never {},
        };
        session.close().await;
        if result.is_ok() {
            watch.succeeded();
        }
        result
    }
}

async fn attempt(client: &mut Client, desired: &DesiredState) -> Result<Report, ProvisionError> {
    if check_session(client, desired).await? == Recovery::Ongoing {
        return Err(ProvisionError::InRecovery);
    }
    let start = client.build_transaction().read_only(false);
    let transaction = start
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()
        .await?;
    transaction.batch_execute(SETTINGS).await?;
    let mut report = Report::default();
    // Without differences no lock is taken.
    if !plan(&transaction, desired).await?.is_empty() {
        transaction.batch_execute(LOCK).await?;
        report = converge(&transaction, desired).await?;
    }
    transaction.commit().await?;
    Ok(report)
}

/// Applies plans until no difference remains. Returns the differences that were repaired.
async fn converge(
    transaction: &Transaction<'_>,
    desired: &DesiredState,
) -> Result<Report, ProvisionError> {
    let mut report = Report::default();
    for _ in 0..MAX_ROUNDS {
        let plan = plan(transaction, desired).await?;
        if plan.is_empty() {
            return Ok(report);
        }
        for step in plan {
            transaction
                .batch_execute(&step.requirement.sql(desired))
                .await?;
            report.repaired.extend(step.differences);
            report.kinds.push(step.requirement.kind());
        }
    }
    let plan = plan(transaction, desired).await?;
    match differences(plan) {
        remaining if remaining.is_empty() => Ok(report),
        remaining => Err(ProvisionError::NotConverged(remaining)),
    }
}

/// Returns the differences from the desired state, one line each. Changes nothing, and works on a
/// standby too.
///
/// # Errors
/// [`ProvisionError`].
pub async fn check(
    client: &mut Client,
    desired: &DesiredState,
) -> Result<Vec<String>, ProvisionError> {
    let compare = async {
        check_session(client, desired).await?;
        let start = client.build_transaction().read_only(true);
        // All queries see the same snapshot.
        let start = start.isolation_level(IsolationLevel::RepeatableRead);
        let transaction = start.start().await?;
        transaction.batch_execute(SETTINGS).await?;
        Ok(differences(plan(&transaction, desired).await?))
    };
    match timeout(TIMEOUT, compare).await {
        Ok(done) => done,
        Err(_) => Err(ProvisionError::TimedOut(TIMEOUT)),
    }
}

#[derive(PartialEq, Eq)]
enum Recovery {
    Ongoing,
    Over,
}

/// Checks that the session is a superuser's and in the desired database.
async fn check_session(
    client: &Client,
    desired: &DesiredState,
) -> Result<Recovery, ProvisionError> {
    let row = client.query_one(state::SESSION, &[]).await?;
    let (user, superuser): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (database, in_recovery): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
    if !superuser {
        return Err(ProvisionError::NotSuperuser(user));
    }
    if database != desired.database {
        return Err(ProvisionError::OtherDatabase(database));
    }
    Ok(if in_recovery {
        Recovery::Ongoing
    } else {
        Recovery::Over
    })
}

/// A requirement that is not met, and the differences.
struct Step {
    requirement: Requirement,
    differences: Vec<String>,
}

async fn plan(
    transaction: &Transaction<'_>,
    desired: &DesiredState,
) -> Result<Vec<Step>, ProvisionError> {
    Ok(steps(&CurrentState::read(transaction).await?, desired))
}

fn steps(state: &CurrentState, desired: &DesiredState) -> Vec<Step> {
    let step = |requirement: Requirement| {
        let differences = requirement.differences(state, desired);
        (!differences.is_empty()).then_some(Step {
            requirement,
            differences,
        })
    };
    Requirement::all(desired)
        .into_iter()
        .filter_map(step)
        .collect()
}

fn differences(steps: Vec<Step>) -> Vec<String> {
    steps
        .into_iter()
        .flat_map(|step| step.differences)
        .collect()
}
