//! Postgres' passwords: configured, or derived by the guest agent, which gives
//! the same TD the same keys always.

use attest::agent::{Agent, AgentAddresses, AgentError, AgentOptions, DerivedKey};
use wire::scram::Password;

use crate::auth::role::Role;

/// What the configuration says of them; `None`: to be derived.
#[derive(Default)]
pub struct PostgresPasswords {
    /// Of `teesql_read`.
    pub read: Option<Password>,
    /// Of `teesql_readwrite`.
    pub readwrite: Option<Password>,
    /// Of `postgres`. Where nothing is derived, the role is closed without.
    pub superuser: Option<Password>,
}

/// What the guest agent has derived, for as long as the process runs.
pub(crate) struct DerivedPasswords {
    read: DerivedKey,
    readwrite: DerivedKey,
    superuser: DerivedKey,
}

/// All three, as they are used.
#[derive(Clone)]
pub(crate) struct ResolvedPasswords {
    pub(crate) read: Password,
    pub(crate) readwrite: Password,
    pub(crate) superuser: Option<Password>,
}

/// A role of the two has a password in neither place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password of {0} is not set, and nothing was derived at start")]
pub struct MissingPassword(&'static str);

/// There are no passwords.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    MissingPassword(#[from] MissingPassword),
}

/// The path of a role's key at the guest agent. [contract, sections 1 and 4]
pub(crate) fn path(role: Role) -> &'static str {
    match role {
        Role::Read => "pg/teesql_read",
        Role::ReadWrite => "pg/teesql_readwrite",
        Role::Superuser => "pg/superuser",
    }
}

impl DerivedPasswords {
    /// Asks the guest agent for each key.
    ///
    /// # Errors
    /// It does not give one.
    pub(crate) async fn ask(agent: &Agent) -> Result<Self, AgentError> {
        let key = async |role| agent.key(path(role), "").await;
        Ok(Self {
            read: key(Role::Read).await?,
            readwrite: key(Role::ReadWrite).await?,
            superuser: key(Role::Superuser).await?,
        })
    }
}

impl PostgresPasswords {
    /// The configured one of `role`.
    pub(crate) fn of(self, role: Role) -> Option<Password> {
        match role {
            Role::Read => self.read,
            Role::ReadWrite => self.readwrite,
            Role::Superuser => self.superuser,
        }
    }

    /// Whether one is missing that the roles cannot do without.
    #[must_use]
    pub fn need_agent(&self) -> bool {
        self.read.is_none() || self.readwrite.is_none()
    }

    /// The configured ones, and the derived where there is none.
    ///
    /// # Errors
    /// The password of one of the roles is in neither.
    pub(crate) fn resolve(
        self,
        derived: Option<&DerivedPasswords>,
    ) -> Result<ResolvedPasswords, MissingPassword> {
        let or = |configured: Option<Password>, key: fn(&DerivedPasswords) -> &DerivedKey| {
            configured.or_else(|| derived.map(|derived| password(key(derived))))
        };
        let read = or(self.read, |derived| &derived.read);
        let readwrite = or(self.readwrite, |derived| &derived.readwrite);
        Ok(ResolvedPasswords {
            read: read.ok_or(MissingPassword(Role::Read.name()))?,
            readwrite: readwrite.ok_or(MissingPassword(Role::ReadWrite.name()))?,
            superuser: or(self.superuser, |derived| &derived.superuser),
        })
    }

    /// The same for a command that runs once: the guest agent is asked if one
    /// is missing.
    ///
    /// # Errors
    /// It does not give it.
    pub(crate) async fn complete(
        self,
        places: AgentAddresses,
    ) -> Result<ResolvedPasswords, PasswordError> {
        if !self.need_agent() {
            return Ok(self.resolve(None)?);
        }
        let agent = Agent::new(places, AgentOptions::default())?;
        let derived = DerivedPasswords::ask(&agent).await?;
        Ok(self.resolve(Some(&derived))?)
    }
}

/// The key's 32 bytes in lower-case hex. [contract, section 1]
pub(crate) fn password(key: &DerivedKey) -> Password {
    Password::new(key.to_hex().as_bytes())
}
