//! The first bytes of a client on this machine, as a sans-I/O state machine of the forwarder.
//!
//! It exists so that the forwarder recognizes a session, a CancelRequest or a request for
//! encryption before it opens a connection. Requests for encryption are declined: the client's
//! connection does not leave the machine, and the forwarder's own connection is encrypted anyway.
//! It must never change a byte that is forwarded.

use crate::error::{ErrorResponse, SqlState};
use crate::message::Cursor;
use crate::startup::{
    CANCEL_LENGTHS, CANCEL_REQUEST, CancelRequest, GSSENC_REQUEST, MAX_STARTUP_PACKET,
    MIN_STARTUP_PACKET, ProtocolVersion, SSL_REQUEST,
};

/// Maximum number of bytes that [`LocalOpening`] needs at a time.
pub const MAX_LOCAL_OPENING: usize = MAX_STARTUP_PACKET;

/// TLS record type "handshake". [RFC 8446, section 5.1]
const TLS_HANDSHAKE: u8 = 0x16;

/// The encryption that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionRequest {
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    Gss,
}

/// The state of a connection from which nothing has been forwarded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LocalOpening {
    ssl: bool,
    gss: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum LocalOpeningStep<'a> {
    /// Read more bytes and append them. Nothing was consumed.
    Read(LocalOpening),
    /// Drop `consumed` bytes, send `N`, then continue.
    Decline {
        /// The declined request.
        request: EncryptionRequest,
        /// Length of the request in bytes.
        consumed: usize,
        /// The next state. Call it with the remaining bytes before reading more.
        next: LocalOpening,
    },
    /// A StartupMessage: a session begins. Nothing was consumed: forward it and all bytes after it.
    Session,
    /// Forward this request and close. Ignore any bytes after it.
    Cancel(CancelRequest<'a>),
    /// Send [`LocalOpeningError::response`], if there is one, and close.
    Refuse(LocalOpeningError),
}

/// Why a client's first bytes are not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalOpeningError {
    /// Bytes that are not a start-up packet.
    #[error("not a PostgreSQL client")]
    Garbage,
    /// A TLS ClientHello (`sslnegotiation=direct`).
    #[error("received a TLS ClientHello: the forwarder accepts plaintext connections only")]
    DirectTls,
    /// The same encryption was requested twice.
    #[error("the client requested the same encryption twice")]
    RepeatedRequest,
}

impl LocalOpeningError {
    /// The reason code for log and metric: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::DirectTls => "direct_tls",
            Self::RepeatedRequest => "repeated_request",
        }
    }

    /// The response to the client; `None` if it would not be understood.
    #[must_use]
    pub fn response(self) -> Option<ErrorResponse<'static>> {
        match self {
            Self::Garbage | Self::DirectTls => None,
            Self::RepeatedRequest => Some(ErrorResponse::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "received a second request for encryption",
            )),
        }
    }
}

