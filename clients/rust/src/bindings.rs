//! Functions that the packages for Python and Node.js share. They are not a public interface.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

use crate::{Error, certificates_from_pem};

/// What PEM begins with, and DER does not.
const PEM: &[u8] = b"-----BEGIN ";

/// Crates of this project.
const OWN_CRATES: [&str; 4] = ["engine", "attest", "teesql", "wire"];

/// The certificates in DER of parts that are DER or PEM.
///
/// # Errors
/// As [`certificates_from_pem`].
pub fn certificates(parts: &[impl AsRef<[u8]>]) -> Result<Vec<Vec<u8>>, Error> {
    let mut chain = Vec::new();
    for part in parts {
        let part: &[u8] = part.as_ref();
        if part.trim_ascii_start().starts_with(PEM) {
            chain.extend(certificates_from_pem(part)?);
        } else {
            chain.push(part.to_vec());
        }
    }
    Ok(chain)
}

/// Whether an event or a span belongs in an application's log, if its level is wanted: all of this project's crates, and of
/// others warnings and errors.
#[must_use]
pub fn is_wanted(metadata: &Metadata<'_>) -> bool {
    is_wanted_of(metadata.target(), *metadata.level())
}

fn is_wanted_of(target: &str, level: Level) -> bool {
    let krate = target.split("::").next().unwrap_or_default();
    // A more verbose level is greater.
    level <= Level::WARN || OWN_CRATES.contains(&krate)
}

/// An event as text: its message, then ` name=value` for each field.
#[must_use]
pub fn event_text(event: &Event<'_>) -> String {
    let mut text = Text::default();
    event.record(&mut text);
    text.message + &text.fields
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_other_crates_only_warnings_and_errors_are_wanted() {
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG] {
            assert!(is_wanted_of("engine::proxy::link", level), "{level}");
            assert!(is_wanted_of("teesql", level), "{level}");
            let is_severe = matches!(level, Level::ERROR | Level::WARN);
            for other in ["hyper::client", "hickory_resolver", "engineering::x", ""] {
                assert_eq!(is_wanted_of(other, level), is_severe, "{other} {level}");
            }
        }
    }
}
