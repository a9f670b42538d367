//! Errors of the injected login to Postgres.
//!
//! They must never hold the injected password or anything derived from it.

use super::{ErrorResponse, SqlState};

/// Why the login to Postgres failed. Postgres or its configuration is at fault: the client's own
/// secret was right. `Display` is the `<why>` of `pg_auth_inject failed: <why>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Postgres closed the connection before it was ready. Created by the caller, which owns the
    /// connection.
    #[error("early eof")]
    EarlyEof,
    /// The system provided no randomness for a nonce. Created by the caller, which draws the nonce.
    #[error("the system provided no randomness for a nonce")]
    NoRandomness,
    /// The caller's queue of SCRAM key derivations is full. Created by the caller.
    #[error("too many concurrent logins")]
    Overloaded,
    /// The process that listens on the Unix socket belongs to a user that the configuration does
    /// not allow. Created by the caller, which owns the connection.
    #[error("the process that listens on the Unix socket runs as {}, which is not a user that Postgres may run as", listener(.uid))]
    WrongListener {
        /// Its user id; `None` if the system does not say.
        uid: Option<u32>,
    },
    /// An ErrorResponse before AuthenticationOk.
    #[error("{message} (SQLSTATE {sqlstate})")]
    Refused {
        /// Postgres's own code.
        sqlstate: SqlState,
        /// Postgres's own text: at most [`MAX_REFUSAL_TEXT`](super::MAX_REFUSAL_TEXT) bytes,
        /// without control characters. It may contain role and database.
        message: String,
    },
    /// NegotiateProtocolVersion, although the requested version was one that this Postgres
    /// supported when it was last probed.
    #[error("the server no longer supports the protocol version that it supported before")]
    NegotiatedDown,
    /// An authentication method other than trust, cleartext, md5 and SCRAM-SHA-256.
    #[error("the server asks for an authentication method that is not supported ({})", method_name(*.code))]
    UnsupportedAuthMethod {
        /// The code in the Authentication message; 10 is SASL without SCRAM-SHA-256.
        code: u32,
    },
    /// An authentication method that the configuration does not allow, because it does not prove
    /// that the server is Postgres.
    #[error("the server asks for {method} instead of SCRAM-SHA-256")]
    NotScram {
        /// What it asks for.
        method: &'static str,
    },
    /// Postgres requests a password, but none is configured for the role.
    #[error("the server requests a password, but none is configured for this role")]
    PasswordMissing,
    /// A message that is not legal during a login.
    #[error("unexpected message {tag:#04x} from the server")]
    UnexpectedMessage {
        /// The message's tag.
        tag: u8,
    },
    /// A message longer than its cap.
    #[error("message {tag:#04x} of {length} bytes from the server is too long")]
    MessageTooLong {
        /// The message's tag.
        tag: u8,
        /// The length word, in bytes.
        length: u32,
    },
    /// A message that violates its format or arrives out of order.
    #[error("malformed message from the server: {0}")]
    Malformed(&'static str),
    /// More notices than the cap on those before AuthenticationOk.
    #[error("too many notices from the server")]
    TooManyNotices,
    /// A SCRAM iteration count above the cap.
    #[error("the server asks for {iterations} SCRAM iterations, which is too many")]
    ScramIterationsTooMany {
        /// The count that Postgres sent.
        iterations: u32,
    },
    /// A SCRAM iteration count below the minimum.
    #[error("the server asks for {iterations} SCRAM iterations, which is too few")]
    ScramIterationsTooFew {
        /// The count that Postgres sent.
        iterations: u32,
    },
    /// The server's SCRAM nonce does not continue the client's.
    #[error("the server's SCRAM nonce does not continue ours")]
    ScramNonceMismatch,
    /// The server does not know the keys of the password: Postgres's address belongs to another
    /// server.
    #[error("the server's SCRAM signature is wrong: it does not know the password")]
    ScramServerSignatureMismatch,
    /// AuthenticationOk in the middle of SCRAM, before the server proved that it knows the
    /// password.
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
            Self::WrongListener { .. } => "postgres_wrong_listener",
            Self::Refused { .. } => "postgres_refused",
            Self::NegotiatedDown => "postgres_negotiated_down",
            Self::UnsupportedAuthMethod { .. } => "postgres_auth_method",
            Self::NotScram { .. } => "postgres_not_scram",
            Self::PasswordMissing => "postgres_password_missing",
            Self::UnexpectedMessage { .. } => "postgres_unexpected_message",
            Self::MessageTooLong { .. } => "postgres_message_too_long",
            Self::Malformed(_) => "postgres_malformed",
            Self::TooManyNotices => "postgres_too_many_notices",
            Self::ScramIterationsTooMany { .. } => "postgres_scram_iterations",
            Self::ScramIterationsTooFew { .. } => "postgres_scram_few_iterations",
            Self::ScramNonceMismatch => "postgres_scram_nonce",
            Self::ScramServerSignatureMismatch => "postgres_scram_signature",
            Self::AuthOkWithoutServerProof => "postgres_scram_no_proof",
        }
    }

    /// The SQLSTATE for the client: 57P03 (cannot connect now) for a fault of this host, on which libpq tries
    /// its next one.
    ///
    /// This is Postgres's own code where it refused, so that 53300 and 57P03 reach the drivers that
    /// retry on them; but never one of class 28, which would wrongly blame the client's own secret.
    #[must_use]
    pub fn response_sqlstate(&self) -> SqlState {
        match self {
            Self::Refused { sqlstate, .. } if sqlstate.is_authorization() => {
                SqlState::CONNECTION_REJECTED
            }
            Self::Refused { sqlstate, .. } => *sqlstate,
            Self::NoRandomness => SqlState::INTERNAL_ERROR,
            Self::Overloaded
            | Self::EarlyEof
            | Self::WrongListener { .. }
            | Self::NegotiatedDown
            | Self::UnsupportedAuthMethod { .. }
            | Self::NotScram { .. }
            | Self::PasswordMissing
            | Self::UnexpectedMessage { .. }
            | Self::MessageTooLong { .. }
            | Self::Malformed(_)
            | Self::TooManyNotices
            | Self::ScramIterationsTooMany { .. }
            | Self::ScramIterationsTooFew { .. }
            | Self::ScramNonceMismatch
            | Self::ScramServerSignatureMismatch
            | Self::AuthOkWithoutServerProof => SqlState::CANNOT_CONNECT_NOW,
        }
    }

    /// The response to the client: `pg_auth_inject failed: <why>`.
    #[must_use]
    pub fn response(&self) -> ErrorResponse<'static> {
        ErrorResponse::from_string(
            self.response_sqlstate(),
            format!("pg_auth_inject failed: {self}"),
        )
    }
}

/// A user id as text.
fn listener(uid: &Option<u32>) -> String {
    match uid {
        Some(uid) => format!("user id {uid}"),
        None => "an unknown user".to_owned(),
    }
}

/// The name of an authentication method. [PostgreSQL 18, protocol message formats, Authentication…]
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
