//! Escapes text from peers for terminals and logs.

use std::fmt::Display;

/// Maximum characters of one text from a peer. A certificate's subject has a few dozen.
const MAX_TEXT: usize = 512;

/// Replaces characters that a terminal would interpret, or that could be mistaken for others: control
/// and format characters and the backslash are written as `\u{…}` or `\\`. Truncates long texts.
pub(crate) fn escape(text: impl Display) -> String {
    let text = text.to_string();
    let mut escaped = String::new();
    let mut rest = text.chars();
    for char in rest.by_ref().take(MAX_TEXT) {
        match char {
            '"' | '\'' => escaped.push(char),
            other => escaped.extend(other.escape_debug()),
        }
    }
    if rest.next().is_some() {
        escaped.push('…');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_terminal_sequences_and_truncates() {
        let text = "a\u{1b}[31mb\u{9b}c\rd\ne\u{202e}f\u{200b}g\0h\u{7f}\u{feff}\\";
        let escaped = escape(text);
        assert_eq!(
            escaped,
            r"a\u{1b}[31mb\u{9b}c\rd\ne\u{202e}f\u{200b}g\0h\u{7f}\u{feff}\\"
        );
        assert!(escaped.chars().all(|char| !char.is_control()));
        assert_eq!(
            escape(r#"{"name":"kms"} it's Straße"#),
            r#"{"name":"kms"} it's Straße"#
        );
        let long = escape("\u{1b}".repeat(MAX_TEXT + 1));
        assert_eq!(long.chars().count(), MAX_TEXT * r"\u{1b}".len() + 1);
    }
}