impl LocalOpening {
    /// Creates the state of a connection on which nothing was read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Processes all bytes read and not yet consumed.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> LocalOpeningStep<'_> {
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            return LocalOpeningStep::Refuse(LocalOpeningError::DirectTls);
        }
        let mut cursor = Cursor::new(bytes);
        let Some(length) = cursor.u32() else {
            return LocalOpeningStep::Read(self);
        };
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if !(MIN_STARTUP_PACKET..=MAX_STARTUP_PACKET).contains(&size) {
            return LocalOpeningStep::Refuse(LocalOpeningError::Garbage);
        }
        let Some(code) = cursor.u32() else {
            return LocalOpeningStep::Read(self);
        };
        let packet = bytes.get(..size);
        match code {
            SSL_REQUEST if size == MIN_STARTUP_PACKET => self.decline(EncryptionRequest::Ssl),
            GSSENC_REQUEST if size == MIN_STARTUP_PACKET => self.decline(EncryptionRequest::Gss),
            CANCEL_REQUEST if CANCEL_LENGTHS.contains(&size) => packet
                .and_then(CancelRequest::new)
                .map_or(LocalOpeningStep::Read(self), LocalOpeningStep::Cancel),
            _ if ProtocolVersion::from_u32(code).major == ProtocolVersion::V3_0.major => {
                match packet {
                    Some(_) => LocalOpeningStep::Session,
                    None => LocalOpeningStep::Read(self),
                }
            }
            _ => LocalOpeningStep::Refuse(LocalOpeningError::Garbage),
        }
    }

    fn decline(mut self, request: EncryptionRequest) -> LocalOpeningStep<'static> {
        let seen = match request {
            EncryptionRequest::Ssl => &mut self.ssl,
            EncryptionRequest::Gss => &mut self.gss,
        };
        if std::mem::replace(seen, true) {
            return LocalOpeningStep::Refuse(LocalOpeningError::RepeatedRequest);
        }
        LocalOpeningStep::Decline {
            request,
            consumed: MIN_STARTUP_PACKET,
            next: self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    const CANCEL: [u8; 16] = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 9, 9, 9, 9];
    const STARTUP: [u8; 15] = *b"\0\0\0\x0f\0\x03\0\0user\0\0\0";

    /// The steps for a transcript, which must be the same for a split at any byte.
    fn steps_at_every_split(transcript: &[u8]) -> Vec<String> {
        let ends: Vec<_> = (0..=transcript.len())
            .map(|split| {
                let (mut state, mut seen, mut steps) = (LocalOpening::new(), 0, Vec::new());
                for end in [split, transcript.len()] {
                    loop {
                        match state.advance(&transcript[seen..end]) {
                            LocalOpeningStep::Read(next) => {
                                state = next;
                                break;
                            }
                            LocalOpeningStep::Decline {
                                request,
                                consumed,
                                next,
                            } => {
                                steps.push(format!("N to {request:?}"));
                                seen += consumed;
                                state = next;
                            }
                            LocalOpeningStep::Session => {
                                steps.push(format!("session at {seen}"));
                                return steps;
                            }
                            LocalOpeningStep::Cancel(request) => {
                                steps.push(format!("cancel of {}", request.as_bytes().len()));
                                return steps;
                            }
                            LocalOpeningStep::Refuse(error) => {
                                steps.push(error.code().to_owned());
                                return steps;
                            }
                        }
                    }
                }
                steps.push("needs more".to_owned());
                steps
            })
            .collect();
        assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:?}");
        ends[0].clone()
    }

    #[test]
    fn every_opening_split_at_every_byte() {
        let all = |parts: &[&[u8]]| steps_at_every_split(&parts.concat());
        assert_eq!(all(&[&STARTUP]), ["session at 0"]);
        assert_eq!(all(&[&SSL, &STARTUP]), ["N to Ssl", "session at 8"]);
        assert_eq!(
            all(&[&GSS, &SSL, &STARTUP, b"Q"]),
            ["N to Gss", "N to Ssl", "session at 16"]
        );
        assert_eq!(all(&[&CANCEL]), ["cancel of 16"]);
        assert_eq!(all(&[&SSL, &CANCEL]), ["N to Ssl", "cancel of 16"]);
        assert_eq!(all(&[&SSL, &SSL]), ["N to Ssl", "repeated_request"]);
        assert_eq!(all(&[&[0x16, 3, 1, 0, 5]]), ["direct_tls"]);
        assert_eq!(all(&[b"GET / HTTP/1.1\r\n"]), ["garbage"]);
        assert_eq!(all(&[&[0, 0, 0, 8, 0, 2, 0, 0]]), ["garbage"]);
        assert_eq!(all(&[&[0, 0, 0x27, 0x11, 0, 3, 0, 0]]), ["garbage"]);
        assert_eq!(all(&[&[0, 0, 0, 12, 0x04, 0xd2, 0x16, 0x2e]]), ["garbage"]);
        assert_eq!(all(&[&STARTUP[..14]]), ["needs more"]);
    }
}
