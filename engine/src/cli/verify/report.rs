//! The report of `verify`, independent of its format. Text in it is escaped.

use std::fmt::Display;

use attest::denial::Fault;
use attest::{AttestedPeer, Denial};

use crate::cli::escape::escape;
use crate::cli::output::EX_UNAVAILABLE;
use crate::tls::probe::ProbeError;

/// The result of a verification, with all checks.
pub(super) struct Report {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// The time as of which it was verified, in Unix seconds.
    pub(super) at: u64,
    pub(super) policy: String,
    pub(super) dangerous_root: bool,
    /// What the policy leaves open so that the verdict can be wrong.
    pub(super) warnings: Vec<String>,
    pub(super) checks: Vec<CheckReport>,
    pub(super) verdict: Verdict,
}

/// A check, its outcome, and the values that it found.
pub(super) struct CheckReport {
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    pub(super) values: Vec<(&'static str, CheckValue)>,
}

/// The outcome of a check.
pub(super) enum Outcome {
    Passed,
    Failed {
        code: &'static str,
        text: String,
    },
    /// Why it was not checked.
    NotChecked(String),
}

/// A value that a check found.
pub(super) enum CheckValue {
    Text(String),
    Texts(Vec<String>),
    /// An allow-list. Empty means any.
    AnyOf(Vec<String>),
    Number(u64),
    Hex(Vec<u8>),
    /// Unix seconds.
    Time(u64),
    Flag(bool),
}

/// The verdict of a verification.
pub(super) enum Verdict {
    /// The gate accepts the peer.
    Accepted(Box<AttestedPeer>),
    /// The quote is genuine and allowed until this Unix second, but bound to no certificate.
    NotBound(u64),
    Refused(Denial),
    /// The server presented no certificate that could be verified.
    NoCertificate(ProbeError),
}

impl CheckValue {
    /// Text that may come from the peer.
    pub(super) fn text(text: impl Display) -> Self {
        Self::Text(escape(text))
    }

    pub(super) fn texts<T: Display>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::Texts(texts.into_iter().map(escape).collect())
    }

    pub(super) fn any_of<T: Display>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::AnyOf(texts.into_iter().map(escape).collect())
    }

    pub(super) fn hex(bytes: impl AsRef<[u8]>) -> Self {
        Self::Hex(bytes.as_ref().to_vec())
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Number(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

impl CheckReport {
    pub(super) fn new(name: &'static str, outcome: Outcome) -> Self {
        Self {
            name,
            outcome,
            values: Vec::new(),
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: CheckValue) -> Self {
        self.values.push((name, value));
        self
    }

    /// Adds `value` if it is known.
    pub(super) fn with_some(self, name: &'static str, value: Option<CheckValue>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

impl Outcome {
    pub(super) fn denied(denial: &Denial) -> Self {
        Self::Failed {
            code: denial.code(),
            text: escape(denial),
        }
    }

    pub(super) fn not_checked(reason: impl Into<String>) -> Self {
        Self::NotChecked(reason.into())
    }
}

impl Verdict {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Accepted(_) => 0,
            Self::NotBound(_) => 2,
            Self::Refused(denial) => match denial.fault() {
                Fault::Peer => 1,
                Fault::Ours => EX_UNAVAILABLE,
            },
            Self::NoCertificate(error) => match error {
                ProbeError::Unreachable(_)
                | ProbeError::Timeout(_)
                | ProbeError::NoTls(_)
                | ProbeError::Tls(_) => EX_UNAVAILABLE,
                // The server does not have the certificate's key.
                ProbeError::Certificate(_) => 1,
            },
        }
    }

    /// One of a closed list of words.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::NotBound(_) => "accepted_not_bound",
            Self::Refused(_) | Self::NoCertificate(_) => "refused",
        }
    }

    /// The peer that the gate accepts.
    pub(super) fn peer(&self) -> Option<&AttestedPeer> {
        match self {
            Self::Accepted(peer) => Some(peer),
            Self::NotBound(_) | Self::Refused(_) | Self::NoCertificate(_) => None,
        }
    }

    /// The last Unix second at which the verdict holds.
    pub(super) fn valid_until(&self) -> Option<u64> {
        match self {
            Self::Accepted(peer) => Some(peer.valid_until()),
            Self::NotBound(until) => Some(*until),
            Self::Refused(_) | Self::NoCertificate(_) => None,
        }
    }

    /// The code and text of a refusal.
    pub(super) fn reason(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Accepted(_) | Self::NotBound(_) => None,
            Self::Refused(denial) => Some((denial.code(), escape(denial))),
            Self::NoCertificate(error) => Some((error.code(), escape(error))),
        }
    }
}
