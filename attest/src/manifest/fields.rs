//! Splits a record into key-value pairs, with caps, sorted by key.

use std::str::FromStr;

use super::ManifestError;
use crate::limits::{MAX_MANIFEST_FIELDS, MAX_MANIFEST_KEY_LEN, MAX_MANIFEST_LEN};

pub(super) const NOT_ASCII: ManifestError =
    ManifestError::Malformed("it has characters other than printable ASCII");

/// The pairs of a record, sorted by key, without duplicates.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

/// Turns the parse error of a field's type into one that names the field.
pub(super) trait FieldError {
    fn for_field(self, name: &'static str) -> ManifestError;
}

impl FieldError for super::EthAddressError {
    fn for_field(self, name: &'static str) -> ManifestError {
        let expected = "0x and 40 hex digits";
        ManifestError::Value { name, expected }
    }
}

impl FieldError for ManifestError {
    fn for_field(self, _: &'static str) -> ManifestError {
        self
    }
}

impl<'a> Fields<'a> {
    pub(super) fn split(txt: &'a str) -> Result<Self, ManifestError> {
        if txt.len() > MAX_MANIFEST_LEN {
            return Err(ManifestError::TooLong);
        }
        if !txt.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(NOT_ASCII);
        }
        if txt.split(';').nth(MAX_MANIFEST_FIELDS).is_some() {
            return Err(ManifestError::TooManyFields);
        }
        let mut pairs: Vec<_> = txt.split(';').map(pair).collect::<Result<_, _>>()?;
        pairs.sort_unstable_by_key(|(key, _)| *key);
        let mut adjacent = pairs.iter().zip(pairs.iter().skip(1));
        match adjacent.find(|((key, _), (next, _))| key == next) {
            Some(((key, _), _)) => Err(ManifestError::Repeated(name_of(key))),
            None => Ok(Self(pairs)),
        }
    }

    fn value(&self, name: &'static str) -> Result<&'a str, ManifestError> {
        let found = self.0.iter().find(|(key, _)| *key == name);
        let (_, value) = found.ok_or(ManifestError::Missing(name))?;
        Ok(value)
    }

    pub(super) fn parse<T>(&self, name: &'static str) -> Result<T, ManifestError>
    where
        T: FromStr,
        T::Err: FieldError,
    {
        self.value(name)?
            .parse()
            .map_err(|error: T::Err| error.for_field(name))
    }

    /// Parses a decimal number in canonical form: no sign, no leading zero.
    pub(super) fn uint(&self, name: &'static str) -> Result<u64, ManifestError> {
        let text = self.value(name)?;
        let number = text.parse().ok();
        number
            .filter(|number: &u64| number.to_string() == text)
            .ok_or(ManifestError::Value {
                name,
                expected: "a decimal number below 2^64",
            })
    }

    /// The text that the signature is over.
    pub(super) fn signed_text(&self) -> String {
        let signed = self.0.iter().filter(|(key, _)| *key != "sig");
        let pairs: Vec<String> = signed
            .map(|(key, value)| match *key {
                "cluster" | "leader_instance" => format!("{key}={}", value.to_ascii_lowercase()),
                _ => format!("{key}={value}"),
            })
            .collect();
        pairs.join(";")
    }
}

fn pair(text: &str) -> Result<(&str, &str), ManifestError> {
    let (key, value) = text
        .split_once('=')
        .ok_or(ManifestError::Malformed("a field is not key=value"))?;
    let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if key.is_empty() || key.len() > MAX_MANIFEST_KEY_LEN || !key.bytes().all(plain) {
        return Err(ManifestError::Malformed(
            "a key is not 1 to 32 lowercase letters, digits or underscores",
        ));
    }
    Ok((key, value))
}

fn name_of(key: &str) -> &'static str {
    let known = [
        "v",
        "cluster",
        "leader_instance",
        "leader_url",
        "epoch",
        "valid_until",
        "sig",
    ];
    let found = known.into_iter().find(|name| *name == key);
    found.unwrap_or("an unknown field")
}
