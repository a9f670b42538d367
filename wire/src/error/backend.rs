//! The ways in which the injected login to Postgres fails: a file of its own for its length.
//!
//! It must never hold the injected password or what was derived from it.

use super::{ErrorResponse, SqlState};

/// Why the login to Postgres failed. Postgres, or whoever set it up, is to blame: the client's own
/// secret was right. `Display` is the `<why>` of `pg_auth_inject failed: <why>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Postgres hung up before it was ready. Made by the caller, who sees the connection.
    #[error("early eof")]
    EarlyEof,
    /// The system gave no randomness for a nonce. Made by the caller, who draws it.
    #[error("no randomness for a nonce")]
    NoRandomness,
    /// More SCRAM keys are waiting to be derived than the caller takes. Made by the caller.
    #[error("too many logins at once")]
    Overloaded,
    /// An ErrorResponse before AuthenticationOk.
    #[error("{message} (SQLSTATE {sqlstate})")]
    Refused {
        /// Postgres's own code.
        sqlstate: SqlState,
        /// Postgres's own text: at most [`MAX_REFUSAL_TEXT`](super::MAX_REFUSAL_TEXT) bytes, without
        /// control characters. It may name role and database.
        message: String,
    },
    /// NegotiateProtocolVersion, although no more was asked for than this Postgres was known to speak.
    #[error("the server no longer speaks the protocol version that it spoke")]
    NegotiatedDown,
    /// An authentication method other than trust, cleartext, md5 and SCRAM-SHA-256.
    #[error("the server asks for an authentication method that is not supported ({})", method_name(*.code))]
    UnsupportedAuthMethod {
        /// The code in the Authentication message; 10 is SASL without SCRAM-SHA-256.
        code: u32,
    },
    /// Postgres asks for a password, and none is configured for the role.
    #[error("the server asks for a password, and none is configured for this role")]
    PasswordMissing,
    /// A message that has no place in a login.
    #[error("unexpected message {tag:#04x} from the server")]
    UnexpectedMessage {
        /// The message's tag.
        tag: u8,
    },
    /// A message above its cap.
    #[error("message {tag:#04x} of {length} bytes from the server is too long")]
    MessageTooLong {
        /// The message's tag.
        tag: u8,
        /// The length word, in bytes.
        length: u32,
    },
    /// A message that breaks its format, or stands in the wrong place.
    #[error("malformed message from the server: {0}")]
    Malformed(&'static str),
    /// More notices than a login has reason for.
    #[error("too many notices from the server")]
    TooManyNotices,
    /// A SCRAM iteration count above the cap.
    #[error("the server asks for {iterations} SCRAM iterations, which is too many")]
    ScramIterationsTooMany {
        /// The count that Postgres sent.
        iterations: u32,
    },
    /// The server's SCRAM nonce does not continue the client's.
    #[error("the server's SCRAM nonce does not continue ours")]
    ScramNonceMismatch,
    /// The server does not know the password's keys: something else answers on Postgres's address.
    #[error("the server's SCRAM signature is wrong: it does not know the password")]
    ScramServerSignatureMismatch,
    /// AuthenticationOk in the middle of SCRAM, before the server proved anything.
    #[error("the server ended SCRAM without proving that it knows the password")]
    AuthOkWithoutServerProof,
}

impl BackendError {
    /// The reason code for log and metric: a closed list, unique in this crate.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::EarlyEof => "postgres_early_eof",
            Self::NoRandomness => "no_randomness",
            Self::Overloaded => "overloaded",
            Self::Refused { .. } => "postgres_refused",
            Self::NegotiatedDown => "postgres_negotiated_down",
            Self::UnsupportedAuthMethod { .. } => "postgres_auth_method",
            Self::PasswordMissing => "postgres_password_missing",
            Self::UnexpectedMessage { .. } => "postgres_unexpected_message",
            Self::MessageTooLong { .. } => "postgres_message_too_long",
            Self::Malformed(_) => "postgres_malformed",
            Self::TooManyNotices => "postgres_too_many_notices",
            Self::ScramIterationsTooMany { .. } => "postgres_scram_iterations",
            Self::ScramNonceMismatch => "postgres_scram_nonce",
            Self::ScramServerSignatureMismatch => "postgres_scram_signature",
            Self::AuthOkWithoutServerProof => "postgres_scram_no_proof",
        }
    }

    /// The SQLSTATE for the client.
    ///
    /// Postgres's own where it refused, so that 53300 and 57P03 reach the drivers that retry on them;
    /// but never class 28: the client's own secret was right, and 28P01 would tell it otherwise.
    #[must_use]
    pub fn response_sqlstate(&self) -> SqlState {
        match self {
            Self::Refused { sqlstate, .. } if sqlstate.is_authorization() => {
                SqlState::CONNECTION_REJECTED
            }
            Self::Refused { sqlstate, .. } => *sqlstate,
            Self::NoRandomness => SqlState::INTERNAL_ERROR,
            Self::Overloaded => SqlState::TOO_MANY_CONNECTIONS,
            Self::EarlyEof
            | Self::NegotiatedDown
            | Self::UnsupportedAuthMethod { .. }
            | Self::PasswordMissing
            | Self::UnexpectedMessage { .. }
            | Self::MessageTooLong { .. }
            | Self::Malformed(_)
            | Self::TooManyNotices
            | Self::ScramIterationsTooMany { .. }
            | Self::ScramNonceMismatch
            | Self::ScramServerSignatureMismatch
            | Self::AuthOkWithoutServerProof => SqlState::CONNECTION_FAILURE,
        }
    }

    /// What the client is told: `pg_auth_inject failed: <why>`.
    #[must_use]
    pub fn response(&self) -> ErrorResponse<'static> {
        ErrorResponse::from_string(
            self.response_sqlstate(),
            format!("pg_auth_inject failed: {self}"),
        )
    }
}

/// Names for the codes. [PostgreSQL 18, protocol message formats, Authentication…]
fn method_name(code: u32) -> &'static str {
    match code {
        1 | 2 => "Kerberos",
        4 => "crypt",
        6 => "SCM credentials",
        7 | 8 => "GSSAPI",
        9 => "SSPI",
        10 => "SASL without SCRAM-SHA-256",
        _ => "unknown",
    }
}
