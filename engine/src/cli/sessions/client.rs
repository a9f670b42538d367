//! The commands' side of the control socket.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::app::sidecar::control_socket::protocol::{End, Request};
use crate::cli::output::{EX_NOPERM, EX_UNAVAILABLE};

/// For each read and write. The sidecar waits for its shards for 5 s, and ends every answer within 30 s.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer: 1,000,000 connections, the most that can be configured, with 1 KiB each.
const MAX_ANSWER: u64 = 1 << 30;

/// The connections, sorted by their numbers.
pub(super) struct Answer {
    pub(super) connections: Vec<Value>,
    /// Whether all shards have answered.
    pub(super) complete: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error("{}: {error}{}", path.display(), hint(error))]
    Connect { path: PathBuf, error: io::Error },
    #[error("the control socket: {0}")]
    Io(io::Error),
    #[error("the sidecar has not answered within 10 s: it may be overloaded or stopped")]
    Timeout,
    #[error("the sidecar has ended its answer early: it may be stopping")]
    EndedEarly,
    #[error("the sidecar refuses: {0}")]
    Refused(String),
}

impl ControlError {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Connect { error, .. } if error.kind() == ErrorKind::PermissionDenied => EX_NOPERM,
            Self::Refused(_) => EX_NOPERM,
            Self::Connect { .. } | Self::Io(_) | Self::Timeout | Self::EndedEarly => EX_UNAVAILABLE,
        }
    }
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The error of a socket timeout on Linux.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io(error),
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            ": does the sidecar run on this machine, and is its control_socket there? Its directory must exist"
        }
        ErrorKind::ConnectionRefused => ": the sidecar does not run any more",
        ErrorKind::PermissionDenied => ": only root and the sidecar's own user can ask",
        _ => "",
    }
}

/// Sends the request and reads the answer.
///
/// # Errors
/// [`ControlError`].
pub(super) fn ask(path: &Path, request: &Request) -> Result<Answer, ControlError> {
    let mut stream = UnixStream::connect(path).map_err(|error| ControlError::Connect {
        path: path.to_owned(),
        error,
    })?;
    let send = |stream: &mut UnixStream| {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(request.line().as_bytes())
    };
    send(&mut stream)?;
    read(BufReader::new(stream.take(MAX_ANSWER)).lines())
}

fn read(lines: impl Iterator<Item = io::Result<String>>) -> Result<Answer, ControlError> {
    let mut connections = Vec::new();
    for line in lines {
        let line = line?;
        let document: Value = serde_json::from_str(&line).map_err(|_| ControlError::EndedEarly)?;
        match End::parse(&document) {
            None => connections.push(document),
            Some(End::Error(error)) => return Err(ControlError::Refused(error)),
            Some(End::Done { complete, .. }) => {
                connections.sort_by_key(|one| one.get("id").and_then(Value::as_u64));
                return Ok(Answer {
                    connections,
                    complete,
                });
            }
        }
    }
    Err(ControlError::EndedEarly)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lines: &[&str]) -> Result<Answer, ControlError> {
        read(lines.iter().map(|line| Ok((*line).to_owned())))
    }

    #[test]
    fn connections_are_sorted_by_number() {
        let done = r#"{"done":{"sessions":2,"complete":true}}"#;
        let answer = answer(&[r#"{"id":10}"#, r#"{"id":9}"#, done]).unwrap();
        let ids: Vec<_> = answer.connections.iter().map(|one| &one["id"]).collect();
        assert_eq!(ids, [9, 10]);
        assert!(answer.complete);
    }

    #[test]
    fn an_answer_without_its_last_line_is_none() {
        for lines in [&[][..], &[r#"{"id":1}"#], &[r#"{"id":1}"#, r#"{"do"#]] {
            let error = answer(lines).map(drop).unwrap_err();
            assert!(matches!(error, ControlError::EndedEarly), "{error}");
        }
        let error = answer(&[r#"{"error":"no"}"#]).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "the sidecar refuses: no");
    }
}
