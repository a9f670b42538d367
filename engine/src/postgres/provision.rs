//! Brings up the two roles that clients enter as, and their privileges on
//! schema `public` of one database.
//!
//! What has to be so is a list (`aim.rs`); what is so is read from Postgres
//! (`state.rs`); the plan is the difference of the two, and both of them are
//! tested without a server. A plan is carried out in one transaction, which ends
//! with a look at whether the difference is gone. Nothing here may ever put a
//! password into a statement: Postgres gets its verifier.

mod desired;
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

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::auth::role::Role;
use crate::io::stream::PgAddress;
use crate::postgres::superuser::{Error, Superuser};
use desired::Aim;
use state::State;

/// For all of it, tries and waits included.
const DEADLINE: Duration = Duration::from_secs(60);
/// Another session may change the same table's privileges, or drop it, at the
/// same moment: Postgres then refuses one of the two.
const TRIES: usize = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// What one round makes, the next one may have to give privileges on.
const ROUNDS: usize = 3;

/// What every transaction of ours begins with. The logging that it turns off
/// would show verifiers, which are worth less than passwords and still no one
/// else's business; names mean Postgres' own; and no one waits for us for long.
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

/// Roles belong to all databases of a cluster, and advisory locks to one: this
/// lock makes two provisionings of different databases wait for one another, and
/// everybody else's ALTER ROLE too. Logins only read the table and go on.
const LOCK: &str = "LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE;\n";

/// A role that is set up here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    Read,
    ReadWrite,
}

impl Login {
    const ALL: [Self; 2] = [Login::Read, Login::ReadWrite];

    fn name(self) -> &'static str {
        match self {
            Login::Read => Role::Read.name(),
            Login::ReadWrite => Role::ReadWrite.name(),
        }
    }
}

/// What is to be so.
pub struct Wanted {
    database: String,
    read: (Password, [u8; SALT_LEN]),
    readwrite: (Password, [u8; SALT_LEN]),
}

impl Wanted {
    /// The two roles with these passwords, and their privileges in `database`.
    ///
    /// # Errors
    /// The operating system gives no random bytes, for the salts.
    pub fn new(database: String, read: Password, readwrite: Password) -> std::io::Result<Self> {
        Ok(Self {
            database,
            read: (read, crate::auth::random::random()?),
            readwrite: (readwrite, crate::auth::random::random()?),
        })
    }

    fn password(&self, login: Login) -> &Password {
        match login {
            Login::Read => &self.read.0,
            Login::ReadWrite => &self.readwrite.0,
        }
    }

    /// A new verifier of the password; the same one at each call.
    fn verifier(&self, login: Login) -> Verifier {
        let (password, salt) = match login {
            Login::Read => &self.read,
            Login::ReadWrite => &self.readwrite,
        };
        Verifier::new(password, salt)
    }

    /// Everything as one script for psql, which may be run again and again.
    ///
    /// It holds the passwords' verifiers, and sets them whatever they were: it
    /// asks no server.
    #[must_use]
    pub fn script(&self) -> zeroize::Zeroizing<String> {
        script::write(self)
    }
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// What was not as it has to be and now is, a line each; empty if all was.
    pub repaired: Vec<String>,
}

/// Why the roles are not set up. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Postgres cannot be reached, or refuses.
    #[error(transparent)]
    Postgres(#[from] Error),
    /// A standby takes its roles from its primary.
    #[error("Postgres is in recovery and takes no changes: provision its primary")]
    InRecovery,
    /// Who is no superuser may not even see what is to be done.
    #[error("the role {0} is no superuser of this Postgres")]
    NotSuperuser(String),
    /// A session in another database than the one wanted.
    #[error("logged in to the database {0:?}, and not to the one to provision")]
    OtherDatabase(String),
    /// Something undoes what is done, an event trigger for example.
    #[error("still not as it has to be, whatever was done: {}", .0.join("; "))]
    Unsettled(Vec<String>),
    /// The operating system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] std::io::Error),
    /// All tries together took too long.
    #[error("not done within {0:?}")]
    TimedOut(Duration),
}

impl From<tokio_postgres::Error> for ProvisionError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

impl ProvisionError {
    /// Whether it may help to wait: Postgres is not up yet, or still recovering.
    pub(crate) fn is_of_startup(&self) -> bool {
        match self {
            Self::Postgres(error) => matches!(
                error,
                Error::Unreachable { .. }
                    | Error::TimedOut(_)
                    | Error::Broken(_)
                    | Error::Server {
                        code: SqlState::CANNOT_CONNECT_NOW,
                        ..
                    }
            ),
            Self::InRecovery | Self::TimedOut(_) => true,
            Self::NotSuperuser(_)
            | Self::OtherDatabase(_)
            | Self::Unsettled(_)
            | Self::Random(_) => false,
        }
    }

    /// Whether it may be otherwise in a moment.
    fn is_passing(&self) -> bool {
        // What is dropped between being listed and being locked is an internal
        // error to Postgres, and so is a row that two sessions update at once.
        const PASSING: [SqlState; 4] = [
            SqlState::INTERNAL_ERROR,
            SqlState::UNDEFINED_TABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ];
        matches!(self, Self::Postgres(Error::Server { code, .. }) if PASSING.contains(code))
    }
}

