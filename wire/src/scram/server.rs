//! The server side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS for an account that several passwords
//! open. [RFC 5802, RFC 7677, RFC 5929]
//!
//! It exists so that a secret never crosses the wire: the client proves that it knows the secret,
//! and the server proves the same. The computation and the message syntax are here; the PostgreSQL
//! messages around them are in [`frontend`](crate::frontend). The behaviour is that of PostgreSQL
//! 18's `auth-scram.c`, except that one exchange is compared with all keys that might fit.
//!
//! Nothing here may depend on whether an account exists or a proof is right before
//! [`ScramProof::verify`](crate::frontend::scram::ScramProof::verify), and that must take the same
//! time for every outcome. A nonce is an argument. SASLprep is applied when keys are derived, as on
//! the client's side; for secrets of ASCII characters, such as hex, it changes nothing.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub use super::verifier::{ITERATIONS, SALT_LEN};
use super::{KEY_LEN, Keys, MECHANISM, Password, RAW_NONCE_LEN, hmac};
pub use crate::error::ScramError;

/// The mechanism with channel binding.
pub(crate) const MECHANISM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// The only channel binding type that PostgreSQL and its drivers know. [RFC 5929, section 4]
const BINDING_TYPE: &[u8] = b"tls-server-end-point";

/// Maximum length of the hash of a certificate in bytes: SHA-512.
const MAX_BINDING_LEN: usize = 64;

/// The channel binding `tls-server-end-point`: the hash of the server's certificate. It is public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelBinding {
    hash: [u8; MAX_BINDING_LEN],
    len: usize,
}

impl ChannelBinding {
    /// Takes the hash of the server's certificate in DER, made with the hash function of the
    /// certificate's signature algorithm, or with SHA-256 in place of MD5 and SHA-1. [RFC 5929,
    /// section 4.1]
    ///
    /// Returns `None` for an empty hash, and for one longer than SHA-512's.
    #[must_use]
    pub fn new(certificate_hash: &[u8]) -> Option<Self> {
        let len = certificate_hash.len();
        let mut hash = [0; MAX_BINDING_LEN];
        hash.get_mut(..len)?.copy_from_slice(certificate_hash);
        (len > 0).then_some(Self { hash, len })
    }

    fn as_bytes(&self) -> &[u8] {
        self.hash.get(..self.len).unwrap_or_default()
    }
}

/// The keys with which a server verifies one password. Secret: they allow offline guessing of the
/// password, and impersonation of the server.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ServerKeys {
    stored_key: [u8; KEY_LEN],
    server_key: [u8; KEY_LEN],
}

impl ServerKeys {
    /// Derives the keys with [`ITERATIONS`] iterations: about 0.4 ms of CPU time.
    #[must_use]
    pub fn derive(password: &Password, salt: &[u8; SALT_LEN]) -> Self {
        let keys = Keys::derive(password, salt, ITERATIONS);
        Self {
            stored_key: keys.stored_key,
            server_key: keys.server_key,
        }
    }
}

/// Redacts the keys.
impl fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKeys(redacted)")
    }
}

/// What the server contributes to an exchange. The same for every role, so that nothing
/// distinguishes a role that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Fresh randomness.
    pub nonce: [u8; RAW_NONCE_LEN],
    /// The salt of all [`ServerKeys`] with which the proof will be compared.
    pub salt: [u8; SALT_LEN],
    /// The channel binding, if SCRAM-SHA-256-PLUS is offered.
    pub binding: Option<ChannelBinding>,
}

/// The state before client-first-message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AwaitFirst(Challenge);

/// The state after server-first-message was sent.
#[derive(PartialEq, Eq)]
pub(crate) struct AwaitFinal {
    /// client-first-message-bare, a comma and server-first-message.
    messages: Vec<u8>,
    /// The attribute `c` that client-final-message must have.
    channel_binding: String,
    /// Whether the mechanism is SCRAM-SHA-256-PLUS.
    plus: bool,
    nonce: Vec<u8>,
}

/// The proof of a client, before it is compared.
#[derive(PartialEq, Eq)]
pub struct ClientProof {
    auth_message: Vec<u8>,
    proof: [u8; KEY_LEN],
}

/// The parts of client-first-message.
struct ClientFirst<'a> {
    gs2_header: &'a [u8],
    bare: &'a [u8],
    nonce: &'a [u8],
}

impl AwaitFirst {
    pub(crate) fn new(challenge: Challenge) -> Self {
        Self(challenge)
    }

