//! Reads a JSON response field by field, so that an error names the field.
//!
//! serde's own messages are never shown: they quote the unexpected value, which may be a key.

use std::collections::HashMap;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{AgentError, Method};
use crate::values::HexError;

/// A JSON object whose fields are parsed on access. Unknown fields are ignored.
pub(super) struct ResponseFields<'a> {
    method: Method,
    fields: HashMap<String, &'a RawValue>,
}

impl<'a> ResponseFields<'a> {
    pub(super) fn parse(method: Method, body: &'a [u8]) -> Result<Self, AgentError> {
        let fields = serde_json::from_slice(body).map_err(|_| AgentError::NotJson { method })?;
        Ok(Self { method, fields })
    }

    /// Parses an object inside a string field. Its fields are named `<field>.<name>`.
    pub(super) fn nested(&self, field: &'static str, json: &'a str) -> Result<Self, AgentError> {
        let fields = serde_json::from_str(json)
            .map_err(|_| self.malformed(field, "is not a JSON object"))?;
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

    /// A field as raw JSON; `None` if it is absent or null.
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
        let text: String = self.value(field, "is not a string")?;
        match text.len() <= max {
            true => Ok(text),
            false => Err(self.malformed(field, "is too long")),
        }
    }

    /// A string of at most `max` bytes; empty if the field is absent.
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

    /// A string of at most `max` bytes that is wiped when dropped.
    pub(super) fn secret(
        &self,
        field: &'static str,
        max: usize,
    ) -> Result<Zeroizing<String>, AgentError> {
        let text = Zeroizing::new(self.value::<String>(field, "is not a string")?);
        match text.len() <= max {
            true => Ok(text),
            false => Err(self.malformed(field, "is too long")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self, field: &'static str) -> Result<Vec<String>, AgentError> {
        self.value(field, "is not a list of strings")
    }

    /// At most `max` bytes, from hex.
    pub(super) fn hex(&self, field: &'static str, max: usize) -> Result<Vec<u8>, AgentError> {
        let text = self.text(field, 2 * max)?;
        hex::decode(text).map_err(|_| self.malformed(field, "is not hex"))
    }

    /// A value of fixed length, from hex.
    pub(super) fn hex_value<T: FromStr<Err = HexError>>(
        &self,
        field: &'static str,
    ) -> Result<T, AgentError> {
        let text: String = self.value(field, "is not a string")?;
        let wrong = "is not hex of the right length";
        text.parse().map_err(|_| self.malformed(field, wrong))
    }

    /// A value of fixed length, from hex; `None` if the field is absent or empty.
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
