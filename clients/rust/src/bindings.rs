//! Functions that the packages for Python and Node.js share. They are not a public interface.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

use crate::{Error, certificates_from_pem};

/// What PEM begins with, and DER does not.
const PEM: &[u8] = b"-----BEGIN ";

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
