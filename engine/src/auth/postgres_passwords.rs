//! The passwords for Postgres: configured, or derived from the cluster key or from keys of the guest agent.
//!
//! The guest agent always derives the same keys for the same application, so that all members of a cluster agree.
//! Members that are different applications derive from one cluster key instead. A configured password always takes
//! precedence. None of them may ever be in a log or an error.

use attest::agent::{Agent, AgentAddresses, AgentError, AgentOptions, DerivedKey};
use wire::cluster_key::{ClusterKey, PasswordLabel};
use wire::scram::Password;

use crate::auth::role::Role;

/// The configured passwords, and where the others come from. `None` means that the password is derived.
#[derive(Default)]
pub struct PostgresPasswords {
    /// The password of `teesql_read`.
    pub read: Option<Password>,
    /// The password of `teesql_readwrite`.
    pub readwrite: Option<Password>,
    /// The password of `postgres`. If none is configured or derived, the role is closed.
    pub superuser: Option<Password>,
    /// Derives the passwords that are not configured, in place of the guest agent.
    pub cluster_key: Option<ClusterKey>,
}

/// The derived passwords, kept for as long as the process runs.
pub(crate) struct DerivedPasswords {
    read: Password,
    readwrite: Password,
    superuser: Password,
    replication: Option<ReplicationPasswords>,
}

/// The passwords of the roles with which the members of a cluster read from their leader. They are always derived.
#[derive(Clone)]
pub(crate) struct ReplicationPasswords {
    pub(crate) replicator: Password,
    pub(crate) rewind: Password,
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

impl DerivedPasswords {
    /// Requests each key from the guest agent, those of the replication roles only if `replication`.
    ///
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(crate) async fn derive(agent: &Agent, replication: bool) -> Result<Self, AgentError> {
        let password = async |label| password_from_agent(agent, label).await;
        Ok(Self {
            read: password(PasswordLabel::Read).await?,
            readwrite: password(PasswordLabel::ReadWrite).await?,
            superuser: password(PasswordLabel::Superuser).await?,
            replication: if replication {
                Some(ReplicationPasswords {
                    replicator: password(PasswordLabel::Replicator).await?,
                    rewind: password(PasswordLabel::Rewind).await?,
                })
            } else {
                None
            },
        })
    }

    /// Derives them from the cluster key, those of the replication roles only if `replication`.
    pub(crate) fn from_cluster_key(key: &ClusterKey, replication: bool) -> Self {
        Self {
            read: key.password(PasswordLabel::Read),
            readwrite: key.password(PasswordLabel::ReadWrite),
            superuser: key.password(PasswordLabel::Superuser),
            replication: replication.then(|| ReplicationPasswords {
                replicator: key.password(PasswordLabel::Replicator),
                rewind: key.password(PasswordLabel::Rewind),
            }),
        }
    }

    /// Those of the replication roles, if they were derived.
    pub(crate) fn replication(&self) -> Option<&ReplicationPasswords> {
        self.replication.as_ref()
    }
}

impl PostgresPasswords {
    /// The password with this label, if it is configured or derived from the cluster key. Otherwise it comes from the
    /// guest agent.
    pub(crate) fn for_label(self, label: PasswordLabel) -> Option<Password> {
        let configured = match label {
            PasswordLabel::Read => self.read,
            PasswordLabel::ReadWrite => self.readwrite,
            PasswordLabel::Superuser => self.superuser,
            PasswordLabel::Replicator | PasswordLabel::Rewind | PasswordLabel::BackupEncryption => {
                None
            }
        };
        configured.or_else(|| Some(self.cluster_key?.password(label)))
    }

