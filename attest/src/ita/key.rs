//! The API key, a secret that is sent with each appraisal.

use std::fmt;

use bytes::Bytes;
use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use super::ItaError;

/// Maximum length of an API key, in bytes. Intel's have about 40.
pub const MAX_API_KEY_LEN: usize = 512;

/// An API key of Trust Authority. Not shown by `Debug`, and wiped when its last clone is dropped. Copies
/// that the HTTP client made on the way to TLS are not wiped.
#[derive(Clone)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// Creates a key from text. Trims white space, such as a file's final newline. The caller has to wipe
    /// its own copy.
    ///
    /// # Errors
    /// [`ItaError::MissingKey`] if it is empty; [`ItaError::BadKey`] if it has more than
    /// [`MAX_API_KEY_LEN`] bytes, or others than visible ASCII.
    pub fn new(text: &str) -> Result<Self, ItaError> {
        let key = text.trim_ascii();
        if key.is_empty() {
            return Err(Self::missing());
        }
        if key.len() > MAX_API_KEY_LEN || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ItaError::BadKey);
        }
        let wiped = Bytes::from_owner(Zeroizing::new(key.as_bytes().to_vec()));
        let mut header = HeaderValue::from_maybe_shared(wiped).map_err(|_| ItaError::BadKey)?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// The error to report if no key is configured.
    #[must_use]
    pub fn missing() -> ItaError {
        ItaError::MissingKey
    }

    /// The header value, which shares the key's bytes.
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_key() {
        let key = ApiKey::new(" djE6c2VjcmV0\n").unwrap();
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
        assert!(!format!("{:?}", key.header()).contains("djE6"));
        assert_eq!(key.header().as_bytes(), b"djE6c2VjcmV0");
    }

    #[test]
    fn rejects_invalid_keys() {
        assert_eq!(ApiKey::new(" \n").unwrap_err(), ItaError::MissingKey);
        assert_eq!(
            ApiKey::missing().to_string(),
            "Intel Trust Authority API key required. Pass { apiKey } option or set \
             INTEL_TRUST_AUTHORITY_API_KEY env var. Register at https://portal.trustauthority.intel.com"
        );
        for wrong in ["a b", "a\r\nx-other: b", "schlüssel", &"k".repeat(513)] {
            assert_eq!(ApiKey::new(wrong).unwrap_err(), ItaError::BadKey);
        }
        assert!(ApiKey::new(&"k".repeat(512)).is_ok());
    }
}
