//! All errors of the crate, and the ErrorResponse that a client gets for each.
//!
//! It exists so that the log's reason code, the metric's label and the client's text are total
//! functions of one value, each a single `match` without a wildcard. An error must never hold a
//! secret, a password or a start-up parameter. The only text of a peer in it is Postgres's own,
//! truncated and without control characters.

use std::borrow::Cow;
use std::fmt;

use crate::message::{write_c_str, write_tagged};
use crate::version::ProtocolVersion;

/// Maximum length in bytes of one text field in an ErrorResponse of this crate: enough for
/// Postgres's own text ([`MAX_REFUSAL_TEXT`]) with a prefix.
pub const MAX_ERROR_TEXT: usize = 1_024;

/// Maximum length in bytes that is kept of the text with which Postgres refused a login. Its
/// longest login texts are below 300 bytes; the rest is headroom for translations.
pub const MAX_REFUSAL_TEXT: usize = 512;

/// An SQLSTATE: a five-character error code. [PostgreSQL 18 documentation, appendix A]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 08001, the client cannot reach the server.
    pub const UNABLE_TO_CONNECT: Self = Self(*b"08001");
    /// 08004, the server rejected the establishment of the connection.
    pub const CONNECTION_REJECTED: Self = Self(*b"08004");
    /// 08006, connection failure.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 08P01, protocol violation.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 0A000, feature not supported.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 28000, invalid authorization specification.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 28P01, invalid password.
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// 53300, too many connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 57014, query canceled: what Postgres sends when authentication times out.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// 57P01, admin shutdown.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P03, cannot connect now.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// 57P05, idle session timeout.
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// XX000, internal error.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Parses five digits or upper-case letters; `None` for anything else.
    #[must_use]
    pub fn new(code: &[u8]) -> Option<Self> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter()
            .all(|c| c.is_ascii_digit() || c.is_ascii_uppercase())
            .then_some(Self(code))
    }

    /// The five characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Always ASCII: `new` checks it.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// Whether the code is of class 28, invalid authorization specification.
    #[must_use]
    pub fn is_authorization(&self) -> bool {
        self.0.starts_with(b"28")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An ErrorResponse of severity FATAL: the last message on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse<'a> {
    /// Field `C`.
    pub sqlstate: SqlState,
    /// Field `M`. At most [`MAX_ERROR_TEXT`] bytes of it are sent.
    pub message: Cow<'a, str>,
    /// Field `H`, if any. At most [`MAX_ERROR_TEXT`] bytes of it are sent.
    pub hint: Option<&'a str>,
}

/// The response to a wrong secret, a wrong role and an unknown role: always the same bytes.
pub const AUTHENTICATION_FAILED: ErrorResponse<'static> = ErrorResponse::fatal(
    SqlState::INVALID_PASSWORD,
    "authentication_failed: password authentication failed",
);

impl<'a> ErrorResponse<'a> {
    /// Creates a response with this text and no hint.
    #[must_use]
    pub const fn fatal(sqlstate: SqlState, message: &'a str) -> Self {
        Self {
            sqlstate,
            message: Cow::Borrowed(message),
            hint: None,
        }
    }

    /// Creates a response with an owned text and no hint.
    pub(crate) fn from_string(sqlstate: SqlState, message: String) -> Self {
        Self {
            sqlstate,
            message: Cow::Owned(message),
            hint: None,
        }
    }

    /// The same, with this hint.
    #[must_use]
    pub fn with_hint(self, hint: Option<&'a str>) -> Self {
        Self { hint, ..self }
    }

    /// Appends the message to `out`: fields S, V, C, M, and H if there is a hint.
    ///
    /// A NUL in a text becomes a question mark, as it would end the field.
    pub fn encode(&self, out: &mut Vec<u8>) {
        write_tagged(out, b'E', |out| {
            write_field(out, b'S', "FATAL");
            write_field(out, b'V', "FATAL");
            write_field(out, b'C', self.sqlstate.as_str());
            write_field(out, b'M', &self.message);
            if let Some(hint) = self.hint {
                write_field(out, b'H', hint);
            }
            out.push(0);
        });
    }
}

fn write_field(out: &mut Vec<u8>, code: u8, text: &str) {
    out.push(code);
    let text = truncate(text, MAX_ERROR_TEXT);
    if text.contains('\0') {
        write_c_str(out, text.replace('\0', "?").as_bytes());
    } else {
        write_c_str(out, text.as_bytes());
    }
}

