//! The client's start-up inside TLS as sans-I/O state machines, where we are the server: start-up
//! message, version negotiation, and either SCRAM ([`scram`]) or the password in cleartext.
//!
//! It exists so that a client's start-up is complete before the connection to Postgres is opened.
//! No output may depend on whether a role exists or a secret is right: the caller compares, and its
//! only response to a mismatch is [`AUTHENTICATION_FAILED`](crate::error::AUTHENTICATION_FAILED).

use std::fmt;

pub mod scram;

pub use crate::error::FrontendError;
use crate::message::{Cursor, Frame, FrameError, write_c_str, write_tagged};
use crate::startup::{
    CANCEL_LENGTHS, CANCEL_REQUEST, CancelRequest, GSSENC_REQUEST, MAX_STARTUP_PACKET,
    MIN_STARTUP_PACKET, ProtocolVersion, SSL_REQUEST, Startup, StartupMessage,
};

/// Maximum length of a password or SCRAM message in bytes, without its tag. Secrets here have 64
/// characters, and PostgreSQL up to 13 accepted 1,000 bytes; SCRAM messages of drivers have up to
/// about 200. [PostgreSQL 13 `auth.c`, recv_password_packet; PostgreSQL 18 `auth-sasl.h`,
/// PG_MAX_SASL_MESSAGE_LENGTH]
pub const MAX_PASSWORD_MESSAGE: usize = 1_024;

/// Authentication code of AuthenticationCleartextPassword.
const CLEARTEXT_PASSWORD: u32 = 3;

/// The state before the first packet inside TLS.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AwaitStartup(());

/// What to do next with the first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum StartupStep<'a> {
    /// Read more bytes and append them. Nothing was consumed. Never needs more than
    /// [`MAX_STARTUP_PACKET`] bytes.
    Read(AwaitStartup),
    /// A StartupMessage: a session begins.
    Startup {
        /// The validated packet.
        message: StartupMessage<'a>,
        /// Length of the packet in bytes.
        consumed: usize,
    },
    /// Forward this request and close. Ignore any bytes after it.
    Cancel(CancelRequest<'a>),
    /// Send [`FrontendError::response`], if there is one, and close.
    Refuse(FrontendError),
}

impl AwaitStartup {
    /// Creates the state of a connection on which nothing was read since the TLS handshake.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Processes all bytes read and not yet consumed.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> StartupStep<'_> {
        match first_packet(bytes) {
            Ok(Some(step)) => step,
            Ok(None) => StartupStep::Read(self),
            Err(error) => StartupStep::Refuse(error),
        }
    }
}

fn first_packet(bytes: &[u8]) -> Result<Option<StartupStep<'_>>, FrontendError> {
    let mut cursor = Cursor::new(bytes);
    let Some(length) = cursor.u32() else {
        return Ok(None);
    };
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if !(MIN_STARTUP_PACKET..=MAX_STARTUP_PACKET).contains(&size) {
        return Err(FrontendError::InvalidStartupLength { length });
    }
    let Some(code) = cursor.u32() else {
        return Ok(None);
    };
    let packet = bytes.get(..size);
    match code {
        CANCEL_REQUEST if !CANCEL_LENGTHS.contains(&size) => Err(FrontendError::MalformedCancel),
        CANCEL_REQUEST => Ok(packet.and_then(CancelRequest::new).map(StartupStep::Cancel)),
        SSL_REQUEST | GSSENC_REQUEST => Err(FrontendError::EncryptionRequestInTls),
        _ => {
            let version = ProtocolVersion::from_u32(code);
            if version.major != ProtocolVersion::V3_0.major {
                return Err(FrontendError::UnsupportedProtocol(version));
            }
            let message = packet.map(StartupMessage::parse).transpose()?;
            Ok(message.map(|message| StartupStep::Startup {
                message,
                consumed: size,
            }))
        }
    }
}

