//! The client side of SCRAM-SHA-256 without channel binding. [RFC 5802, RFC 7677]
//!
//! The server side is in [`server`], the form in which Postgres stores a password in [`verifier`].
//!
//! It is separate from the login to Postgres so that the computation can be tested against the
//! RFC's own exchange, and so that the caller can derive keys on another thread and cache them. It
//! must never treat a server as authenticated before its signature was verified, and never draw a
//! nonce itself.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::BackendError;
pub use crate::secret::Password;
pub use verifier::Verifier;

pub mod server;
pub mod verifier;

/// The mechanism without channel binding, the only one that the client side supports.
pub(crate) const MECHANISM: &[u8] = b"SCRAM-SHA-256";

/// Maximum number of PBKDF2 iterations that a server may request: the recommendation of OWASP's
/// password storage cheat sheet for PBKDF2-HMAC-SHA256, and 150 times PostgreSQL's default of
/// 4,096. At 0.1 µs per iteration (measured with SHA extensions: 4,096 iterations in 0.4 ms) that
/// is 60 ms of CPU time, which fits into the login deadline.
pub const MAX_ITERATIONS: u32 = 600_000;

/// Minimum number of PBKDF2 iterations that a server may request, unless
/// [`AuthMethods::Any`](crate::backend::AuthMethods::Any) is allowed. An impostor that asks for few
/// gets a proof from which the password can be guessed cheaply. It is PostgreSQL's default, and the
/// minimum that RFC 7677, section 4, names.
pub const MIN_ITERATIONS: u32 = 4_096;

/// Length of the random part of a client nonce in bytes: libpq's SCRAM_RAW_NONCE_LEN.
pub const RAW_NONCE_LEN: usize = 18;

/// The GS2 header "n,,": no channel binding, no authorization identity.
const GS2_HEADER: &str = "n,,";
/// The GS2 header in Base64, as client-final-message repeats it.
const GS2_HEADER_BASE64: &str = "biws";

const KEY_LEN: usize = 32;

/// The SCRAM keys derived from a password with one salt and one iteration count.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    client_key: [u8; KEY_LEN],
    stored_key: [u8; KEY_LEN],
    server_key: [u8; KEY_LEN],
}

impl Keys {
    /// Derives the keys with `iterations` iterations of PBKDF2-HMAC-SHA256, about 0.1 µs of CPU
    /// time each.
    ///
    /// The password is prepared with SASLprep. As in Postgres, a password that is not UTF-8 or
    /// contains prohibited characters is used as it is. [PostgreSQL `fe-auth-scram.c`,
    /// `saslprep.c`]
    #[must_use]
    pub fn derive(password: &Password, salt: &[u8], iterations: u32) -> Self {
        let prepared = saslprep(password.as_bytes());
        let mut salted = Zeroizing::new([0; KEY_LEN]);
        pbkdf2::pbkdf2_hmac::<Sha256>(&prepared, salt, iterations.max(1), salted.as_mut());
        let client_key = hmac(&salted, b"Client Key");
        Self {
            client_key,
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac(&salted, b"Server Key"),
        }
    }
}

/// Redacts the keys.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(redacted)")
    }
}

fn saslprep(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .filter(|text| !text.is_empty());
    Zeroizing::new(match prepared {
        Some(text) => text.into_owned().into_bytes(),
        None => password.to_vec(),
    })
}

/// Computes HMAC-SHA-256.
pub(crate) fn hmac(key: &[u8; KEY_LEN], message: &[u8]) -> [u8; KEY_LEN] {
    // HMAC pads a short key with zeros to the block size. With a padded key the constructor is
    // infallible.
    let mut block = Zeroizing::new([0; 64]);
    for (slot, byte) in block.iter_mut().zip(key) {
        *slot = *byte;
    }
    let mut mac = <Hmac<Sha256> as Mac>::new((&*block).into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// The state after client-first-message was sent.
#[derive(PartialEq, Eq)]
pub(crate) struct FirstSent {
    client_first_bare: String,
    nonce: String,
}

/// The state after server-first-message was read, before the keys are derived.
#[derive(PartialEq, Eq)]
pub(crate) struct Challenge {
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

/// The parameters of the key derivation, from server-first-message.
pub(crate) struct HashParams {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
}

/// The state after client-final-message was sent, before the server has proved itself.
#[derive(PartialEq, Eq)]
pub(crate) struct ProofSent {
    server_signature: [u8; KEY_LEN],
}

impl FirstSent {
    /// Starts the exchange. The user name is empty, as in libpq: Postgres uses the one of the
    /// StartupMessage.
    pub(crate) fn new(nonce: [u8; RAW_NONCE_LEN]) -> Self {
        Self::with_user("", BASE64_STANDARD.encode(nonce))
    }

    fn with_user(user: &str, nonce: String) -> Self {
        let client_first_bare = format!("n={user},r={nonce}");
        Self {
            client_first_bare,
            nonce,
        }
    }

    /// Returns client-first-message.
    pub(crate) fn message(&self) -> String {
        format!("{GS2_HEADER}{}", self.client_first_bare)
    }

    /// Parses server-first-message.
    pub(crate) fn challenge(
        self,
        server_first: &[u8],
    ) -> Result<(HashParams, Challenge), BackendError> {
        let message = ServerFirst::parse(server_first)?;
        let fresh = message.nonce.strip_prefix(self.nonce.as_str());
        if fresh.is_none_or(str::is_empty) || !message.nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BackendError::ScramNonceMismatch);
        }
        let params = HashParams {
            salt: message.salt,
            iterations: message.iterations,
        };
        let challenge = Challenge {
            client_first_bare: self.client_first_bare,
            nonce: message.nonce.to_owned(),
            server_first: message.text.to_owned(),
        };
        Ok((params, challenge))
    }
}

/// A server-first-message. Its nonce may be that of another exchange.
pub(crate) struct ServerFirst<'a> {
    text: &'a str,
    nonce: &'a str,
    /// Never empty.
    salt: Vec<u8>,
    /// 1 to [`MAX_ITERATIONS`].
    pub(crate) iterations: u32,
}

