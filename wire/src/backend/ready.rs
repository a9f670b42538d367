//! The part of the login from AuthenticationOk to ReadyForQuery.
//!
//! It must never change, drop or reorder a byte of what it forwards.

use super::{
    MAX_AUTHENTICATION, MAX_LOGIN_MESSAGE, MAX_SERVER_VERSION, code, parse_error_response,
    read_frame, sanitize,
};
use crate::error::{BackendError, SqlState};
use crate::message::{Cursor, Frame};
use crate::startup::{MAX_CANCEL_KEY, MIN_CANCEL_KEY};

/// Inspects the messages that Postgres sends to the client between AuthenticationOk and
/// ReadyForQuery.
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitReady {
    authenticated: bool,
    server_version: Option<String>,
}

/// What to do next. The first `forward_len` bytes are complete messages for the client, to be
/// forwarded unchanged.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadyStep {
    /// Forward and drop `forward_len` bytes (possibly 0), then read more. A buffer of
    /// [`MAX_LOGIN_MESSAGE`] + 1 bytes is enough.
    Forward {
        /// Number of bytes to forward.
        forward_len: usize,
        /// The next state.
        next: AwaitReady,
    },
    /// Forward and drop `forward_len` bytes, which end with ReadyForQuery. The session has begun;
    /// the remaining bytes belong to it.
    Ready {
        /// Number of bytes to forward.
        forward_len: usize,
        /// The value of ParameterStatus `server_version`, if received: at most
        /// [`MAX_SERVER_VERSION`] bytes.
        server_version: Option<String>,
    },
    /// Forward `forward_len` bytes, which end with Postgres's ErrorResponse, then close.
    Failed {
        /// Number of bytes to forward.
        forward_len: usize,
        /// The SQLSTATE in it. Its text is left out because it may contain start-up parameters.
        sqlstate: SqlState,
    },
    /// Close, and send the client [`BackendError::response`].
    Refuse(BackendError),
}

impl AwaitReady {
    pub(super) fn new() -> Self {
        Self {
            authenticated: false,
            server_version: None,
        }
    }

    /// Processes all bytes read from Postgres and not yet forwarded.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> ReadyStep {
        self.advance_with(bytes, |_| ())
    }

    /// As [`Self::advance`]. `on_key` gets the body of each BackendKeyData: the process id and the
    /// secret key, which a CancelRequest repeats.
    #[must_use]
    pub fn advance_with(mut self, bytes: &[u8], mut on_key: impl FnMut(&[u8])) -> ReadyStep {
        let mut forward_len: usize = 0;
        loop {
            let rest = bytes.get(forward_len..).unwrap_or_default();
            let frame = match self.frame(rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    return ReadyStep::Forward {
                        forward_len,
                        next: self,
                    };
                }
                Err(error) => return ReadyStep::Refuse(error),
            };
            forward_len = forward_len.saturating_add(frame.wire_len());
            match self.inspect(&frame) {
                Ok(Progress::Continue) => {}
                Ok(Progress::Key) => on_key(frame.body()),
                Ok(Progress::Ready) => {
                    return ReadyStep::Ready {
                        forward_len,
                        server_version: self.server_version,
                    };
                }
                Ok(Progress::Failed(sqlstate)) => {
                    return ReadyStep::Failed {
                        forward_len,
                        sqlstate,
                    };
                }
                Err(error) => return ReadyStep::Refuse(error),
            }
        }
    }

    fn frame<'a>(&self, bytes: &'a [u8]) -> Result<Option<Frame<'a>>, BackendError> {
        let Some(tag) = bytes.first() else {
            return Ok(None);
        };
        match (self.authenticated, *tag) {
            (false, b'R') => read_frame(bytes, MAX_AUTHENTICATION),
            (true, b'S' | b'K' | b'N' | b'E' | b'Z') => read_frame(bytes, MAX_LOGIN_MESSAGE),
            (_, tag) => Err(BackendError::UnexpectedMessage { tag }),
        }
    }

    fn inspect(&mut self, frame: &Frame<'_>) -> Result<Progress, BackendError> {
        let body = frame.body();
        match frame.tag() {
            b'R' if body == code::OK.to_be_bytes() => {
                self.authenticated = true;
                Ok(Progress::Continue)
            }
            b'R' => Err(BackendError::Malformed("AuthenticationOk")),
            b'S' => {
                if let Some(version) = server_version(body)? {
                    self.server_version = Some(version);
                }
                Ok(Progress::Continue)
            }
            b'K' => match body.len().checked_sub(4) {
                Some(MIN_CANCEL_KEY..=MAX_CANCEL_KEY) => Ok(Progress::Key),
                _ => Err(BackendError::Malformed("BackendKeyData")),
            },
            b'E' => match parse_error_response(body) {
                BackendError::Refused { sqlstate, .. } => Ok(Progress::Failed(sqlstate)),
                error => Err(error),
            },
            b'Z' if matches!(body, [b'I' | b'T' | b'E']) => Ok(Progress::Ready),
            b'Z' => Err(BackendError::Malformed("ReadyForQuery")),
            _ => Ok(Progress::Continue),
        }
    }
}

enum Progress {
    Continue,
    Key,
    Ready,
    Failed(SqlState),
}

/// The value of a ParameterStatus, if its name is `server_version`.
fn server_version(body: &[u8]) -> Result<Option<String>, BackendError> {
    let mut cursor = Cursor::new(body);
    let (Some(name), Some(value), true) = (cursor.c_str(), cursor.c_str(), cursor.is_empty())
    else {
        return Err(BackendError::Malformed("ParameterStatus"));
    };
    Ok((name == b"server_version").then(|| sanitize(value, MAX_SERVER_VERSION)))
}