/// Requests the password: calls [`negotiate`], then appends AuthenticationCleartextPassword to
/// `out`. Returns the negotiated version.
pub fn request_password(
    startup: &Startup,
    newest: ProtocolVersion,
    out: &mut Vec<u8>,
) -> (AwaitPassword, ProtocolVersion) {
    let version = negotiate(startup, newest, out);
    write_tagged(out, b'R', |out| {
        out.extend_from_slice(&CLEARTEXT_PASSWORD.to_be_bytes());
    });
    (AwaitPassword(()), version)
}

/// Negotiates the protocol version where necessary.
///
/// `newest` is the newest version that the upstream Postgres supports. Appends
/// NegotiateProtocolVersion to `out` if the client requested a newer one or a `_pq_.` option (none
/// is supported here). Returns the negotiated version, the older of the two.
///
/// This follows PostgreSQL 18: the message holds the whole version word, not the minor number alone
/// as the documentation says, and it is the version that will be used, not the newest that is
/// supported. A server that supports 3.2 accepts a request for 3.1, which never existed, as it is.
/// [PostgreSQL 18 `backend_startup.c`, ProcessStartupPacket, SendNegotiateProtocolVersion]
pub fn negotiate(startup: &Startup, newest: ProtocolVersion, out: &mut Vec<u8>) -> ProtocolVersion {
    let version = startup.version().min(newest);
    let options = startup.protocol_options().count();
    if startup.version() > newest || options > 0 {
        write_tagged(out, b'v', |out| {
            out.extend_from_slice(&version.to_u32().to_be_bytes());
            // At most 10,000 / 7 options fit into a start-up packet.
            let options = u32::try_from(options).unwrap_or(u32::MAX);
            out.extend_from_slice(&options.to_be_bytes());
            startup
                .protocol_options()
                .for_each(|name| write_c_str(out, name));
        });
    }
    version
}

/// The state before the PasswordMessage. Created only by [`request_password`].
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitPassword(());

/// What to do next with the password message.
#[derive(PartialEq, Eq)]
pub enum PasswordStep<'a> {
    /// Read more bytes and append them. Nothing was consumed. Never needs more than
    /// [`MAX_PASSWORD_MESSAGE`] + 1 bytes.
    Read(AwaitPassword),
    /// The client's password. It borrows from the caller's buffer, which the caller must wipe.
    Password {
        /// The password without its terminator. Contains no NUL; may be empty.
        password: &'a [u8],
        /// Length of the message in bytes.
        consumed: usize,
    },
    /// Send [`FrontendError::response`], if there is one, and close.
    Refuse(FrontendError),
}

/// Redacts the password.
impl fmt::Debug for PasswordStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(next) => f.debug_tuple("Read").field(next).finish(),
            Self::Password { .. } => f.write_str("Password(redacted)"),
            Self::Refuse(error) => f.debug_tuple("Refuse").field(error).finish(),
        }
    }
}

impl AwaitPassword {
    /// Processes all bytes read and not yet consumed.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> PasswordStep<'_> {
        match bytes.first() {
            Some(b'p') => {}
            Some(tag) => {
                return PasswordStep::Refuse(FrontendError::UnexpectedMessage { tag: *tag });
            }
            None => return PasswordStep::Read(self),
        }
        let frame = match Frame::read(bytes, MAX_PASSWORD_MESSAGE) {
            Ok(Some(frame)) => frame,
            Ok(None) => return PasswordStep::Read(self),
            Err(FrameError::TooLong { length, .. }) => {
                return PasswordStep::Refuse(FrontendError::PasswordTooLong { length });
            }
            Err(FrameError::TooShort { .. }) => {
                return PasswordStep::Refuse(FrontendError::MalformedPassword);
            }
        };
        match frame.body().split_last() {
            Some((0, password)) if !password.contains(&0) => PasswordStep::Password {
                password,
                consumed: frame.wire_len(),
            },
            _ => PasswordStep::Refuse(FrontendError::MalformedPassword),
        }
    }
}
