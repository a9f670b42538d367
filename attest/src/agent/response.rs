//! Reading an answer field by field, so that an error can say which one was wrong.
//!
//! serde's own messages are never shown: they quote the value that was not expected.

use std::collections::HashMap;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{AgentError, Method};
use crate::values::HexError;

/// A JSON object whose fields have not been read. Unknown ones are ignored.
pub(super) struct ResponseFields<'a> {
    method: Method,
    fields: HashMap<String, &'a RawValue>,
}

impl<'a> ResponseFields<'a> {
    pub(super) fn parse(method: Method, body: &'a [u8]) -> Result<Self, AgentError> {
        let fields = serde_json::from_slice(body).map_err(|_| AgentError::NotJson { method })?;
        Ok(Self { method, fields })
    }

    /// An object inside a string field. Its fields are named `<field>.<name>` then.
    pub(super) fn nested(&self, field: &'static str, json: &'a str) -> Result<Self, AgentError> {
        let fields = serde_json::from_str(json)
            .map_err(|_| self.malformed(field, "holds no JSON object"))?;
        Ok(Self {
            method: self.method,
            fields,
        })
    }

    pub(super) fn malformed(&self, field: &'static str, why: &'static str) -> AgentError {
        AgentError::Malformed {
            method: self.method,
            field,
            why,
        }
    }

    /// A field as it is written; `None` if it is not there, or null.
    pub(super) fn raw(&self, field: &'static str) -> Option<&'a str> {
        let name = field.rsplit('.').next().unwrap_or(field);
        let raw = self.fields.get(name).map(|raw| raw.get());
        raw.filter(|raw| *raw != "null")
    }

    fn value<T: DeserializeOwned>(
        &self,
        field: &'static str,
        otherwise: &'static str,
    ) -> Result<T, AgentError> {
        let raw = self
            .raw(field)
            .ok_or_else(|| self.malformed(field, "is missing"))?;
        serde_json::from_str(raw).map_err(|_| self.malformed(field, otherwise))
    }

    /// A string of at most `max` bytes.
    pub(super) fn text(&self, field: &'static str, max: usize) -> Result<String, AgentError> {
        let text: String = self.value(field, "is no string")?;
        match text.len() <= max {
            true => Ok(text),
            false => Err(self.malformed(field, "is too long")),
        }
    }

    /// The same, empty if the agent has no such field.
    pub(super) fn text_or_empty(
        &self,
        field: &'static str,
        max: usize,
    ) -> Result<String, AgentError> {
        match self.raw(field) {
            None => Ok(String::new()),
            Some(_) => self.text(field, max),
        }
    }

    /// The same, wiped when dropped.
    pub(super) fn secret(
        &self,
        field: &'static str,
        max: usize,
    ) -> Result<Zeroizing<String>, AgentError> {
        let text = Zeroizing::new(self.value::<String>(field, "is no string")?);
        match text.len() <= max {
            true => Ok(text),
            false => Err(self.malformed(field, "is too long")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self, field: &'static str) -> Result<Vec<String>, AgentError> {
        self.value(field, "is no list of strings")
    }

    /// At most `max` bytes in hex.
    pub(super) fn hex(&self, field: &'static str, max: usize) -> Result<Vec<u8>, AgentError> {
        let text = self.text(field, 2 * max)?;
        hex::decode(text).map_err(|_| self.malformed(field, "is no hex"))
    }

    /// A value of fixed length in hex.
    pub(super) fn hex_value<T: FromStr<Err = HexError>>(
        &self,
        field: &'static str,
    ) -> Result<T, AgentError> {
        let text: String = self.value(field, "is no string")?;
        let wrong = "is not hex of the right length";
        text.parse().map_err(|_| self.malformed(field, wrong))
    }

    /// The same, `None` if the agent has no such field, or leaves it empty.
    pub(super) fn optional_hex_value<T: FromStr<Err = HexError>>(
        &self,
        field: &'static str,
    ) -> Result<Option<T>, AgentError> {
        match self.raw(field) {
            None | Some(r#""""#) => Ok(None),
            Some(_) => self.hex_value(field).map(Some),
        }
    }
}
