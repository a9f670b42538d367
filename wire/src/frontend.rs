//! The client's side inside TLS, where we are the server: start-up, negotiation, password.
//!
//! It exists so that a client is fully understood before Postgres is dialled. It must never say
//! anything that depends on whether a role exists or a secret is right: that is the caller's
//! comparison, and its one answer is [`AUTHENTICATION_FAILED`](crate::error::AUTHENTICATION_FAILED).

use std::fmt;

pub use crate::error::FrontendError;
use crate::message::{Cursor, Frame, FrameError, write_c_str, write_tagged};
use crate::startup::{
    CANCEL_LENGTHS, CANCEL_REQUEST, CancelRequest, GSSENC_REQUEST, MAX_STARTUP_PACKET,
    MIN_STARTUP_PACKET, ProtocolVersion, SSL_REQUEST, Startup, StartupMessage,
};

/// Most bytes of a password message, its tag left out. Secrets here are 64 characters; 1,000 is what
/// PostgreSQL up to 13 took. [PostgreSQL 13 `auth.c`, recv_password_packet]
pub const MAX_PASSWORD_MESSAGE: usize = 1_024;

/// Authentication code of AuthenticationCleartextPassword.
const CLEARTEXT_PASSWORD: u32 = 3;

/// Waits for the first packet inside TLS.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AwaitStartup(());

/// What to do next about the first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum StartupStep<'a> {
    /// Read more bytes behind the same ones. Nothing was consumed. Never needs more than
    /// [`MAX_STARTUP_PACKET`] bytes.
    Read(AwaitStartup),
    /// A session begins.
    Startup {
        /// The checked packet.
        message: StartupMessage<'a>,
        /// Bytes of the packet.
        consumed: usize,
    },
    /// Forward this and close. What follows it is of no interest.
    Cancel(CancelRequest<'a>),
    /// Send [`FrontendError::response`], if there is one, and close.
    Refuse(FrontendError),
}

impl AwaitStartup {
    /// A connection that is in TLS and on which nothing was read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at everything read and not yet consumed.
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

/// Asks for the password, after [`negotiate`]: appends AuthenticationCleartextPassword to `out`.
/// Returns the version to go on with.
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

/// Negotiates the protocol version where that is needed.
///
/// `newest` is the newest version that the Postgres behind speaks. Appends NegotiateProtocolVersion to
/// `out` if the client asked for a newer one or for a `_pq_.` option (none is known here). Returns the
/// version to go on with, the older of the two.
///
/// As PostgreSQL 18 does it: the message holds the whole version word, not the minor number alone as
/// its documentation says, and it is the version that will be spoken, not the newest that could be;
/// 3.1, which never existed, is taken as asked for by a server that speaks 3.2.
/// [PostgreSQL 18 `backend_startup.c`, ProcessStartupPacket, SendNegotiateProtocolVersion]
pub fn negotiate(startup: &Startup, newest: ProtocolVersion, out: &mut Vec<u8>) -> ProtocolVersion {
    let version = startup.version().min(newest);
    let options = startup.protocol_options().count();
    if startup.version() > newest || options > 0 {
        write_tagged(out, b'v', |out| {
            out.extend_from_slice(&version.to_u32().to_be_bytes());
            // At most 10,000 / 7 of them fit into a start-up packet.
            let options = u32::try_from(options).unwrap_or(u32::MAX);
            out.extend_from_slice(&options.to_be_bytes());
            startup
                .protocol_options()
                .for_each(|name| write_c_str(out, name));
        });
    }
    version
}

/// Waits for the PasswordMessage. Made by [`request_password`] only.
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitPassword(());

/// What to do next about the password.
#[derive(PartialEq, Eq)]
pub enum PasswordStep<'a> {
    /// Read more bytes behind the same ones. Nothing was consumed. Never needs more than
    /// [`MAX_PASSWORD_MESSAGE`] + 1 bytes.
    Read(AwaitPassword),
    /// The client's password. It lies in the caller's buffer, which is the caller's to wipe.
    Password {
        /// Without its NUL, and without any other. May be empty.
        password: &'a [u8],
        /// Bytes of the message.
        consumed: usize,
    },
    /// Send [`FrontendError::response`], if there is one, and close.
    Refuse(FrontendError),
}

/// Shows nothing of a password.
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
    /// Looks at everything read and not yet consumed.
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
