//! Authenticates clients: the cluster secrets, the superuser's password and the roles that each
//! of them authorizes.
//!
//! Secrets must be compared in constant time only, and must never be logged.

use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};
use wire::scram::Password;
use wire::secret::ClusterSecret;

use crate::auth::credential::Credential;
use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::auth::role::Role;

/// The cluster secrets. A role without a secret is closed, which is possible in simulator mode
/// only.
#[derive(Clone, Default)]
pub struct ClusterSecrets {
    /// Authorizes `teesql_read`.
    pub read: Option<ClusterSecret>,
    /// Authorizes `teesql_readwrite` and `teesql_read`.
    pub readwrite: Option<ClusterSecret>,
}

/// The secrets that clients present, and the passwords for Postgres.
pub(crate) struct AuthSecrets {
    pub(crate) cluster: ClusterSecrets,
    pub(crate) passwords: ResolvedPasswords,
}

/// Compares secrets with [`AuthSecrets`]. Immutable and shared by all shards.
pub(crate) struct Authenticator {
    read: SecretSlot,
    readwrite: SecretSlot,
    pg_read: Arc<Credential>,
    pg_readwrite: Arc<Credential>,
    superuser: SuperuserSlot,
}

/// A cluster secret, and during a rotation the previous one, which is still accepted.
#[derive(Clone)]
struct SecretSlot {
    current: Option<ClusterSecret>,
    previous: Option<ClusterSecret>,
}

/// The superuser's credential. A closed role has a credential too, so that a comparison takes the
/// same time.
struct SuperuserSlot {
    credential: Arc<Credential>,
    open: Choice,
}

/// The changes that [`Authenticator::rotated`] made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// A cluster secret changed. The previous one is still accepted.
    pub(crate) secrets: bool,
    /// A password for Postgres changed.
    pub(crate) passwords: bool,
}

impl SecretSlot {
    fn matches(&self, presented: &[u8]) -> Choice {
        let secrets = self.current.iter().chain(&self.previous);
        secrets.fold(Choice::from(0), |matched, secret| {
            matched | secret.matches(presented)
        })
    }

    fn rotated(&self, next: Option<ClusterSecret>) -> (Self, bool) {
        let same = match (&self.current, &next) {
            (Some(current), Some(next)) => current.ct_eq(next).into(),
            (None, None) => true,
            _ => false,
        };
        if same {
            return (self.clone(), false);
        }
        let (current, previous) = (next, self.current.clone());
        (Self { current, previous }, true)
    }

    fn without_previous(&self) -> Self {
        Self {
            current: self.current.clone(),
            previous: None,
        }
    }
}

impl Authenticator {
    pub(crate) fn new(secrets: AuthSecrets) -> Self {
        let slot = |current| SecretSlot {
            current,
            previous: None,
        };
        Self {
            read: slot(secrets.cluster.read),
            readwrite: slot(secrets.cluster.readwrite),
            pg_read: Arc::new(Credential::new(secrets.passwords.read)),
            pg_readwrite: Arc::new(Credential::new(secrets.passwords.readwrite)),
            superuser: SuperuserSlot::new(secrets.passwords.superuser),
        }
    }

    /// A copy with new secrets, which also accepts the current ones.
    pub(crate) fn rotated(&self, next: AuthSecrets) -> (Self, Rotation) {
        let AuthSecrets { cluster, passwords } = next;
        let (read, new_read) = self.read.rotated(cluster.read);
        let (readwrite, new_readwrite) = self.readwrite.rotated(cluster.readwrite);
        let (pg_read, new_pg_read) = updated_credential(&self.pg_read, passwords.read);
        let (pg_readwrite, new_pg_readwrite) =
            updated_credential(&self.pg_readwrite, passwords.readwrite);
        let (superuser, new_superuser) = self.superuser.updated(passwords.superuser);
        let changed = Rotation {
            secrets: new_read | new_readwrite,
            passwords: new_pg_read | new_pg_readwrite | new_superuser,
        };
        let authenticator = Self {
            read,
            readwrite,
            pg_read,
            pg_readwrite,
            superuser,
        };
        (authenticator, changed)
    }

    /// A copy that no longer accepts the previous secrets.
    pub(crate) fn without_previous(&self) -> Self {
        Self {
            read: self.read.without_previous(),
            readwrite: self.readwrite.without_previous(),
            pg_read: Arc::clone(&self.pg_read),
            pg_readwrite: Arc::clone(&self.pg_readwrite),
            superuser: SuperuserSlot {
                credential: Arc::clone(&self.superuser.credential),
                open: self.superuser.open,
            },
        }
    }

    /// The credential to inject, if `presented` authorizes `role`.
    ///
    /// All comparisons are made for every role, each in constant time. So neither the bytes nor
    /// the time of the response distinguish a wrong secret from a wrong or unknown role.
    pub(crate) fn authenticate(
        &self,
        role: Option<Role>,
        presented: &[u8],
    ) -> Option<&Arc<Credential>> {
        let readwrite = self.readwrite.matches(presented);
        let read = self.read.matches(presented) | readwrite;
        let superuser = self.superuser.credential.password.matches(presented) & self.superuser.open;
        let (authorized, credential) = match role {
            Some(Role::Read) => (read, &self.pg_read),
            Some(Role::ReadWrite) => (readwrite, &self.pg_readwrite),
            Some(Role::Superuser) => (superuser, &self.superuser.credential),
            None => (Choice::from(0), &self.pg_read),
        };
        bool::from(authorized).then_some(credential)
    }

