//! Errors of the guest agent's client.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{AgentAddress, Method};
use crate::limits::MAX_AGENT_MESSAGE_CHARS;

/// Why the guest agent gave no usable response. The agent or the machine is at fault, except for
/// [`AgentError::ReportDataTooLong`] and [`AgentError::Client`] (this side), and [`AgentError::Status`]
/// with a 4xx (the request).
///
/// No variant holds key material; of a response it holds at most the names of fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No socket exists at any of the addresses.
    #[error("no guest agent: there is no socket at {}", PathList(tried))]
    NotFound {
        /// Every path that was tried.
        tried: Vec<PathBuf>,
    },
    /// This process may not use the socket, or not search its directory.
    #[error("this process may not use the guest agent's socket at {address}: permission denied")]
    Forbidden {
        /// The address.
        address: AgentAddress,
    },
    /// The connection could not be established.
    #[error("no connection to the guest agent at {address}: {why}")]
    Connect {
        /// The address.
        address: AgentAddress,
        /// The system's error.
        why: String,
    },
    /// The response was not complete within the deadline.
    #[error("the guest agent did not answer {method} within {}", humantime::format_duration(*after))]
    Timeout {
        /// The method.
        method: Method,
        /// The deadline.
        after: Duration,
    },
    /// The connection was closed before the end of the response.
    #[error("the guest agent closed the connection before the end of its response to {method}")]
    ConnectionClosed {
        /// The method.
        method: Method,
    },
    /// A status other than 200. Redirects are not followed.
    #[error(
        "the guest agent answered {method} with HTTP status {status}{}",
        MessageSuffix(message)
    )]
    Status {
        /// The method.
        method: Method,
        /// The status.
        status: u16,
        /// The response's `error`: at most [`MAX_AGENT_MESSAGE_CHARS`], without control characters; may be
        /// empty.
        message: String,
    },
    /// The response is larger than any valid one.
    #[error("the guest agent's response to {method} has more than {limit} bytes")]
    TooLarge {
        /// The method.
        method: Method,
        /// The cap.
        limit: usize,
    },
    /// Status 200 with a body that is not a JSON object.
    #[error("the guest agent's response to {method} is not a JSON object")]
    NotJson {
        /// The method.
        method: Method,
    },
    /// A field has not the form that it must have.
    #[error("the guest agent's response to {method} is unusable: `{field}` {why}")]
    Malformed {
        /// The method.
        method: Method,
        /// The name of the field.
        field: &'static str,
        /// What is wrong with it. Never its value.
        why: &'static str,
    },
    /// The requested report data has more than 64 bytes.
    #[error("report data has at most 64 bytes, not {bytes}")]
    ReportDataTooLong {
        /// Number of bytes given.
        bytes: usize,
    },
    /// The HTTP client cannot be created.
    #[error("the HTTP client for the guest agent cannot be created: {0}")]
    Client(String),
}

impl AgentError {
    /// Whether a retry may succeed: the agent is not there yet, restarts, or is overloaded.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::ConnectionClosed { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            Self::Forbidden { .. }
            | Self::TooLarge { .. }
            | Self::NotJson { .. }
            | Self::Malformed { .. }
            | Self::ReportDataTooLong { .. }
            | Self::Client(_) => false,
        }
    }

    /// The error's name from a closed list, for a metric label and the log.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Forbidden { .. } => "forbidden",
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::ConnectionClosed { .. } => "hung_up",
            Self::Status { .. } => "status",
            Self::TooLarge { .. } => "too_large",
            Self::NotJson { .. } => "not_json",
            Self::Malformed { .. } => "malformed",
            Self::ReportDataTooLong { .. } => "report_data_too_long",
            Self::Client(_) => "client",
        }
    }
}

/// Paths, separated by commas.
struct PathList<'a>(&'a [PathBuf]);

impl fmt::Display for PathList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, path) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{}", path.display())?;
        }
        Ok(())
    }
}

/// `: ` and the agent's message, or nothing if it is empty.
struct MessageSuffix<'a>(&'a str);

impl fmt::Display for MessageSuffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

/// Makes the agent's message safe for a log: no control characters, and a maximum length.
pub(super) fn sanitized(message: &str) -> String {
    let shown = message.chars().filter(|c| !c.is_control());
    shown.take(MAX_AGENT_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_truncated_and_sanitized() {
        assert_eq!(sanitized("no\r\n\u{1b}[31m such"), "no[31m such");
        assert_eq!(sanitized(&"ü".repeat(500)).chars().count(), 200);
    }

    #[test]
    fn not_found_names_every_path() {
        let tried = vec!["/run/a.sock".into(), "/run/b.sock".into()];
        assert_eq!(
            AgentError::NotFound { tried }.to_string(),
            "no guest agent: there is no socket at /run/a.sock, /run/b.sock"
        );
    }
}