    /// Whether the guest agent is needed, because a required password is neither configured nor derived from the
    /// cluster key.
    #[must_use]
    pub fn need_agent(&self) -> bool {
        self.cluster_key.is_none() && (self.read.is_none() || self.readwrite.is_none())
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
            |configured: Option<Password>, password: fn(&DerivedPasswords) -> &Password| {
                configured.or_else(|| derived.map(|derived| password(derived).clone()))
            };
        let read = configured_or_derived(self.read, |derived| &derived.read);
        let readwrite = configured_or_derived(self.readwrite, |derived| &derived.readwrite);
        Ok(ResolvedPasswords {
            read: read.ok_or(MissingPassword(Role::Read.name()))?,
            readwrite: readwrite.ok_or(MissingPassword(Role::ReadWrite.name()))?,
            superuser: configured_or_derived(self.superuser, |derived| &derived.superuser),
        })
    }

    /// Resolves the passwords for a command that runs once, those of the replication roles only if `replication`.
    /// Connects to the guest agent only if a required password is neither configured nor derived from the cluster key.
    ///
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(crate) async fn resolve_with_agent(
        self,
        addresses: AgentAddresses,
        replication: bool,
    ) -> Result<(ResolvedPasswords, Option<ReplicationPasswords>), PasswordError> {
        let derived = match &self.cluster_key {
            Some(key) => Some(DerivedPasswords::from_cluster_key(key, replication)),
            None if self.need_agent() || replication => {
                let agent = Agent::new(addresses, AgentOptions::default())?;
                Some(DerivedPasswords::derive(&agent, replication).await?)
            }
            None => None,
        };
        let resolved = self.resolve(derived.as_ref())?;
        Ok((resolved, derived.and_then(|derived| derived.replication)))
    }
}

/// Requests the password with this label from the guest agent.
///
/// # Errors
/// The guest agent cannot be reached or refuses.
pub(crate) async fn password_from_agent(
    agent: &Agent,
    label: PasswordLabel,
) -> Result<Password, AgentError> {
    let key = agent.key(label.as_str(), "").await?;
    Ok(password_from_key(&key))
}

/// The password for Postgres: the 32 bytes of the key in lower-case hex.
fn password_from_key(key: &DerivedKey) -> Password {
    Password::new(key.to_hex().as_bytes())
}

#[cfg(test)]
mod tests {
    use subtle::ConstantTimeEq as _;

    use super::*;

    fn key() -> ClusterKey {
        ClusterKey::from_bytes([7; 32])
    }

    fn same(one: &Password, other: &Password) -> bool {
        bool::from(one.ct_eq(other))
    }

    #[test]
    fn a_configured_password_takes_precedence_over_the_cluster_key() {
        let passwords = PostgresPasswords {
            read: Some(Password::new("reader's")),
            cluster_key: Some(key()),
            ..PostgresPasswords::default()
        };
        assert!(!passwords.need_agent());
        let derived = DerivedPasswords::from_cluster_key(&key(), false);
        assert!(derived.replication().is_none());
        let resolved = passwords.resolve(Some(&derived)).unwrap();
        assert_eq!(resolved.read.as_bytes(), b"reader's");
        let expected = key().password(PasswordLabel::ReadWrite);
        assert!(same(&resolved.readwrite, &expected));
        let expected = key().password(PasswordLabel::Superuser);
        assert!(same(&resolved.superuser.unwrap(), &expected));
    }

    #[test]
    fn each_label_has_a_password_of_its_own() {
        let replication = DerivedPasswords::from_cluster_key(&key(), true);
        let replication = replication.replication().unwrap();
        let label = |label| {
            let passwords = PostgresPasswords {
                cluster_key: Some(key()),
                ..PostgresPasswords::default()
            };
            passwords.for_label(label).unwrap()
        };
        assert!(same(
            &label(PasswordLabel::Replicator),
            &replication.replicator
        ));
        assert!(same(&label(PasswordLabel::Rewind), &replication.rewind));
        for (index, one) in PasswordLabel::ALL.into_iter().enumerate() {
            for other in PasswordLabel::ALL.into_iter().skip(index + 1) {
                assert!(!same(&label(one), &label(other)), "{one:?} {other:?}");
            }
        }
        let none = PostgresPasswords::default();
        assert!(none.for_label(PasswordLabel::BackupEncryption).is_none());
    }
}
