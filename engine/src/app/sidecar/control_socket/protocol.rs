//! The messages on the control socket: one JSON line with the request; in the answer one for each connection and a last one
//! that says whether it is complete.

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest request in bytes.
pub(super) const MAX_REQUEST: u64 = 16 << 10;
/// Connections that one request may end by their numbers: the audit log has them in one line.
pub(super) const MAX_IDS: usize = 100;

/// A request.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Request {
    /// Describe the connections.
    Sessions {
        /// Only those of this application.
        #[serde(default)]
        app_id: Option<String>,
    },
    /// End connections, and describe them.
    Kill {
        /// Those with these numbers.
        #[serde(default)]
        ids: Option<Vec<u64>>,
        /// Those of this application.
        #[serde(default)]
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
pub(super) enum End {
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
}