/// The longest prefix of `text` that has at most `cap` bytes and ends at a character boundary.
pub(crate) fn truncate(text: &str, cap: usize) -> &str {
    let mut end = cap.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

/// An error in the first bytes on the port. The client is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// Bytes that no known opening starts with.
    #[error("unrecognized first bytes")]
    Garbage,
    /// Something other than TLS after SSLRequest was accepted.
    #[error("expected a TLS ClientHello after SSLRequest")]
    NotTls,
    /// Bytes between a request for encryption and the reply to it: CVE-2021-23214.
    #[error("received unencrypted bytes after a request for encryption, before the reply to it")]
    EarlyBytes,
    /// A second SSLRequest or GSSENCRequest.
    #[error("the same encryption was requested twice")]
    RepeatedRequest,
    /// A StartupMessage without TLS.
    #[error("received a StartupMessage without TLS")]
    PlaintextStartup,
    /// A CancelRequest without TLS, where the policy does not allow it.
    #[error(
        "received a CancelRequest without TLS, so that no statement was cancelled: drivers such as pgjdbc (setQueryTimeout) \
         and libpq before 17 send it so; set statement_timeout instead, or connect through teesql-forward"
    )]
    PlaintextCancel,
    /// A PROXY header from a peer that is not allowed to send one.
    #[error("received a PROXY header from a peer that is not allowed to send one")]
    ProxyNotAllowed,
    /// A PROXY header that is not at the start of the connection.
    #[error("received a PROXY header after other bytes")]
    ProxyMisplaced,
    /// A PROXY header that violates its specification.
    #[error("the PROXY header is malformed")]
    ProxyMalformed,
    /// A PROXY header longer than its cap.
    #[error("the PROXY header is too long")]
    ProxyTooLong,
}

impl OpeningError {
    /// The reason code for log and metric: a closed list, unique in this crate.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::NotTls => "not_tls",
            Self::EarlyBytes => "early_bytes",
            Self::RepeatedRequest => "repeated_request",
            Self::PlaintextStartup => "plaintext_startup",
            Self::PlaintextCancel => "plaintext_cancel",
            Self::ProxyNotAllowed => "proxy_not_allowed",
            Self::ProxyMisplaced => "proxy_misplaced",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyTooLong => "proxy_too_long",
        }
    }

    /// The plaintext response to the client; `None` where the protocol allows none.
    #[must_use]
    pub fn response(&self) -> Option<ErrorResponse<'static>> {
        match self {
            Self::PlaintextStartup => Some(
                ErrorResponse::fatal(
                    SqlState::INVALID_AUTHORIZATION,
                    "TLS is required: this server takes no plaintext connections",
                )
                .with_hint(Some("Connect with sslmode=require or stronger.")),
            ),
            Self::EarlyBytes => Some(ErrorResponse::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "received unencrypted data after a request for encryption",
            )),
            Self::RepeatedRequest => Some(ErrorResponse::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "received a second request for encryption",
            )),
            Self::Garbage
            | Self::NotTls
            | Self::PlaintextCancel
            | Self::ProxyNotAllowed
            | Self::ProxyMisplaced
            | Self::ProxyMalformed
            | Self::ProxyTooLong => None,
        }
    }
}

/// An error in a client's start-up or password message, inside TLS. The client is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontendError {
    /// A start-up packet shorter than 8 or longer than 10,000 bytes.
    #[error("invalid length of the start-up packet: {length} bytes")]
    InvalidStartupLength {
        /// The length word, in bytes.
        length: u32,
    },
    /// SSLRequest or GSSENCRequest inside TLS.
    #[error("encryption was requested inside TLS")]
    EncryptionRequestInTls,
    /// A major version other than 3.
    #[error("protocol {0} is not supported")]
    UnsupportedProtocol(ProtocolVersion),
    /// A parameter list without terminator, or with bytes after it.
    #[error("the start-up packet is malformed")]
    MalformedStartup,
    /// No `user`, or an empty one.
    #[error("the start-up packet names no user")]
    MissingUser,
    /// More than one `user`.
    #[error("the start-up packet names more than one user")]
    RepeatedUser,
    /// A `user` that is not UTF-8.
    #[error("the user name is not UTF-8")]
    UserNotUtf8,
    /// A CancelRequest whose key is shorter than 4 or longer than 256 bytes.
    #[error("invalid length of the CancelRequest")]
    MalformedCancel,
    /// A message other than the expected password.
    #[error("received message {tag:#04x} instead of the password")]
    UnexpectedMessage {
        /// The message's tag.
        tag: u8,
    },
    /// A password message longer than its cap.
    #[error("the password message of {length} bytes is too long")]
    PasswordTooLong {
        /// The length word, in bytes.
        length: u32,
    },
    /// A password message in which the only NUL is not the last byte.
    #[error("the password message is malformed")]
    MalformedPassword,
    /// A password in place of the first SCRAM message.
    #[error("received a password instead of a SCRAM message")]
    PasswordInsteadOfScram,
    /// A violation of SCRAM.
    #[error("SCRAM: {0}")]
    Scram(#[from] ScramError),
}