    /// The mechanisms to offer, the preferred one first, as PostgreSQL does.
    pub(crate) fn mechanisms(&self) -> &'static [&'static [u8]] {
        match self.0.binding {
            Some(_) => &[MECHANISM_PLUS, MECHANISM],
            None => &[MECHANISM],
        }
    }

    /// Parses client-first-message, and appends server-first-message to `out`.
    ///
    /// `mechanism` is the one that the client selected.
    pub(crate) fn client_first(
        self,
        mechanism: &[u8],
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<AwaitFinal, ScramError> {
        let nonce = BASE64_STANDARD.encode(self.0.nonce);
        self.client_first_with(mechanism, message, &nonce, out)
    }

    /// The same with this text as the server's part of the nonce.
    fn client_first_with(
        self,
        mechanism: &[u8],
        message: &[u8],
        server_nonce: &str,
        out: &mut Vec<u8>,
    ) -> Result<AwaitFinal, ScramError> {
        let Self(challenge) = self;
        let plus = match (mechanism, challenge.binding) {
            (MECHANISM, _) => false,
            (MECHANISM_PLUS, Some(_)) => true,
            _ => return Err(ScramError::Mechanism),
        };
        let first = ClientFirst::parse(message, plus, challenge.binding.is_some())?;
        let mut nonce = first.nonce.to_vec();
        nonce.extend_from_slice(server_nonce.as_bytes());

        let mut server_first = b"r=".to_vec();
        server_first.extend_from_slice(&nonce);
        let salt = BASE64_STANDARD.encode(challenge.salt);
        server_first.extend_from_slice(format!(",s={salt},i={ITERATIONS}").as_bytes());
        out.extend_from_slice(&server_first);

        let mut binding = first.gs2_header.to_vec();
        if let Some(data) = challenge.binding.filter(|_| plus) {
            binding.extend_from_slice(data.as_bytes());
        }
        let mut messages = first.bare.to_vec();
        messages.push(b',');
        messages.extend_from_slice(&server_first);
        Ok(AwaitFinal {
            messages,
            channel_binding: BASE64_STANDARD.encode(binding),
            plus,
            nonce,
        })
    }
}

impl<'a> ClientFirst<'a> {
    /// Parses client-first-message. `offered` is whether SCRAM-SHA-256-PLUS was offered.
    /// [RFC 5802, section 7; PostgreSQL `auth-scram.c`, read_client_first_message]
    fn parse(message: &'a [u8], plus: bool, offered: bool) -> Result<Self, ScramError> {
        if message.contains(&0) {
            return Err(ScramError::Malformed("a NUL"));
        }
        let missing = ScramError::Malformed("no GS2 header");
        let (flag, rest) = split_at_comma(message).ok_or(missing)?;
        match (flag, plus) {
            (b"n" | b"y", true) => {
                let why = "SCRAM-SHA-256-PLUS without channel binding";
                return Err(ScramError::Malformed(why));
            }
            (b"n", false) => {}
            // The client supports channel binding and believes that the server does not: an
            // attacker has removed the offer.
            (b"y", false) if offered => return Err(ScramError::Downgrade),
            (b"y", false) => {}
            (flag, plus) => match (flag.strip_prefix(b"p="), plus) {
                (None, _) => return Err(ScramError::Malformed("channel binding flag")),
                (Some(_), false) => {
                    let why = "SCRAM-SHA-256 with channel binding";
                    return Err(ScramError::Malformed(why));
                }
                (Some(BINDING_TYPE), true) => {}
                (Some(_), true) => return Err(ScramError::BindingType),
            },
        }
        let (identity, bare) = split_at_comma(rest).ok_or(missing)?;
        if !identity.is_empty() {
            // The role is that of the StartupMessage.
            return Err(ScramError::Malformed("an authorization identity"));
        }
        let header_len = message.len().saturating_sub(bare.len());
        Ok(Self {
            gs2_header: message.get(..header_len).unwrap_or_default(),
            bare,
            nonce: parse_bare(bare)?,
        })
    }
}

/// Returns the nonce of client-first-message-bare. The user name is ignored, as in PostgreSQL: the
/// role is that of the StartupMessage.
fn parse_bare(bare: &[u8]) -> Result<&[u8], ScramError> {
    let mut attributes = bare.split(|byte| *byte == b',');
    let first = attributes.next().unwrap_or_default();
    if first.starts_with(b"m=") {
        return Err(ScramError::Malformed("a mandatory extension"));
    }
    if !first.starts_with(b"n=") {
        return Err(ScramError::Malformed("no user name"));
    }
    let nonce = attributes.next().and_then(|part| part.strip_prefix(b"r="));
    let nonce = nonce.ok_or(ScramError::Malformed("no nonce"))?;
    if nonce.is_empty() || !nonce.iter().all(u8::is_ascii_graphic) {
        return Err(ScramError::Malformed("nonce"));
    }
    check_extensions(attributes)?;
    Ok(nonce)
}

