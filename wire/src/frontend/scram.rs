//! SCRAM with a client, where we are the server: the PostgreSQL messages around
//! [`scram::server`](crate::scram::server).
//!
//! It exists so that a client can prove that it knows a secret without sending it. As with a
//! password, nothing here depends on the role, and the only response to a wrong proof is
//! [`AUTHENTICATION_FAILED`](crate::error::AUTHENTICATION_FAILED).

use std::fmt;

use subtle::Choice;

use super::{MAX_PASSWORD_MESSAGE, negotiate};
pub use crate::error::FrontendError;
use crate::error::ScramError;
use crate::message::{Cursor, Frame, FrameError, write_c_str, write_tagged};
use crate::scram::server::{AwaitFinal, AwaitFirst, Challenge, ClientProof, ServerKeys};
use crate::startup::{ProtocolVersion, Startup};

/// Codes of Authentication messages. [PostgreSQL 18, protocol message formats]
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// Requests SCRAM: calls [`negotiate`], then appends AuthenticationSASL to `out`. Returns the
/// negotiated version.
///
/// SCRAM-SHA-256-PLUS is offered if the challenge has a channel binding. That must not be the case
/// where the client has no TLS with this server: a driver refuses the offer there.
pub fn request_scram(
    startup: &Startup,
    newest: ProtocolVersion,
    challenge: Challenge,
    out: &mut Vec<u8>,
) -> (AwaitScramFirst, ProtocolVersion) {
    let version = negotiate(startup, newest, out);
    let exchange = AwaitFirst::new(challenge);
    write_authentication(out, SASL, |out| {
        for mechanism in exchange.mechanisms() {
            write_c_str(out, mechanism);
        }
        out.push(0);
    });
    (AwaitScramFirst(exchange), version)
}

/// The state before SASLInitialResponse. Created only by [`request_scram`].
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitScramFirst(AwaitFirst);

/// What to do next with SASLInitialResponse.
#[derive(Debug, PartialEq, Eq)]
pub enum ScramFirstStep {
    /// Read more bytes and append them. Nothing was consumed. Never needs more than
    /// [`MAX_PASSWORD_MESSAGE`] + 1 bytes.
    Read(AwaitScramFirst),
    /// Drop `consumed` bytes, send what was appended to `out`, then read more.
    Challenged {
        /// Length of the message in bytes.
        consumed: usize,
        /// The next state.
        next: AwaitScramFinal,
    },
    /// Send [`FrontendError::response`], and close. The bytes may hold a password: wipe them.
    Refuse(FrontendError),
}

impl AwaitScramFirst {
    /// Processes all bytes read and not yet consumed, and appends AuthenticationSASLContinue to
    /// `out`.
    #[must_use]
    pub fn advance(self, bytes: &[u8], out: &mut Vec<u8>) -> ScramFirstStep {
        let frame = match response_frame(bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) => return ScramFirstStep::Read(self),
            Err(error) => return ScramFirstStep::Refuse(error),
        };
        match self.initial_response(frame.body(), out) {
            Ok(next) => ScramFirstStep::Challenged {
                consumed: frame.wire_len(),
                next,
            },
            Err(error) => ScramFirstStep::Refuse(error),
        }
    }

    fn initial_response(
        self,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<AwaitScramFinal, FrontendError> {
        const MALFORMED: ScramError = ScramError::Malformed("SASLInitialResponse");
        let mut cursor = Cursor::new(body);
        let mechanism = cursor.c_str().ok_or(MALFORMED)?;
        if cursor.is_empty() {
            // A PasswordMessage: a string and nothing after it.
            return Err(FrontendError::PasswordInsteadOfScram);
        }
        let length = cursor.u32().ok_or(MALFORMED)?;
        let message = cursor.rest();
        // -1 stands for no message, which PostgreSQL answers with an empty challenge. No driver
        // sends it.
        if usize::try_from(length).ok() != Some(message.len()) {
            return Err(MALFORMED.into());
        }
        let mut reply = Vec::new();
        let next = self.0.client_first(mechanism, message, &mut reply)?;
        write_authentication(out, SASL_CONTINUE, |out| out.extend_from_slice(&reply));
        Ok(AwaitScramFinal(next))
    }
}

/// The state before SASLResponse with client-final-message.
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitScramFinal(AwaitFinal);

/// What to do next with SASLResponse.
#[derive(Debug, PartialEq, Eq)]
pub enum ScramFinalStep {
    /// Read more bytes and append them. Nothing was consumed. Never needs more than
    /// [`MAX_PASSWORD_MESSAGE`] + 1 bytes.
    Read(AwaitScramFinal),
    /// Drop `consumed` bytes, then compare the proof: [`ScramProof::verify`].
    Proof {
        /// Length of the message in bytes.
        consumed: usize,
        /// The client's proof.
        proof: ScramProof,
    },
    /// Send [`FrontendError::response`], and close.
    Refuse(FrontendError),
}

impl AwaitScramFinal {
    /// Processes all bytes read and not yet consumed.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> ScramFinalStep {
        let frame = match response_frame(bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) => return ScramFinalStep::Read(self),
            Err(error) => return ScramFinalStep::Refuse(error),
        };
        match self.0.client_final(frame.body()) {
            Ok(proof) => ScramFinalStep::Proof {
                consumed: frame.wire_len(),
                proof: ScramProof(proof),
            },
            Err(error) => ScramFinalStep::Refuse(error.into()),
        }
    }
}

/// The proof of a client that it knows a secret, before it is compared.
#[derive(PartialEq, Eq)]
pub struct ScramProof(ClientProof);

/// Redacts the proof.
impl fmt::Debug for ScramProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramProof(redacted)")
    }
}

impl ScramProof {
    /// Compares the proof with the keys of every candidate, and appends AuthenticationSASLFinal to
    /// `out` if one matches whose `Choice` is true. Returns whether one does.
    ///
    /// The time depends on the number of candidates only, about 1 µs each: pass the same ones for
    /// every role, with a `Choice` that says whether the candidate opens it.
    #[must_use]
    pub fn verify<'k>(
        &self,
        candidates: impl IntoIterator<Item = (&'k ServerKeys, Choice)>,
        out: &mut Vec<u8>,
    ) -> bool {
        let server_final = self.0.server_final(candidates);
        if let Some(message) = &server_final {
            write_authentication(out, SASL_FINAL, |out| {
                out.extend_from_slice(message.as_bytes());
            });
        }
        server_final.is_some()
    }
}

/// Reads the message at the start of `bytes`, which must be the client's authentication.
fn response_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, FrontendError> {
    match bytes.first() {
        Some(b'p') => {}
        Some(tag) => return Err(FrontendError::UnexpectedMessage { tag: *tag }),
        None => return Ok(None),
    }
    Frame::read(bytes, MAX_PASSWORD_MESSAGE).map_err(|error| match error {
        FrameError::TooLong { length, .. } => FrontendError::PasswordTooLong { length },
        FrameError::TooShort { .. } => FrontendError::MalformedPassword,
    })
}

fn write_authentication(out: &mut Vec<u8>, code: u32, data: impl FnOnce(&mut Vec<u8>)) {
    write_tagged(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        data(out);
    });
}
