//! The messages on the control socket: one JSON line with the request; in the answer one for each connection and a last one
//! that says whether it is complete. The commands and the sidecar share this file.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest request in bytes.
pub(crate) const MAX_REQUEST: u64 = 16 << 10;
/// Connections that one request may end by their numbers: the audit log has them in one line.
pub(crate) const MAX_IDS: usize = 100;

/// A request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Describe the connections.
    Sessions {
        /// Only those of this application.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app_id: Option<String>,
    },
    /// End connections, and describe them.
    Kill {
        /// Those with these numbers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ids: Option<Vec<u64>>,
        /// Those of this application.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app_id: Option<String>,
    },
}

impl Request {
    /// # Errors
    /// The line is no request. The text does not quote it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|_| {
            "this version of the sidecar does not know the request: use the same version of teesql-sidecar".to_owned()
        })
    }

    /// The line to send.
    pub(crate) fn line(&self) -> String {
        // It consists of texts and numbers, which can always be written.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    pub(super) fn is_kill(&self) -> bool {
        matches!(self, Self::Kill { .. })
    }

    pub(super) fn app_id(&self) -> Option<&str> {
        match self {
            Self::Sessions { app_id } | Self::Kill { app_id, .. } => app_id.as_deref(),
        }
    }

    pub(super) fn ids(&self) -> Option<&[u64]> {
        match self {
            Self::Kill { ids, .. } => ids.as_deref(),
            Self::Sessions { .. } => None,
        }
    }
}

/// The last line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every line has been sent.
    Done {
        /// How many.
        sessions: u64,
        /// Whether all shards have answered.
        complete: bool,
    },
    /// Nothing was done.
    Error(String),
}

impl End {
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }

    pub(super) fn done(sessions: u64, complete: bool) -> Self {
        Self::Done { sessions, complete }
    }

    pub(super) fn document(&self) -> Value {
        match self {
            Self::Done { sessions, complete } => {
                json!({ "done": { "sessions": sessions, "complete": complete } })
            }
            Self::Error(text) => json!({ "error": text }),
        }
    }

    /// `None` if the line describes a connection.
    pub(crate) fn parse(line: &Value) -> Option<Self> {
        if let Some(error) = line.get("error") {
            return Some(Self::error(error.as_str().unwrap_or_default()));
        }
        let done = line.get("done")?;
        let sessions = done.get("sessions").and_then(Value::as_u64);
        let complete = done.get("complete").and_then(Value::as_bool);
        Some(Self::done(
            sessions.unwrap_or_default(),
            complete.unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        for request in [
            Request::Sessions { app_id: None },
            Request::Kill {
                ids: Some(vec![1, u64::MAX]),
                app_id: Some("5a".repeat(20)),
            },
        ] {
            assert_eq!(Request::parse(&request.line()), Ok(request));
        }
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"command":"shutdown"}"#,
            r#"{"command":"kill","all":true}"#,
            r#"{"command":"kill","ids":[-1]}"#,
            r#"{"command":"kill","ids":["1"]}"#,
        ] {
            let error = Request::parse(wrong).unwrap_err();
            assert!(error.contains("does not know"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_end_is_told_from_a_connection() {
        for end in [End::done(3, true), End::done(0, false), End::error("no")] {
            assert_eq!(End::parse(&end.document()), Some(end));
        }
        assert_eq!(End::parse(&json!({ "id": 1 })), None);
    }
}
