//! The nonce of a verifier: a report that contains it cannot have been made before the request.
//!
//! Parsing is strict: a query that is not exactly one `nonce=<hex>` is rejected, so that a verifier
//! never receives a report for another nonce than the one it meant.

use std::fmt;

/// Maximum length of a nonce in bytes: the size of the SHA-256 hash that it goes into.
const MAX_BYTES: usize = 32;
/// The only query parameter of `/attestation`.
const PARAMETER: &str = "nonce";

/// A nonce of 1 to 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce(Vec<u8>);

/// Why a query is rejected. Never quotes the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NonceError {
    /// The value is empty.
    #[error("nonce is empty: give 2 to 64 hex digits")]
    Empty,
    /// More than 64 digits.
    #[error("nonce has more than 64 hex digits")]
    TooLong,
    /// An odd number of digits.
    #[error("nonce has an odd number of hex digits")]
    Odd,
    /// A character other than 0-9, a-f, A-F.
    #[error("nonce is not hex")]
    NotHex,
    /// Another parameter, or text that is not `name=value`.
    #[error("the only parameter is nonce=<hex>")]
    UnknownParameter,
    /// More than one nonce: it would be ambiguous which one counts.
    #[error("nonce is given more than once")]
    Repeated,
}

impl Nonce {
    /// Parses 2 to 64 hex digits of either case.
    ///
    /// # Errors
    /// [`NonceError`] for any other text.
    pub fn from_hex(digits: &str) -> Result<Self, NonceError> {
        match digits.len() {
            0 => Err(NonceError::Empty),
            long if long > 2 * MAX_BYTES => Err(NonceError::TooLong),
            odd if odd % 2 == 1 => Err(NonceError::Odd),
            _ => hex::decode(digits)
                .map(Self)
                .map_err(|_| NonceError::NotHex),
        }
    }

    /// Parses the query of a request to `/attestation`. Nothing is percent-decoded: hex digits
    /// never need it.
    pub(crate) fn from_query(query: Option<&str>) -> Result<Option<Self>, NonceError> {
        let Some(query) = query else { return Ok(None) };
        let mut found = None;
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some((PARAMETER, _)) if found.is_some() => return Err(NonceError::Repeated),
                Some((PARAMETER, digits)) => found = Some(Self::from_hex(digits)?),
                _ => return Err(NonceError::UnknownParameter),
            }
        }
        Ok(found)
    }

    /// The bytes of the nonce.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Nonce {
    /// Writes lowercase hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Option<Vec<u8>>, NonceError> {
        Nonce::from_query(Some(text)).map(|nonce| nonce.map(|nonce| nonce.as_bytes().to_vec()))
    }

    #[test]
    fn parses_one_nonce_in_either_case() {
        assert_eq!(Nonce::from_query(None), Ok(None));
        assert_eq!(query("nonce=00"), Ok(Some(vec![0])));
        assert_eq!(query("nonce=aBfF"), Ok(Some(vec![0xab, 0xff])));
        let longest = format!("nonce={}", "5a".repeat(32));
        assert_eq!(query(&longest), Ok(Some(vec![0x5a; 32])));
        assert_eq!(Nonce::from_hex("ABCD").unwrap().to_string(), "abcd");
    }

    #[test]
    fn rejects_other_queries_with_the_matching_error() {
        let refused = [
            ("nonce=", NonceError::Empty),
            ("nonce=abc", NonceError::Odd),
            ("nonce=zz", NonceError::NotHex),
            ("nonce=0x", NonceError::NotHex),
            ("nonce=+1", NonceError::NotHex),
            ("nonce=%61%62", NonceError::NotHex),
            ("nonce=61=6", NonceError::NotHex),
            ("nonce=aa&nonce=aa", NonceError::Repeated),
            ("nonce=aa&", NonceError::UnknownParameter),
            ("", NonceError::UnknownParameter),
            ("nonce", NonceError::UnknownParameter),
            ("Nonce=aa", NonceError::UnknownParameter),
            ("nonce%3Daa", NonceError::UnknownParameter),
            ("x=1&nonce=aa", NonceError::UnknownParameter),
        ];
        for (text, why) in refused {
            assert_eq!(query(text), Err(why), "{text}");
        }
        for digits in [65, 66, 8_000] {
            let long = format!("nonce={}", "a".repeat(digits));
            assert_eq!(query(&long), Err(NonceError::TooLong));
        }
    }
}