    /// The passwords of the roles, for provisioning.
    pub(crate) fn postgres_passwords(&self) -> ResolvedPasswords {
        let superuser = self.superuser_credential();
        ResolvedPasswords {
            read: self.pg_read.password.clone(),
            readwrite: self.pg_readwrite.password.clone(),
            superuser: superuser.map(|credential| credential.password.clone()),
        }
    }

    /// The superuser's credential, without authentication; `None` if the role is closed. For the
    /// sidecar's own session, and in simulator mode for clients on this machine. Never for any
    /// other client.
    pub(crate) fn superuser_credential(&self) -> Option<&Arc<Credential>> {
        bool::from(self.superuser.open).then_some(&self.superuser.credential)
    }
}

/// Returns `before` if the password is the same, so that cached keys remain valid, and whether it
/// has changed.
fn updated_credential(before: &Arc<Credential>, next: Password) -> (Arc<Credential>, bool) {
    if bool::from(before.password.ct_eq(&next)) {
        (Arc::clone(before), false)
    } else {
        (Arc::new(Credential::new(next)), true)
    }
}

impl SuperuserSlot {
    fn new(password: Option<Password>) -> Self {
        let open = Choice::from(u8::from(password.is_some()));
        let password = password.unwrap_or_else(|| Password::new(""));
        Self {
            credential: Arc::new(Credential::new(password)),
            open,
        }
    }

    fn updated(&self, next: Option<Password>) -> (Self, bool) {
        let open = Choice::from(u8::from(next.is_some()));
        let next = next.unwrap_or_else(|| Password::new(""));
        let (credential, changed) = updated_credential(&self.credential, next);
        let availability_changed = self.open.unwrap_u8() != open.unwrap_u8();
        (Self { credential, open }, changed || availability_changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const READWRITE: &str = "abababababababababababababababababababababababababababababababab";

    fn authenticator(superuser: Option<&str>) -> Authenticator {
        let mut secrets = secrets(READ, "a");
        secrets.passwords.superuser = superuser.map(Password::new);
        Authenticator::new(secrets)
    }

    #[test]
    fn each_secret_authorizes_its_roles_only() {
        let authenticator = authenticator(Some("root password"));
        let authorized = |role, presented: &str| {
            let credential =
                authenticator.authenticate(Role::from_name(role), presented.as_bytes());
            credential.map(|credential| {
                let is = |other: &Arc<Credential>| Arc::ptr_eq(credential, other);
                let all = [
                    &authenticator.pg_read,
                    &authenticator.pg_readwrite,
                    &authenticator.superuser.credential,
                ];
                all.into_iter().position(is).unwrap()
            })
        };
        let matrix: Vec<_> = ["teesql_read", "teesql_readwrite", "postgres", "mallory"]
            .iter()
            .map(|role| {
                [READ, READWRITE, "root password", "", "wrong"]
                    .map(|presented| authorized(role, presented))
            })
            .collect();
        assert_eq!(
            matrix,
            [
                [Some(0), Some(0), None, None, None],
                [None, Some(1), None, None, None],
                [None, None, Some(2), None, None],
                [None, None, None, None, None],
            ]
        );
    }

    fn secrets(read: &str, pg_read: &str) -> AuthSecrets {
        AuthSecrets {
            cluster: ClusterSecrets {
                read: Some(read.parse().unwrap()),
                readwrite: Some(READWRITE.parse().unwrap()),
            },
            passwords: ResolvedPasswords {
                read: Password::new(pg_read),
                readwrite: Password::new("b"),
                superuser: None,
            },
        }
    }

    #[test]
    fn both_secrets_are_accepted_until_the_previous_one_is_removed() {
        let other = "2222222222222222222222222222222222222222222222222222222222222222";
        let before = Authenticator::new(secrets(READ, "a"));
        let (both, changed) = before.rotated(secrets(other, "a"));
        assert_eq!(
            changed,
            Rotation {
                secrets: true,
                passwords: false
            }
        );
        let accepts = |authenticator: &Authenticator, secret: &str| {
            let credential = authenticator.authenticate(Some(Role::Read), secret.as_bytes());
            credential.is_some()
        };
        assert!(accepts(&both, READ) && accepts(&both, other) && accepts(&both, READWRITE));
        let (again, changed) = both.rotated(secrets(other, "a"));
        assert_eq!(
            changed,
            Rotation::default(),
            "the same secrets are no change"
        );
        assert!(accepts(&again, READ), "and remove no secret");
        let after = again.without_previous();
        assert!(!accepts(&after, READ) && accepts(&after, other) && accepts(&after, READWRITE));
    }

    #[test]
    fn an_unchanged_password_keeps_its_credential() {
        let before = Authenticator::new(secrets(READ, "a"));
        let (after, changed) = before.rotated(secrets(READ, "c"));
        assert!(changed.passwords && !changed.secrets);
        assert!(Arc::ptr_eq(&before.pg_readwrite, &after.pg_readwrite));
        assert_ne!(before.pg_read.id, after.pg_read.id);
    }

    #[test]
    fn an_empty_password_does_not_open_a_closed_superuser_role() {
        let authenticator = authenticator(None);
        assert!(
            authenticator
                .authenticate(Some(Role::Superuser), b"")
                .is_none()
        );
    }
}
