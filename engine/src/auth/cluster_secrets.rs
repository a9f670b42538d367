//! Authenticates clients: the cluster secrets, the superuser's password and the roles that each
//! of them authorizes.
//!
//! Secrets must be compared in constant time only, and must never be logged.

use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};
use wire::frontend::scram::ScramProof;
use wire::scram::Password;
use wire::scram::server::{SALT_LEN, ServerKeys};
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

/// The salt of all SCRAM keys of this process.
pub(crate) type Salt = [u8; SALT_LEN];

/// Compares secrets with [`AuthSecrets`]. Immutable and shared by all shards.
pub(crate) struct Authenticator {
    /// One salt for all secrets: several may open the role that a client asks for, and one proof
    /// is compared with all of them. It is the same for unknown roles, and for as long as the
    /// process runs, so it reveals neither a role nor a rotation.
    salt: Salt,
    read: SecretSlot,
    readwrite: SecretSlot,
    pg_read: Arc<Credential>,
    pg_readwrite: Arc<Credential>,
    superuser: SuperuserSlot,
}

/// A cluster secret, and during a rotation the previous one, which is still accepted.
#[derive(Clone)]
struct SecretSlot {
    current: Option<Arc<KnownSecret>>,
    previous: Option<Arc<KnownSecret>>,
}

/// A cluster secret, and its SCRAM keys for each spelling.
struct KnownSecret {
    secret: ClusterSecret,
    keys: [ServerKeys; 2],
}

/// The superuser's credential. A closed role has a credential too, so that a comparison takes the
/// same time.
struct SuperuserSlot {
    credential: Arc<Credential>,
    keys: Arc<ServerKeys>,
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

impl KnownSecret {
    /// Takes two key derivations, about a millisecond.
    fn new(secret: ClusterSecret, salt: &Salt) -> Arc<Self> {
        let keys = secret
            .spellings()
            .map(|spelling| ServerKeys::derive(&spelling, salt));
        Arc::new(Self { secret, keys })
    }
}

impl SecretSlot {
    fn new(secret: Option<ClusterSecret>, salt: &Salt) -> Self {
        Self {
            current: secret.map(|secret| KnownSecret::new(secret, salt)),
            previous: None,
        }
    }

    fn known(&self) -> impl Iterator<Item = &KnownSecret> {
        let known = self.current.iter().chain(&self.previous);
        known.map(Arc::as_ref)
    }

    fn matches(&self, presented: &[u8]) -> Choice {
        self.known().fold(Choice::from(0), |matched, known| {
            matched | known.secret.matches(presented)
        })
    }

    fn scram_keys(&self) -> impl Iterator<Item = &ServerKeys> {
        self.known().flat_map(|known| &known.keys)
    }

    fn rotated(&self, next: Option<ClusterSecret>, salt: &Salt) -> (Self, bool) {
        let same = match (&self.current, &next) {
            (Some(current), Some(next)) => current.secret.ct_eq(next).into(),
            (None, None) => true,
            _ => false,
        };
        if same {
            return (self.clone(), false);
        }
        let next = Self {
            previous: self.current.clone(),
            ..Self::new(next, salt)
        };
        (next, true)
    }

    fn without_previous(&self) -> Self {
        Self {
            current: self.current.clone(),
            previous: None,
        }
    }
}

impl Authenticator {
    /// Derives the SCRAM keys, about 0.4 ms of CPU time each: not for a shard. `salt` is random.
    pub(crate) fn new(secrets: AuthSecrets, salt: Salt) -> Self {
        Self {
            salt,
            read: SecretSlot::new(secrets.cluster.read, &salt),
            readwrite: SecretSlot::new(secrets.cluster.readwrite, &salt),
            pg_read: Arc::new(Credential::new(secrets.passwords.read)),
            pg_readwrite: Arc::new(Credential::new(secrets.passwords.readwrite)),
            superuser: SuperuserSlot::new(secrets.passwords.superuser, &salt),
        }
    }

    /// The salt for SCRAM with clients.
    pub(crate) fn salt(&self) -> Salt {
        self.salt
    }

