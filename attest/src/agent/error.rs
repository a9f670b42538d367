//! Every way in which asking the guest agent fails.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{AgentAddress, Method};
use crate::limits::MAX_AGENT_MESSAGE_CHARS;

/// Why the guest agent gave no usable response. The fault is the agent's or the machine's, except for
/// [`AgentError::ReportDataTooLong`] and [`AgentError::Client`], which are this side's, and
/// [`AgentError::Status`] with a 4xx, which is that of the question.
///
/// None of them holds key material: of an response, at most the names of its fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// There is no socket at any of the addresses.
    #[error("no guest agent: there is no socket at {}", PathList(tried))]
    NotFound {
        /// Every path that was looked at.
        tried: Vec<PathBuf>,
    },
    /// This process may not use the socket, or not look into its folder.
    #[error("this process may not use the guest agent's socket at {address}: permission denied")]
    Forbidden {
        /// The place.
        address: AgentAddress,
    },
    /// No connection.
    #[error("no connection to the guest agent at {address}: {why}")]
    Connect {
        /// The place.
        address: AgentAddress,
        /// What the system says.
        why: String,
    },
    /// No whole answer within the deadline.
    #[error("the guest agent did not answer {method} within {}", humantime::format_duration(*after))]
    Timeout {
        /// What was asked.
        method: Method,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the response, or in the middle of it.
    #[error("the guest agent hung up before the end of its answer to {method}")]
    ConnectionClosed {
        /// What was asked.
        method: Method,
    },
    /// Another status than 200. Redirects are not followed.
    #[error(
        "the guest agent answered {method} with HTTP status {status}{}",
        MessageSuffix(message)
    )]
    Status {
        /// What was asked.
        method: Method,
        /// The status.
        status: u16,
        /// What its `error` says: at most [`MAX_AGENT_MESSAGE_CHARS`], no control characters; may be empty.
        message: String,
    },
    /// More bytes than any answer needs.
    #[error("the guest agent's answer to {method} has more than {limit} bytes")]
    TooLarge {
        /// What was asked.
        method: Method,
        /// The cap.
        limit: usize,
    },
    /// 200 with something else than a JSON object.
    #[error("the guest agent's answer to {method} is no JSON object")]
    NotJson {
        /// What was asked.
        method: Method,
    },
    /// A field is not what it must be.
    #[error("the guest agent's answer to {method} is unusable: `{field}` {why}")]
    Malformed {
        /// What was asked.
        method: Method,
        /// Which field.
        field: &'static str,
        /// What is wrong with it; never its value.
        why: &'static str,
    },
    /// More than 64 bytes to be quoted.
    #[error("report data has at most 64 bytes, not {bytes}")]
    ReportDataTooLong {
        /// Bytes given.
        bytes: usize,
    },
    /// The HTTP client cannot be made.
    #[error("the guest agent's client cannot be set up: {0}")]
    Client(String),
}

impl AgentError {
    /// Whether it may pass by itself: an agent that is not there yet, restarts, or is overloaded.
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

    /// A word from a closed list, for a metric label and the log.
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

/// Paths with commas between them.
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

/// What the agent said, if it said something.
struct MessageSuffix<'a>(&'a str);

impl fmt::Display for MessageSuffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

/// The agent's words as a log can hold them.
pub(super) fn sanitized(message: &str) -> String {
    let shown = message.chars().filter(|c| !c.is_control());
    shown.take(MAX_AGENT_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_and_cleaned() {
        assert_eq!(sanitized("no\r\n\u{1b}[31m such"), "no[31m such");
        assert_eq!(sanitized(&"ü".repeat(500)).chars().count(), 200);
    }

    #[test]
    fn every_path_that_was_tried_is_named() {
        let tried = vec!["/run/a.sock".into(), "/run/b.sock".into()];
        assert_eq!(
            AgentError::NotFound { tried }.to_string(),
            "no guest agent: there is no socket at /run/a.sock, /run/b.sock"
        );
    }
}
