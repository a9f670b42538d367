//! The report: what text and JSON are both written from.

use std::fmt::Display;

use attest::Denial;
use attest::denial::Fault;

use super::server::Trouble;
use crate::cli::output::EX_UNAVAILABLE;

/// Most characters of one text of a peer's. A subject has some dozens.
const MAX_TEXT: usize = 512;

/// Everything that is told.
pub(super) struct Report {
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// Unix seconds.
    pub(super) at: u64,
    pub(super) policy: String,
    pub(super) dangerous_root: bool,
    pub(super) steps: Vec<Step>,
    pub(super) verdict: Verdict,
}

/// One step.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) state: State,
    pub(super) facts: Vec<(&'static str, Fact)>,
}

/// How a step went.
pub(super) enum State {
    Ok,
    Failed { code: &'static str, text: String },
    NotChecked(String),
}

/// Something that a step found.
pub(super) enum Fact {
    Text(String),
    Texts(Vec<String>),
    /// An allow-list: empty is any.
    AnyOf(Vec<String>),
    Number(u64),
    Hex(Vec<u8>),
    /// Unix seconds.
    Time(u64),
    Flag(bool),
}

/// The end of the story.
pub(super) enum Verdict {
    /// By the gate's own judgement; until this unix second.
    Accepted(u64),
    /// Genuine and allowed, and nobody's.
    NotBound(u64),
    Refused(Denial),
    /// The server showed no certificate that could be judged.
    NoCertificate(Trouble),
}

impl Fact {
    /// A text that may be the peer's.
    pub(super) fn text(text: impl Display) -> Self {
        Self::Text(printable(&text.to_string()))
    }

    pub(super) fn texts<T: Display>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::Texts(printables(texts))
    }

    pub(super) fn any_of<T: Display>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::AnyOf(printables(texts))
    }

    pub(super) fn hex(bytes: impl AsRef<[u8]>) -> Self {
        Self::Hex(bytes.as_ref().to_vec())
    }
}

fn printables<T: Display>(texts: impl IntoIterator<Item = T>) -> Vec<String> {
    texts
        .into_iter()
        .map(|text| printable(&text.to_string()))
        .collect()
}

/// The text without anything that a terminal would obey or that could be mistaken:
/// control and format characters are written as `\u{…}`, and so is the backslash.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.chars();
    for char in rest.by_ref().take(MAX_TEXT) {
        match char {
            '"' | '\'' => shown.push(char),
            other => shown.extend(other.escape_debug()),
        }
    }
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

impl Step {
    pub(super) fn new(name: &'static str, state: State) -> Self {
        Self {
            name,
            state,
            facts: Vec::new(),
        }
    }

    pub(super) fn with(mut self, name: &'static str, fact: Fact) -> Self {
        self.facts.push((name, fact));
        self
    }

    /// With `fact`, if there is one.
    pub(super) fn with_some(self, name: &'static str, fact: Option<Fact>) -> Self {
        match fact {
            Some(fact) => self.with(name, fact),
            None => self,
        }
    }
}

impl State {
    pub(super) fn of<T>(result: &Result<T, Denial>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(denial) => Self::denied(denial),
        }
    }

    pub(super) fn denied(denial: &Denial) -> Self {
        Self::Failed {
            code: denial.code(),
            text: printable(&denial.to_string()),
        }
    }

    pub(super) fn not_checked(why: impl Into<String>) -> Self {
        Self::NotChecked(why.into())
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
            Self::NoCertificate(trouble) => trouble.exit_code(),
        }
    }

    /// A word from a closed list.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::NotBound(_) => "accepted_not_bound",
            Self::Refused(_) | Self::NoCertificate(_) => "refused",
        }
    }

    pub(super) fn valid_until(&self) -> Option<u64> {
        match self {
            Self::Accepted(until) | Self::NotBound(until) => Some(*until),
            Self::Refused(_) | Self::NoCertificate(_) => None,
        }
    }

    /// Code and text of a refusal.
    pub(super) fn reason(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Accepted(_) | Self::NotBound(_) => None,
            Self::Refused(denial) => Some((denial.code(), printable(&denial.to_string()))),
            Self::NoCertificate(trouble) => Some((trouble.code(), printable(&trouble.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal() {
        let nasty = "a\u{1b}[31mb\u{9b}c\rd\ne\u{202e}f\u{200b}g\0h\u{7f}\u{feff}\\";
        let shown = printable(nasty);
        assert_eq!(
            shown,
            r"a\u{1b}[31mb\u{9b}c\rd\ne\u{202e}f\u{200b}g\0h\u{7f}\u{feff}\\"
        );
        assert!(shown.chars().all(|char| !char.is_control()));
        assert_eq!(
            printable(r#"{"name":"kms"} it's Straße"#),
            r#"{"name":"kms"} it's Straße"#
        );
        let long = printable(&"\u{1b}".repeat(MAX_TEXT + 1));
        assert_eq!(long.chars().count(), MAX_TEXT * r"\u{1b}".len() + 1);
    }
}