    /// A copy with new secrets, which also accepts the current ones.
    pub(crate) fn rotated(&self, next: AuthSecrets) -> (Self, Rotation) {
        let AuthSecrets { cluster, passwords } = next;
        let (read, new_read) = self.read.rotated(cluster.read, &self.salt);
        let (readwrite, new_readwrite) = self.readwrite.rotated(cluster.readwrite, &self.salt);
        let (pg_read, new_pg_read) = updated_credential(&self.pg_read, passwords.read);
        let (pg_readwrite, new_pg_readwrite) =
            updated_credential(&self.pg_readwrite, passwords.readwrite);
        let (superuser, new_superuser) = self.superuser.updated(passwords.superuser, &self.salt);
        let changed = Rotation {
            secrets: new_read | new_readwrite,
            passwords: new_pg_read | new_pg_readwrite | new_superuser,
        };
        let authenticator = Self {
            salt: self.salt,
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
            salt: self.salt,
            read: self.read.without_previous(),
            readwrite: self.readwrite.without_previous(),
            pg_read: Arc::clone(&self.pg_read),
            pg_readwrite: Arc::clone(&self.pg_readwrite),
            superuser: SuperuserSlot {
                credential: Arc::clone(&self.superuser.credential),
                keys: Arc::clone(&self.superuser.keys),
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
        let authorized = match role {
            Some(Role::Read) => read,
            Some(Role::ReadWrite) => readwrite,
            Some(Role::Superuser) => superuser,
            None => Choice::from(0),
        };
        bool::from(authorized).then(|| self.credential_of(role))
    }

    /// The credential to inject, if the client has proved that it knows a secret that authorizes
    /// `role`. Appends the last message of SCRAM to `out` then, by which we prove the same.
    ///
    /// The proof is compared with all secrets for every role, each in constant time, as in
    /// [`authenticate`](Self::authenticate).
    pub(crate) fn authenticate_scram(
        &self,
        role: Option<Role>,
        proof: &ScramProof,
        out: &mut Vec<u8>,
    ) -> Option<&Arc<Credential>> {
        let opens = |roles: &[Role]| {
            let opens = role.is_some_and(|role| roles.contains(&role));
            Choice::from(u8::from(opens))
        };
        let read = opens(&[Role::Read]);
        let readwrite = opens(&[Role::ReadWrite, Role::Read]);
        let superuser = opens(&[Role::Superuser]) & self.superuser.open;
        let candidates = self.read.scram_keys().map(|keys| (keys, read));
        let candidates =
            candidates.chain(self.readwrite.scram_keys().map(|keys| (keys, readwrite)));
        let candidates = candidates.chain([(&*self.superuser.keys, superuser)]);
        let authorized = proof.verify(candidates, out);
        authorized.then(|| self.credential_of(role))
    }

    /// The credential of a role that was authorized.
    fn credential_of(&self, role: Option<Role>) -> &Arc<Credential> {
        match role {
            Some(Role::ReadWrite) => &self.pg_readwrite,
            Some(Role::Superuser) => &self.superuser.credential,
            // No secret authorizes an unknown role.
            Some(Role::Read) | None => &self.pg_read,
        }
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
    fn new(password: Option<Password>, salt: &Salt) -> Self {
        let open = Choice::from(u8::from(password.is_some()));
        let password = password.unwrap_or_else(|| Password::new(""));
        Self {
            keys: Arc::new(ServerKeys::derive(&password, salt)),
            credential: Arc::new(Credential::new(password)),
            open,
        }
    }

    fn updated(&self, next: Option<Password>, salt: &Salt) -> (Self, bool) {
        let open = Choice::from(u8::from(next.is_some()));
        let next = next.unwrap_or_else(|| Password::new(""));
        let (credential, changed) = updated_credential(&self.credential, next);
        let keys = match changed {
            true => Arc::new(ServerKeys::derive(&credential.password, salt)),
            false => Arc::clone(&self.keys),
        };
        let availability_changed = self.open.unwrap_u8() != open.unwrap_u8();
        let next = Self {
            credential,
            keys,
            open,
        };
        (next, changed || availability_changed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::message::frontend;
    use wire::frontend::scram::{ScramFinalStep, ScramFirstStep, request_scram};
    use wire::frontend::{AwaitStartup, StartupStep};
    use wire::scram::RAW_NONCE_LEN;
    use wire::scram::server::Challenge;
    use wire::startup::ProtocolVersion;

    use super::*;

    const READ: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const READWRITE: &str = "abababababababababababababababababababababababababababababababab";

    const SALT: Salt = [0x5a; SALT_LEN];

    fn authenticator(superuser: Option<&str>) -> Authenticator {
        let mut secrets = secrets(READ, "a");
        secrets.passwords.superuser = superuser.map(Password::new);
        Authenticator::new(secrets, SALT)
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

    /// The proof of a client that knows `secret`, and the client, which expects ours.
    fn prove(authenticator: &Authenticator, secret: &str) -> (ScramProof, ScramSha256) {
        let startup = b"\0\0\0\x10\0\x03\0\0user\0x\0\0";
        let StartupStep::Startup { message, .. } = AwaitStartup::new().advance(startup) else {
            panic!("not a StartupMessage");
        };
        let challenge = Challenge {
            nonce: [7; RAW_NONCE_LEN],
            salt: authenticator.salt(),
            binding: None,
        };
        let (mut out, newest) = (Vec::new(), ProtocolVersion::V3_0);
        let (first, _) = request_scram(&message.to_owned(), newest, challenge, &mut out);
        let mut client = ScramSha256::new(secret.as_bytes(), ChannelBinding::unsupported());
        let mut bytes = BytesMut::new();
        frontend::sasl_initial_response("SCRAM-SHA-256", client.message(), &mut bytes).unwrap();
        out.clear();
        let ScramFirstStep::Challenged { next, .. } = first.advance(&bytes, &mut out) else {
            panic!("not challenged");
        };
        client.update(&out[9..]).unwrap();
        bytes.clear();
        frontend::sasl_response(client.message(), &mut bytes).unwrap();
        match next.advance(&bytes) {
            ScramFinalStep::Proof { proof, .. } => (proof, client),
            other => panic!("{other:?}"),
        }
    }

    /// Whether SCRAM with `secret` opens `role`. If it does, the client accepts our proof too.
    fn scram_opens(authenticator: &Authenticator, role: &str, secret: &str) -> bool {
        let (proof, mut client) = prove(authenticator, secret);
        let mut out = Vec::new();
        let by_scram = authenticator.authenticate_scram(Role::from_name(role), &proof, &mut out);
        let by_password = authenticator.authenticate(Role::from_name(role), secret.as_bytes());
        match (by_scram, by_password) {
            (Some(one), Some(other)) => assert!(Arc::ptr_eq(one, other)),
            (one, other) => assert_eq!(one.is_some(), other.is_some(), "{role} {secret}"),
        }
        assert_eq!(by_scram.is_some(), !out.is_empty());
        if by_scram.is_some() {
            client.finish(&out[9..]).unwrap();
        }
        by_scram.is_some()
    }

    #[test]
    fn scram_authorizes_what_the_password_authorizes() {
        let authenticator = authenticator(Some("root p\u{e4}ssword"));
        let secrets = [READ, READWRITE, "root p\u{e4}ssword", "", "wrong"];
        let matrix = ["teesql_read", "teesql_readwrite", "postgres", "mallory"]
            .map(|role| secrets.map(|secret| scram_opens(&authenticator, role, secret)));
        assert_eq!(
            matrix,
            [
                [true, true, false, false, false],
                [false, true, false, false, false],
                [false, false, true, false, false],
                [false; 5],
            ]
        );
        let upper = READWRITE.to_uppercase();
        assert!(scram_opens(&authenticator, "teesql_readwrite", &upper));
    }

    #[test]
    fn scram_keeps_the_salt_and_the_previous_secrets_during_a_rotation() {
        let other = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd";
        let before = Authenticator::new(secrets(READ, "a"), SALT);
        let (both, _) = before.rotated(secrets(other, "a"));
        assert_eq!(both.salt(), before.salt());
        let opens = |authenticator: &Authenticator, secret| {
            scram_opens(authenticator, "teesql_read", secret)
        };
        assert!(opens(&both, READ) && opens(&both, other) && opens(&both, READWRITE));
        let after = both.without_previous();
        assert_eq!(after.salt(), before.salt());
        assert!(!opens(&after, READ) && opens(&after, other) && opens(&after, READWRITE));
        let mut next = secrets(other, "a");
        next.passwords.superuser = Some(Password::new("new"));
        let (opened, _) = after.rotated(next);
        assert!(scram_opens(&opened, "postgres", "new"));
        assert!(!scram_opens(&after, "postgres", "new"));
    }

    #[test]
    fn an_empty_password_does_not_open_a_closed_superuser_role_by_scram() {
        assert!(!scram_opens(&authenticator(None), "postgres", ""));
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
        let before = Authenticator::new(secrets(READ, "a"), SALT);
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
        let before = Authenticator::new(secrets(READ, "a"), SALT);
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
