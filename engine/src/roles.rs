//! Who may enter as what: the three roles and the secrets that open them.

use std::sync::Arc;

use subtle::Choice;
use wire::scram::Password;
use wire::secret::ClusterSecret;

use crate::upstream::Credential;

/// A role of the cluster (contract: `teesql_read` and `teesql_readwrite` with
/// the cluster secrets, `postgres` with the superuser's own password).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Read,
    ReadWrite,
    Superuser,
}

impl Role {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "teesql_read" => Some(Role::Read),
            "teesql_readwrite" => Some(Role::ReadWrite),
            "postgres" => Some(Role::Superuser),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Read => "teesql_read",
            Role::ReadWrite => "teesql_readwrite",
            Role::Superuser => "postgres",
        }
    }
}

/// The secrets that clients present, and the passwords that Postgres gets.
pub struct Secrets {
    /// Opens `teesql_read`.
    pub read: ClusterSecret,
    /// Opens `teesql_readwrite`, and `teesql_read` too.
    pub readwrite: ClusterSecret,
    /// Postgres' password of `teesql_read`.
    pub pg_read: Password,
    /// Postgres' password of `teesql_readwrite`.
    pub pg_readwrite: Password,
    /// Postgres' password of `postgres`, which operators present themselves;
    /// without one the role is closed.
    pub pg_superuser: Option<Password>,
}

/// [`Secrets`], ready for use by the shards.
pub(crate) struct Gatekeeper {
    read: ClusterSecret,
    readwrite: ClusterSecret,
    pg_read: Arc<Credential>,
    pg_readwrite: Arc<Credential>,
    superuser: Superuser,
}

struct Superuser {
    credential: Arc<Credential>,
    open: Choice,
}

impl Gatekeeper {
    pub(crate) fn new(secrets: Secrets) -> Self {
        let credential = |id, password| Arc::new(Credential { password, id });
        let open = Choice::from(u8::from(secrets.pg_superuser.is_some()));
        Self {
            read: secrets.read,
            readwrite: secrets.readwrite,
            pg_read: credential(0, secrets.pg_read),
            pg_readwrite: credential(1, secrets.pg_readwrite),
            superuser: Superuser {
                credential: credential(
                    2,
                    secrets.pg_superuser.unwrap_or_else(|| Password::new("")),
                ),
                open,
            },
        }
    }

    /// The credential to inject, if `presented` opens `role`.
    ///
    /// All three comparisons are made whatever the role is, each in constant
    /// time, so that neither the answer's bytes nor its time tell a wrong
    /// secret from a wrong or unknown role.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const READWRITE: &str = "abababababababababababababababababababababababababababababababab";

    fn gatekeeper(superuser: Option<&str>) -> Gatekeeper {
        Gatekeeper::new(Secrets {
            read: READ.parse().unwrap(),
            readwrite: READWRITE.parse().unwrap(),
            pg_read: Password::new("a"),
            pg_readwrite: Password::new("b"),
            pg_superuser: superuser.map(Password::new),
        })
    }

    #[test]
    fn each_secret_opens_its_roles_and_no_other() {
        let gatekeeper = gatekeeper(Some("root password"));
        let opened = |role, presented: &str| {
            gatekeeper
                .admit(Role::from_name(role), presented.as_bytes())
                .map(|credential| credential.id)
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

    #[test]
    fn without_a_superuser_password_an_empty_one_opens_nothing() {
        let gatekeeper = gatekeeper(None);
        assert!(gatekeeper.admit(Some(Role::Superuser), b"").is_none());
    }
}
