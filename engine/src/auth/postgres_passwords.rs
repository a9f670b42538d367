//! The passwords for Postgres: configured, or derived from keys of the guest agent.
//!
//! The guest agent always derives the same keys for the same TD.

use attest::agent::{Agent, AgentAddresses, AgentError, AgentOptions, DerivedKey};
use wire::scram::Password;

use crate::auth::role::Role;

/// The configured passwords. `None` means that the password is derived.
#[derive(Default)]
pub struct PostgresPasswords {
    /// The password of `teesql_read`.
    pub read: Option<Password>,
    /// The password of `teesql_readwrite`.
    pub readwrite: Option<Password>,
    /// The password of `postgres`. If none is configured or derived, the role is closed.
    pub superuser: Option<Password>,
}

/// The keys that the guest agent derived, kept for as long as the process runs.
pub(crate) struct DerivedPasswords {
    read: DerivedKey,
    readwrite: DerivedKey,
    superuser: DerivedKey,
}

/// The passwords in use.
#[derive(Clone)]
pub(crate) struct ResolvedPasswords {
    pub(crate) read: Password,
    pub(crate) readwrite: Password,
    pub(crate) superuser: Option<Password>,
}

/// A role has neither a configured nor a derived password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password of {0} is not set, and none was derived at start")]
pub struct MissingPassword(&'static str);

/// The passwords are not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    MissingPassword(#[from] MissingPassword),
}

/// The `path` of a role's key in the guest agent's `GetKey`. It must not change: another path gives
/// another password.
pub(crate) fn key_path(role: Role) -> &'static str {
    match role {
        Role::Read => "pg/teesql_read",
        Role::ReadWrite => "pg/teesql_readwrite",
        Role::Superuser => "pg/superuser",
    }
}

impl DerivedPasswords {
    /// Requests each key from the guest agent.
    ///
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(crate) async fn derive(agent: &Agent) -> Result<Self, AgentError> {
        let key = async |role| agent.key(key_path(role), "").await;
        Ok(Self {
            read: key(Role::Read).await?,
            readwrite: key(Role::ReadWrite).await?,
            superuser: key(Role::Superuser).await?,
        })
    }
}

impl PostgresPasswords {
    /// The configured password of `role`.
    pub(crate) fn for_role(self, role: Role) -> Option<Password> {
        match role {
            Role::Read => self.read,
            Role::ReadWrite => self.readwrite,
            Role::Superuser => self.superuser,
        }
    }

    /// Whether the guest agent is needed, because a required password is not configured.
    #[must_use]
    pub fn need_agent(&self) -> bool {
        self.read.is_none() || self.readwrite.is_none()
    }

    /// Combines configured and derived passwords. The configured ones take precedence.
    ///
    /// # Errors
    /// `teesql_read` or `teesql_readwrite` has no password.
    pub(crate) fn resolve(
        self,
        derived: Option<&DerivedPasswords>,
    ) -> Result<ResolvedPasswords, MissingPassword> {
        let configured_or_derived =
            |configured: Option<Password>, key: fn(&DerivedPasswords) -> &DerivedKey| {
                configured.or_else(|| derived.map(|derived| password_from_key(key(derived))))
            };
        let read = configured_or_derived(self.read, |derived| &derived.read);
        let readwrite = configured_or_derived(self.readwrite, |derived| &derived.readwrite);
        Ok(ResolvedPasswords {
            read: read.ok_or(MissingPassword(Role::Read.name()))?,
            readwrite: readwrite.ok_or(MissingPassword(Role::ReadWrite.name()))?,
            superuser: configured_or_derived(self.superuser, |derived| &derived.superuser),
        })
    }

    /// Resolves the passwords for a command that runs once. Connects to the guest agent only if
    /// a required password is not configured.
    ///
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(crate) async fn resolve_with_agent(
        self,
        addresses: AgentAddresses,
    ) -> Result<ResolvedPasswords, PasswordError> {
        if !self.need_agent() {
            return Ok(self.resolve(None)?);
        }
        let agent = Agent::new(addresses, AgentOptions::default())?;
        let derived = DerivedPasswords::derive(&agent).await?;
        Ok(self.resolve(Some(&derived))?)
    }
}

/// The password for Postgres: the 32 bytes of the key in lower-case hex.
pub(crate) fn password_from_key(key: &DerivedKey) -> Password {
    Password::new(key.to_hex().as_bytes())
}