/// Makes it so, or changes nothing.
///
/// `client` has to be a superuser's session in the wanted database.
///
/// # Errors
/// [`ProvisionError`]; nothing was changed then.
pub async fn run(client: &mut Client, wanted: &Wanted) -> Result<Report, ProvisionError> {
    let tries = async {
        for _ in 1..TRIES {
            match try_to_run(client, wanted).await {
                Err(error) if error.is_passing() => sleep(BETWEEN_TRIES).await,
                done => return done,
            }
        }
        try_to_run(client, wanted).await
    };
    match timeout(DEADLINE, tries).await {
        Ok(done) => done,
        Err(_) => Err(ProvisionError::TimedOut(DEADLINE)),
    }
}

/// Logs in as the superuser, and does it.
///
/// # Errors
/// As [`run`].
pub(crate) async fn at_start(
    endpoint: &PgAddress,
    database: &str,
    passwords: &ResolvedPasswords,
) -> Result<Report, ProvisionError> {
    let ResolvedPasswords {
        read, readwrite, ..
    } = passwords.clone();
    let wanted = Wanted::new(database.to_owned(), read, readwrite)?;
    let mut session = Superuser::connect(endpoint, passwords.superuser.as_ref(), database).await?;
    let report = run(session.client_mut(), &wanted).await;
    session.close().await;
    report
}

async fn try_to_run(client: &mut Client, wanted: &Wanted) -> Result<Report, ProvisionError> {
    if admit(client, wanted).await? == Recovery::Ongoing {
        return Err(ProvisionError::InRecovery);
    }
    let start = client.build_transaction().read_only(false);
    let transaction = start
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()
        .await?;
    transaction.batch_execute(SETTINGS).await?;
    let mut repaired = Vec::new();
    // Where all is well nobody has to wait for us.
    if !plan(&transaction, wanted).await?.is_empty() {
        transaction.batch_execute(LOCK).await?;
        repaired = settle(&transaction, wanted).await?;
    }
    transaction.commit().await?;
    Ok(Report { repaired })
}

async fn settle(
    transaction: &Transaction<'_>,
    wanted: &Wanted,
) -> Result<Vec<String>, ProvisionError> {
    let mut repaired = Vec::new();
    for _ in 0..ROUNDS {
        let plan = plan(transaction, wanted).await?;
        if plan.is_empty() {
            return Ok(repaired);
        }
        for step in plan {
            transaction.batch_execute(&step.aim.sql(wanted)).await?;
            repaired.extend(step.differences);
        }
    }
    let plan = plan(transaction, wanted).await?;
    match differences(plan) {
        left if left.is_empty() => Ok(repaired),
        left => Err(ProvisionError::Unsettled(left)),
    }
}

/// What is not as it has to be, a line each. Changes nothing, and works on a
/// standby too.
///
/// # Errors
/// [`ProvisionError`].
pub async fn check(client: &mut Client, wanted: &Wanted) -> Result<Vec<String>, ProvisionError> {
    let look = async {
        admit(client, wanted).await?;
        let start = client.build_transaction().read_only(true);
        // One moment for all that is read.
        let start = start.isolation_level(IsolationLevel::RepeatableRead);
        let transaction = start.start().await?;
        transaction.batch_execute(SETTINGS).await?;
        Ok(differences(plan(&transaction, wanted).await?))
    };
    match timeout(DEADLINE, look).await {
        Ok(done) => done,
        Err(_) => Err(ProvisionError::TimedOut(DEADLINE)),
    }
}

#[derive(PartialEq, Eq)]
enum Recovery {
    Ongoing,
    Over,
}

async fn admit(client: &Client, wanted: &Wanted) -> Result<Recovery, ProvisionError> {
    let row = client.query_one(state::SESSION, &[]).await?;
    let (user, superuser): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (database, in_recovery): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
    if !superuser {
        return Err(ProvisionError::NotSuperuser(user));
    }
    if database != wanted.database {
        return Err(ProvisionError::OtherDatabase(database));
    }
    Ok(if in_recovery {
        Recovery::Ongoing
    } else {
        Recovery::Over
    })
}

/// An aim that is not met, and how one can tell.
struct Step {
    aim: Aim,
    differences: Vec<String>,
}

async fn plan(transaction: &Transaction<'_>, wanted: &Wanted) -> Result<Vec<Step>, ProvisionError> {
    Ok(steps(&State::read(transaction).await?, wanted))
}

fn steps(state: &State, wanted: &Wanted) -> Vec<Step> {
    let step = |aim: Aim| {
        let differences = aim.differences(state, wanted);
        (!differences.is_empty()).then_some(Step { aim, differences })
    };
    Aim::all().into_iter().filter_map(step).collect()
}

fn differences(steps: Vec<Step>) -> Vec<String> {
    steps
        .into_iter()
        .flat_map(|step| step.differences)
        .collect()
}
