//! SCRAM verifiers, the form in which Postgres stores a password:
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
//! [PostgreSQL documentation, `pg_authid`; RFC 5803]
//!
//! Setting a role's password as a verifier keeps the password itself out of the statement, and so
//! out of every log and view that shows statements. The salt is an argument: this module draws no
//! randomness.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{KEY_LEN, Keys, MAX_ITERATIONS, Password};

/// Length of the salt of a new verifier in bytes: PostgreSQL's SCRAM_DEFAULT_SALT_LEN.
pub const SALT_LEN: usize = 16;

/// Number of PBKDF2 iterations of a new verifier, and the minimum for an existing one: PostgreSQL's
/// default and the minimum of RFC 7677. The passwords here are random, so more iterations would
/// only slow down logins.
pub const ITERATIONS: u32 = super::MIN_ITERATIONS;

const PREFIX: &str = "SCRAM-SHA-256$";

/// The verifier of a password. Secret: it allows offline guessing of the password, and
/// impersonation of the server.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; KEY_LEN],
    server_key: [u8; KEY_LEN],
}

impl Verifier {
    /// Derives the verifier of `password` with [`ITERATIONS`] iterations: about 0.4 ms of CPU time.
    #[must_use]
    pub fn new(password: &Password, salt: &[u8; SALT_LEN]) -> Self {
        Self::derive(password, salt, ITERATIONS)
    }

    fn derive(password: &Password, salt: &[u8], iterations: u32) -> Self {
        let keys = Keys::derive(password, salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: keys.stored_key,
            server_key: keys.server_key,
        }
    }

    /// Parses `pg_authid.rolpassword`. Returns `None` for anything else, such as an MD5 hash, and
    /// for more iterations than [`MAX_ITERATIONS`], with which our own logins would fail.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (hashing, keys) = text.strip_prefix(PREFIX)?.split_once('$')?;
        let (iterations, salt) = hashing.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let salt = BASE64_STANDARD.decode(salt).ok()?;
        let iterations = super::parse_iterations(iterations).ok()?;
        (!salt.is_empty()).then_some(Self {
            iterations,
            salt,
            stored_key: parse_key(stored_key)?,
            server_key: parse_key(server_key)?,
        })
    }

    /// Whether this is a verifier of `password` with at least [`ITERATIONS`] iterations. Takes at
    /// most 60 ms of CPU time.
    ///
    /// The keys are compared in constant time.
    #[must_use]
    pub fn matches(&self, password: &Password) -> bool {
        if !(ITERATIONS..=MAX_ITERATIONS).contains(&self.iterations) {
            return false;
        }
        let other = Self::derive(password, &self.salt, self.iterations);
        let stored = self.stored_key.ct_eq(&other.stored_key);
        (stored & self.server_key.ct_eq(&other.server_key)).into()
    }

    /// The text that Postgres accepts in place of a password. It consists of letters, digits and
    /// `-$:+/=`.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let [salt, stored, server] = [&*self.salt, &self.stored_key, &self.server_key]
            .map(|bytes| Zeroizing::new(BASE64_STANDARD.encode(bytes)));
        Zeroizing::new(format!(
            "{PREFIX}{}:{}${}:{}",
            self.iterations, *salt, *stored, *server
        ))
    }
}

/// Redacts the verifier.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(redacted)")
    }
}

fn parse_key(text: &str) -> Option<[u8; KEY_LEN]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verifier of the password `pencil`, made by PostgreSQL 15.
    const PENCIL: &str = "SCRAM-SHA-256$4096:GqwHQLLZDXbtd4FjOGZNwA==$ViVOk/GgR1tEWo8ZTk10WpfkQzUjQex7qFnC1IeV7ts=:kHnuuckEVAW70J9tXoYp1G2EPLM7OFIZIES9u7mfap8=";

    #[test]
    fn a_postgres_verifier_matches_and_round_trips() {
        let verifier = Verifier::parse(PENCIL).unwrap();
        assert!(verifier.matches(&Password::new("pencil")));
        assert!(!verifier.matches(&Password::new("Pencil")));
        assert!(!verifier.matches(&Password::new("")));
        assert_eq!(*verifier.to_text(), PENCIL);
    }

    #[test]
    fn verifiers_of_another_implementation_match() {
        for password in ["pencil", "I\u{ad}X", "\u{7}", "lies\u{a0}mich \u{2168}"] {
            let theirs = postgres_protocol::password::scram_sha_256(password.as_bytes());
            let verifier = Verifier::parse(&theirs).unwrap();
            assert!(verifier.matches(&Password::new(password)));
            assert_eq!(*verifier.to_text(), theirs);
        }
    }

    #[test]
    fn one_wrong_key_is_a_mismatch() {
        let password = Password::new("pencil");
        let good = Verifier::new(&password, &[7; SALT_LEN]);
        assert!(good.matches(&password));
        let mut stored = good.clone();
        stored.stored_key[31] ^= 1;
        let mut server = good.clone();
        server.server_key[0] ^= 1;
        assert!(!stored.matches(&password) && !server.matches(&password));
    }

    #[test]
    fn too_few_iterations_are_a_mismatch() {
        let password = Password::new("pencil");
        let weak = Verifier::derive(&password, &[7; SALT_LEN], ITERATIONS - 1);
        assert!(!weak.matches(&password));
        let strong = Verifier::derive(&password, &[7; SALT_LEN], ITERATIONS + 1);
        let strong = Verifier::parse(&strong.to_text()).unwrap();
        assert!(strong.matches(&password));
    }

    #[test]
    fn other_texts_are_not_verifiers() {
        let key = BASE64_STANDARD.encode([1; KEY_LEN]);
        for text in [
            String::new(),
            "md5f1a6a9b6a1a3b8a3d5f3f0d4c7a9e2b1".to_owned(),
            PENCIL.to_lowercase(),
            PENCIL.replace("4096", "600001"),
            PENCIL.replace("4096", "04096"),
            PENCIL.replace("4096", ""),
            format!("{PREFIX}4096:${key}:{key}"),
            format!("{PREFIX}4096:AAAA${key}"),
            format!("{PREFIX}4096:AAAA${key}:AAAA"),
            format!("{PREFIX}4096:AAAA${key}:{key} "),
        ] {
            assert!(Verifier::parse(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let shown = format!("{:?}", Verifier::parse(PENCIL).unwrap());
        assert_eq!(shown, "Verifier(redacted)");
    }
}