/// An error in a client's SCRAM messages. The client is at fault, or an attacker between it and us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A mechanism that was not offered.
    #[error("the client selected a mechanism that was not offered")]
    Mechanism,
    /// A message that violates its syntax. The text says where.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A message that is not supported, such as another channel binding type.
    #[error("the client uses a channel binding type other than tls-server-end-point")]
    BindingType,
    /// The client supports channel binding and believes that we do not, although we offered it: an
    /// attacker may have removed the offer.
    #[error("the client was told that the server does not support channel binding")]
    Downgrade,
    /// The client is bound to another certificate than ours: another server ends its TLS.
    #[error("the client is connected to a server with another certificate")]
    BindingMismatch,
    /// The nonce is not the one of this exchange.
    #[error("the nonce is not the one that was sent")]
    NonceMismatch,
}

impl ScramError {
    /// The reason code for log and metric: a closed list, unique in this crate.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Mechanism => "scram_mechanism",
            Self::Malformed(_) => "scram_malformed",
            Self::BindingType => "scram_binding_type",
            Self::Downgrade => "scram_downgrade",
            Self::BindingMismatch => "scram_binding_mismatch",
            Self::NonceMismatch => "scram_nonce_mismatch",
        }
    }

    /// The response to the client, in PostgreSQL's words. [PostgreSQL 18 `auth-sasl.c`,
    /// `auth-scram.c`]
    fn response(self) -> ErrorResponse<'static> {
        let violation = |text| ErrorResponse::fatal(SqlState::PROTOCOL_VIOLATION, text);
        let invalid = |text| ErrorResponse::fatal(SqlState::INVALID_AUTHORIZATION, text);
        match self {
            Self::Mechanism => {
                violation("client selected an invalid SASL authentication mechanism")
            }
            Self::Malformed(_) => violation("malformed SCRAM message"),
            Self::BindingType => violation("unsupported SCRAM channel-binding type"),
            Self::Downgrade => invalid("SCRAM channel binding negotiation error").with_hint(Some(
                "The client supports SCRAM channel binding but thinks the server does not. \
                 However, this server does support channel binding.",
            )),
            Self::BindingMismatch => invalid("SCRAM channel binding check failed")
                .with_hint(Some("Another server ends this client's TLS connection.")),
            Self::NonceMismatch => violation("invalid SCRAM response"),
        }
    }
}

impl FrontendError {
    /// The reason code for log and metric: a closed list, unique in this crate.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidStartupLength { .. } => "invalid_startup_length",
            Self::EncryptionRequestInTls => "encryption_request_in_tls",
            Self::UnsupportedProtocol(_) => "unsupported_protocol",
            Self::MalformedStartup => "malformed_startup",
            Self::MissingUser => "missing_user",
            Self::RepeatedUser => "repeated_user",
            Self::UserNotUtf8 => "user_not_utf8",
            Self::MalformedCancel => "malformed_cancel",
            Self::UnexpectedMessage { .. } => "unexpected_message",
            Self::PasswordTooLong { .. } => "password_too_long",
            Self::MalformedPassword => "malformed_password",
            Self::PasswordInsteadOfScram => "password_instead_of_scram",
            Self::Scram(error) => error.code(),
        }
    }

    /// The response to the client; `None` for a CancelRequest, which has no response. The texts are
    /// Postgres's own where it has one. [PostgreSQL `backend_startup.c`, `auth.c`]
    #[must_use]
    pub fn response(&self) -> Option<ErrorResponse<'static>> {
        let violation = |text| Some(ErrorResponse::fatal(SqlState::PROTOCOL_VIOLATION, text));
        match self {
            Self::InvalidStartupLength { .. } => violation("invalid length of startup packet"),
            Self::EncryptionRequestInTls => violation("received a request for encryption in TLS"),
            Self::UnsupportedProtocol(version) => Some(ErrorResponse::from_string(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "unsupported frontend protocol {version}: server supports {} to {}",
                    ProtocolVersion::V3_0,
                    ProtocolVersion::V3_2,
                ),
            )),
            Self::MalformedStartup => {
                violation("invalid startup packet layout: expected terminator as last byte")
            }
            Self::MissingUser => Some(ErrorResponse::fatal(
                SqlState::INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            )),
            Self::RepeatedUser => violation("more than one user name specified in startup packet"),
            Self::UserNotUtf8 => violation("user name specified in startup packet is not UTF-8"),
            Self::MalformedCancel => None,
            Self::UnexpectedMessage { tag } => Some(ErrorResponse::from_string(
                SqlState::PROTOCOL_VIOLATION,
                format!("expected password response, got message type {tag}"),
            )),
            Self::PasswordTooLong { .. } | Self::MalformedPassword => {
                violation("invalid password packet size")
            }
            Self::PasswordInsteadOfScram => Some(
                ErrorResponse::fatal(
                    SqlState::PROTOCOL_VIOLATION,
                    "client selected an invalid SASL authentication mechanism",
                )
                .with_hint(Some("Use a driver that supports SCRAM-SHA-256.")),
            ),
            Self::Scram(error) => Some(error.response()),
        }
    }
}

mod backend;
pub use backend::BackendError;
