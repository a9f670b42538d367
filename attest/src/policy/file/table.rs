//! Reads the keys of one entry, and remembers which there are.

use std::str::FromStr;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ANY, Mistake, Parser};
use crate::limits::{MAX_POLICY_NAME_LEN, MAX_POLICY_VALUES};

/// The keys that say what an operating system is.
pub(super) const NEVER_ANY: [&str; 3] = ["mrtd", "rtmr1", "rtmr2"];

/// One entry of a policy file while it is read.
pub(super) struct TableReader<'p, 'd, 't> {
    parser: &'p mut Parser<'t>,
    table: &'d DeTable<'d>,
    /// `peer "orders api"`, or `peer 2` if it has no usable name.
    label: String,
    /// The line that the entry begins at.
    line: usize,
    known: Vec<&'static str>,
}

impl<'p, 'd, 't> TableReader<'p, 'd, 't> {
    pub(super) fn new(
        parser: &'p mut Parser<'t>,
        kind: &'static str,
        number: usize,
        line: usize,
        table: &'d DeTable<'d>,
    ) -> Self {
        let name = table.get("name").and_then(|name| name.get_ref().as_str());
        let label = match name {
            Some(name) if is_name(name) => format!("{kind} {name:?}"),
            Some(_) | None => format!("{kind} {number}"),
        };
        Self {
            parser,
            table,
            label,
            line,
            known: Vec::new(),
        }
    }

    /// Reports the keys that were not read.
    pub(super) fn finish(self) {
        for (key, _) in self.table {
            let name = &**key.get_ref();
            if !self.known.contains(&name) {
                let line = self.parser.line_of(key.span().start);
                let text = format!(
                    "{}: {name}: unknown key; the keys are {}",
                    self.label,
                    self.known.join(", ")
                );
                self.parser.mistake(line, text);
            }
        }
    }

    pub(super) fn context(&self) -> &'t super::Context<'t> {
        self.parser.context
    }

    /// Records a mistake about `key`, or about the entry if it has no such key.
    pub(super) fn mistake(&mut self, key: &str, text: impl AsRef<str>) {
        let line = match self.table.get_key_value(key) {
            Some((key, _)) => self.parser.line_of(key.span().start),
            None => self.line,
        };
        let text = format!("{}: {key}: {}", self.label, text.as_ref());
        self.parser.mistakes.push(Mistake { line, text });
    }

    /// Records a mistake about the entry as a whole.
    pub(super) fn mistake_of_entry(&mut self, text: &str) {
        let text = format!("{}: {text}", self.label);
        self.parser.mistake(self.line, text);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `key` is the word [`ANY`].
    pub(super) fn is_any(&self, key: &str) -> bool {
        let value = self.table.get(key);
        value.is_some_and(|value| value.get_ref().as_str() == Some(ANY))
    }

    /// Whether `key` is `true`.
    pub(super) fn is_true(&self, key: &str) -> bool {
        let value = self.table.get(key);
        value.is_some_and(|value| value.get_ref().as_bool() == Some(true))
    }

    fn value(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// The entry's name, which every entry has.
    pub(super) fn name(&mut self) -> Option<Arc<str>> {
        let value = self.value("name");
        match value.map(|value| value.get_ref().as_str()) {
            Some(Some(name)) if is_name(name) => Some(name.into()),
            Some(_) => {
                let text = format!(
                    "expected a text of 1 to {MAX_POLICY_NAME_LEN} bytes without control characters"
                );
                self.mistake("name", text);
                None
            }
            None => {
                self.mistake("name", "not set: the log names entries by it");
                None
            }
        }
    }

    /// A list of values: one text, several, or [`ANY`]. Empty if it is not set, or `any`.
    pub(super) fn list<T: FromStr<Err: ToString> + Ord>(&mut self, key: &'static str) -> Vec<T> {
        let mut values: Vec<T> = Vec::new();
        for (text, line) in self.texts(key).unwrap_or_default() {
            match text.parse() {
                Ok(value) if values.contains(&value) => {
                    self.mistake_at(line, key, "the same value twice: delete one");
                }
                Ok(value) => values.push(value),
                Err(error) => self.mistake_at(line, key, error.to_string()),
            }
        }
        values.sort();
        values
    }

    /// The texts of a list with their lines; `None` if it is not set, or `any`.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<(&'d str, usize)>> {
        let value = self.value(key)?;
        let wrong = format!("expected a text, a list of texts, or {ANY:?} for any value");
        let items: Vec<_> = match value.get_ref() {
            DeValue::String(text) if text == ANY => return None,
            DeValue::String(_) => vec![value],
            DeValue::Array(items) => items.iter().collect(),
            _ => {
                self.mistake(key, wrong);
                return None;
            }
        };
        if items.is_empty() && NEVER_ANY.contains(&key) {
            self.mistake(key, "an empty list allows nothing: write the value");
        } else if items.is_empty() {
            let text = format!("an empty list allows nothing: write {key} = {ANY:?} for any value");
            self.mistake(key, text);
        }
        if items.len() > MAX_POLICY_VALUES {
            self.mistake(key, format!("more than {MAX_POLICY_VALUES} values"));
            return None;
        }
        let mut texts = Vec::new();
        for item in items {
            let line = self.parser.line_of(item.span().start);
            match item.get_ref().as_str() {
                Some("") => {
                    let text = format!("an empty text: write {key} = {ANY:?} for any value");
                    self.mistake_at(line, key, text);
                }
                Some(ANY) => {
                    let text = format!("{ANY:?} in a list: write {key} = {ANY:?} alone");
                    self.mistake_at(line, key, text);
                }
                Some(text) => texts.push((text, line)),
                None => self.mistake_at(line, key, &wrong),
            }
        }
        Some(texts)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?.get_ref();
        let flag = value.as_bool();
        if flag.is_none() {
            self.mistake(key, "expected true or false");
        }
        flag
    }

    /// A number from 1 to a million.
    pub(super) fn count(&mut self, key: &'static str) -> Option<u32> {
        let value = self.value(key)?.get_ref();
        let number = value
            .as_integer()
            .and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok())
            .filter(|number| (1..=1_000_000).contains(number));
        if number.is_none() {
            self.mistake(key, "expected a number from 1 to 1000000");
        }
        number
    }

    pub(super) fn mistake_at(&mut self, line: usize, key: &str, text: impl AsRef<str>) {
        let text = format!("{}: {key}: {}", self.label, text.as_ref());
        self.parser.mistake(line, text);
    }
}

fn is_name(name: &str) -> bool {
    let long = name.len() > MAX_POLICY_NAME_LEN;
    !name.trim().is_empty() && !long && !name.chars().any(char::is_control)
}