impl<'a> ServerFirst<'a> {
    /// Parses the whole message. [RFC 5802, section 7: server-first-message]
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, BackendError> {
        const MALFORMED: BackendError = BackendError::Malformed("SCRAM server-first-message");
        let text = std::str::from_utf8(message).map_err(|_| MALFORMED)?;
        // A mandatory extension ("m=") comes first and fails here, as RFC 5802 requires. Optional
        // extensions come last and are ignored.
        let mut attributes = text.split(',');
        let nonce = attribute(attributes.next(), "r=").ok_or(MALFORMED)?;
        let salt = attribute(attributes.next(), "s=").ok_or(MALFORMED)?;
        let iterations = attribute(attributes.next(), "i=").ok_or(MALFORMED)?;
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| MALFORMED)?;
        if salt.is_empty() {
            return Err(MALFORMED);
        }
        Ok(Self {
            text,
            nonce,
            salt,
            iterations: parse_iterations(iterations)?,
        })
    }
}

fn attribute<'a>(part: Option<&'a str>, name: &str) -> Option<&'a str> {
    part.and_then(|part| part.strip_prefix(name))
}

/// Parses a positive number without sign or leading zero. [RFC 5802, section 7: posit-number]
fn parse_iterations(text: &str) -> Result<u32, BackendError> {
    const MALFORMED: BackendError = BackendError::Malformed("SCRAM iteration count");
    if !text.bytes().all(|b| b.is_ascii_digit()) || text.is_empty() || text.starts_with('0') {
        return Err(MALFORMED);
    }
    // Only digits are left, so a parse error is an overflow: too many.
    let iterations = text.parse().unwrap_or(u32::MAX);
    if iterations > MAX_ITERATIONS {
        return Err(BackendError::ScramIterationsTooMany { iterations });
    }
    Ok(iterations)
}

impl Challenge {
    /// Returns client-final-message, and the state that knows the expected server signature.
    pub(crate) fn client_final(self, keys: &Keys) -> (String, ProofSent) {
        let without_proof = format!("c={GS2_HEADER_BASE64},r={}", self.nonce);
        let auth_message = format!(
            "{},{},{without_proof}",
            self.client_first_bare, self.server_first
        );
        let mut proof = hmac(&keys.stored_key, auth_message.as_bytes());
        for (byte, key) in proof.iter_mut().zip(&keys.client_key) {
            *byte ^= key;
        }
        let message = format!("{without_proof},p={}", BASE64_STANDARD.encode(proof));
        let server_signature = hmac(&keys.server_key, auth_message.as_bytes());
        (message, ProofSent { server_signature })
    }
}

impl ProofSent {
    /// Verifies server-final-message, with which the server proves that it knows the keys.
    pub(crate) fn verify(self, server_final: &[u8]) -> Result<(), BackendError> {
        const MALFORMED: BackendError = BackendError::Malformed("SCRAM server-final-message");
        let text = std::str::from_utf8(server_final).map_err(|_| MALFORMED)?;
        let signature = attribute(text.split(',').next(), "v=").ok_or(MALFORMED)?;
        let signature = BASE64_STANDARD.decode(signature).map_err(|_| MALFORMED)?;
        if signature.ct_eq(&self.server_signature).into() {
            Ok(())
        } else {
            Err(BackendError::ScramServerSignatureMismatch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange in RFC 7677, section 3.
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn rfc_exchange() -> (String, ProofSent) {
        let first = FirstSent::with_user("user", "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(first.message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (params, challenge) = first.challenge(SERVER_FIRST.as_bytes()).unwrap();
        assert_eq!((params.salt.len(), params.iterations), (16, 4_096));
        let password = Password::new("pencil");
        challenge.client_final(&Keys::derive(&password, &params.salt, params.iterations))
    }

    #[test]
    fn reproduces_the_exchange_of_rfc_7677() {
        let (client_final, proof) = rfc_exchange();
        assert_eq!(
            client_final,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let server_final = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proof.verify(server_final), Ok(()));
    }

    #[test]
    fn wrong_server_signatures_are_refused() {
        for wrong in [
            "v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95A==",
            "v=",
        ] {
            let verified = rfc_exchange().1.verify(wrong.as_bytes());
            assert_eq!(verified, Err(BackendError::ScramServerSignatureMismatch));
        }
    }

    #[test]
    fn a_nonce_is_24_characters_of_base64() {
        let first = FirstSent::new([0xff; RAW_NONCE_LEN]);
        assert_eq!(first.message(), "n,,n=,r=////////////////////////");
    }

    #[test]
    fn saslprep_matches_postgres() {
        let prepared = |text: &str| saslprep(text.as_bytes()).to_vec();
        // RFC 4013, section 3.
        assert_eq!(prepared("I\u{ad}X"), b"IX");
        assert_eq!(prepared("user"), b"user");
        assert_eq!(prepared("USER"), b"USER");
        assert_eq!(prepared("\u{aa}"), b"a");
        assert_eq!(prepared("\u{2168}"), b"IX");
        // Prohibited, bidirectional violation, empty after mapping, not UTF-8: unchanged.
        assert_eq!(prepared("\u{7}"), b"\x07");
        assert_eq!(prepared("\u{627}1"), "\u{627}1".as_bytes());
        assert_eq!(prepared("\u{ad}"), "\u{ad}".as_bytes());
        assert_eq!(saslprep(b"\xff").to_vec(), b"\xff");
    }
}