/// Optional extensions are ignored, but must be attributes.
fn check_extensions<'a>(attributes: impl Iterator<Item = &'a [u8]>) -> Result<(), ScramError> {
    for attribute in attributes {
        match attribute {
            [name, b'=', ..] if name.is_ascii_alphabetic() => {}
            _ => return Err(ScramError::Malformed("attribute")),
        }
    }
    Ok(())
}

fn split_at_comma(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == b',')?;
    let (before, rest) = text.split_at_checked(at)?;
    Some((before, rest.get(1..)?))
}

impl AwaitFinal {
    /// Parses client-final-message.
    /// [RFC 5802, section 7; PostgreSQL `auth-scram.c`, read_client_final_message]
    pub(crate) fn client_final(self, message: &[u8]) -> Result<ClientProof, ScramError> {
        if message.contains(&0) {
            return Err(ScramError::Malformed("a NUL"));
        }
        let proof_missing = ScramError::Malformed("no proof");
        let at = message.iter().rposition(|byte| *byte == b',');
        let (without_proof, proof) = at
            .and_then(|at| message.split_at_checked(at))
            .ok_or(proof_missing)?;
        let proof = proof.strip_prefix(b",p=").ok_or(proof_missing)?;

        let mut attributes = without_proof.split(|byte| *byte == b',');
        let binding = attributes.next().and_then(|part| part.strip_prefix(b"c="));
        let binding = binding.ok_or(ScramError::Malformed("no channel binding"))?;
        if binding != self.channel_binding.as_bytes() {
            return Err(match self.plus {
                true => ScramError::BindingMismatch,
                false => ScramError::Malformed("channel binding"),
            });
        }
        let nonce = attributes.next().and_then(|part| part.strip_prefix(b"r="));
        if nonce.ok_or(ScramError::Malformed("no nonce"))? != self.nonce {
            return Err(ScramError::NonceMismatch);
        }
        check_extensions(attributes)?;
        let proof = BASE64_STANDARD.decode(proof).ok();
        let proof = proof.and_then(|proof| proof.try_into().ok());
        let mut auth_message = self.messages;
        auth_message.push(b',');
        auth_message.extend_from_slice(without_proof);
        Ok(ClientProof {
            auth_message,
            proof: proof.ok_or(ScramError::Malformed("proof"))?,
        })
    }
}

/// Redacts the nonce, which identifies the exchange.
impl fmt::Debug for AwaitFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwaitFinal")
    }
}

/// Redacts the proof.
impl fmt::Debug for ClientProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientProof(redacted)")
    }
}

impl ClientProof {
    /// Compares the proof with the keys of every candidate. If one matches whose `Choice` is true,
    /// returns server-final-message, which proves to the client that the server knows the same
    /// password.
    ///
    /// All candidates are compared, each in constant time, and a server signature is computed in
    /// any case. So the time depends on the number of candidates only: pass the same ones for
    /// every role, with a `Choice` that says whether the candidate opens it.
    pub(crate) fn server_final<'k>(
        &self,
        candidates: impl IntoIterator<Item = (&'k ServerKeys, Choice)>,
    ) -> Option<String> {
        let mut matched = Choice::from(0);
        let mut server_key = Zeroizing::new([0; KEY_LEN]);
        for (keys, opens) in candidates {
            let found = self.matches(keys) & opens;
            for (slot, byte) in server_key.iter_mut().zip(&keys.server_key) {
                slot.conditional_assign(byte, found);
            }
            matched |= found;
        }
        let signature = hmac(&server_key, &self.auth_message);
        let message = format!("v={}", BASE64_STANDARD.encode(signature));
        bool::from(matched).then_some(message)
    }

    /// Whether the hash of the client key in the proof is the stored key. [RFC 5802, section 3]
    fn matches(&self, keys: &ServerKeys) -> Choice {
        let mut client_key = Zeroizing::new(hmac(&keys.stored_key, &self.auth_message));
        for (byte, proof) in client_key.iter_mut().zip(&self.proof) {
            *byte ^= proof;
        }
        let hash = Zeroizing::new(<[u8; KEY_LEN]>::from(Sha256::digest(*client_key)));
        hash.ct_eq(&keys.stored_key)
    }
}

#[cfg(test)]
mod tests;
