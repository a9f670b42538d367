//! Who may enter as what: the three roles and the secrets that open them.

use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};
use wire::scram::Password;
use wire::secret::ClusterSecret;

use crate::auth::credential::Credential;
use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::auth::role::Role;

/// The cluster secrets. Without one its role is closed, which only simulator
/// mode allows.
#[derive(Clone, Default)]
pub struct ClusterSecrets {
    /// Opens `teesql_read`.
    pub read: Option<ClusterSecret>,
    /// Opens `teesql_readwrite`, and `teesql_read` too.
    pub readwrite: Option<ClusterSecret>,
}

/// What clients present, and the passwords that Postgres gets.
pub(crate) struct AuthSecrets {
    pub(crate) cluster: ClusterSecrets,
    pub(crate) passwords: ResolvedPasswords,
}

/// [`AuthSecrets`], ready for use by the shards.
pub(crate) struct Authenticator {
    read: SecretSlot,
    readwrite: SecretSlot,
    pg_read: Arc<Credential>,
    pg_readwrite: Arc<Credential>,
    superuser: SuperuserSlot,
}

/// A cluster secret, and the one before it while that is still good.
#[derive(Clone)]
struct SecretSlot {
    current: Option<ClusterSecret>,
    previous: Option<ClusterSecret>,
}

struct SuperuserSlot {
    credential: Arc<Credential>,
    open: Choice,
}

/// What a [`Authenticator::rotated`] changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// A cluster secret: the one before it is still good.
    pub(crate) secrets: bool,
    /// A password for Postgres.
    pub(crate) passwords: bool,
}

impl SecretSlot {
    fn matches(&self, presented: &[u8]) -> Choice {
        let secrets = self.current.iter().chain(&self.previous);
        secrets.fold(Choice::from(0), |found, secret| {
            found | secret.matches(presented)
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
        let accepted = |current| SecretSlot {
            current,
            previous: None,
        };
        Self {
            read: accepted(secrets.cluster.read),
            readwrite: accepted(secrets.cluster.readwrite),
            pg_read: Arc::new(Credential::new(secrets.passwords.read)),
            pg_readwrite: Arc::new(Credential::new(secrets.passwords.readwrite)),
            superuser: SuperuserSlot::new(secrets.passwords.superuser),
        }
    }

    /// The same with new secrets, the ones before them being good still.
    pub(crate) fn rotated(&self, next: AuthSecrets) -> (Self, Rotation) {
        let AuthSecrets { cluster, passwords } = next;
        let (read, new_read) = self.read.rotated(cluster.read);
        let (readwrite, new_readwrite) = self.readwrite.rotated(cluster.readwrite);
        let (pg_read, new_pg_read) = renewed(&self.pg_read, passwords.read);
        let (pg_readwrite, new_pg_readwrite) = renewed(&self.pg_readwrite, passwords.readwrite);
        let (superuser, new_superuser) = self.superuser.renewed(passwords.superuser);
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

    /// The same without the secrets that came before.
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

    /// The credential to inject, if `presented` opens `role`.
    ///
    /// All comparisons are made whatever the role is, each in constant time, so
    /// that neither the answer's bytes nor its time tell a wrong secret from a
    /// wrong or unknown role.
    pub(crate) fn admit(&self, role: Option<Role>, presented: &[u8]) -> Option<&Arc<Credential>> {
        let readwrite = self.readwrite.matches(presented);
        let read = self.read.matches(presented) | readwrite;
        let superuser = self.superuser.credential.password.matches(presented) & self.superuser.open;
        let (opens, credential) = match role {
            Some(Role::Read) => (read, &self.pg_read),
            Some(Role::ReadWrite) => (readwrite, &self.pg_readwrite),
            Some(Role::Superuser) => (superuser, &self.superuser.credential),
            None => (Choice::from(0), &self.pg_read),
        };
        bool::from(opens).then_some(credential)
    }

    /// The superuser's credential without being asked for a password: for
    /// simulator mode and loopback peers only.
    pub(crate) fn trusted_local_superuser(&self) -> Option<&Arc<Credential>> {
        bool::from(self.superuser.open).then_some(&self.superuser.credential)
    }
}

/// `before` where the password is the same: the keys derived from it stay good.
fn renewed(before: &Arc<Credential>, next: Password) -> (Arc<Credential>, bool) {
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

    fn renewed(&self, next: Option<Password>) -> (Self, bool) {
        let open = Choice::from(u8::from(next.is_some()));
        let next = next.unwrap_or_else(|| Password::new(""));
        let (credential, changed) = renewed(&self.credential, next);
        let opened = self.open.unwrap_u8() != open.unwrap_u8();
        (Self { credential, open }, changed || opened)
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
    fn each_secret_opens_its_roles_and_no_other() {
        let authenticator = authenticator(Some("root password"));
        let opened = |role, presented: &str| {
            let admitted = authenticator.admit(Role::from_name(role), presented.as_bytes());
            admitted.map(|credential| {
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
                    .map(|presented| opened(role, presented))
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
    fn after_a_rotation_both_secrets_open_until_it_is_settled() {
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
        let opens = |authenticator: &Authenticator, secret: &str| {
            let admitted = authenticator.admit(Some(Role::Read), secret.as_bytes());
            admitted.is_some()
        };
        assert!(opens(&both, READ) && opens(&both, other) && opens(&both, READWRITE));
        let (again, changed) = both.rotated(secrets(other, "a"));
        assert_eq!(changed, Rotation::default(), "the same again is no change");
        assert!(opens(&again, READ), "and takes nothing away");
        let after = again.without_previous();
        assert!(!opens(&after, READ) && opens(&after, other) && opens(&after, READWRITE));
    }

    #[test]
    fn a_password_that_stays_keeps_its_derived_keys() {
        let before = Authenticator::new(secrets(READ, "a"));
        let (after, changed) = before.rotated(secrets(READ, "c"));
        assert!(changed.passwords && !changed.secrets);
        assert!(Arc::ptr_eq(&before.pg_readwrite, &after.pg_readwrite));
        assert_ne!(before.pg_read.id, after.pg_read.id);
    }

    #[test]
    fn without_a_superuser_password_an_empty_one_opens_nothing() {
        let authenticator = authenticator(None);
        assert!(authenticator.admit(Some(Role::Superuser), b"").is_none());
    }
}
