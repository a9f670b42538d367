//! The JSON Web Key Set that tokens are signed with. [RFC 7517; RFC 7518, section 6.3]

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::RsaPublicKeyComponents;
use serde::Deserialize;
use url::Url;

use super::ItaError;
use super::algorithm::Algorithm;
use crate::limits::{MAX_KEY_SET_KEYS, MIN_RSA_BITS};

/// Longest time that a key set is cached, in seconds. For so long a key that Intel withdraws is accepted.
const MAX_AGE: u64 = 3600;

/// A key set, where and when it was fetched.
pub(super) struct KeySet {
    from: Url,
    fetched_at: u64,
    keys: Vec<Key>,
}

/// An RSA key. ring checks its numbers when it is used.
pub(super) struct Key {
    kid: String,
    algorithm: Option<String>,
    n: Vec<u8>,
    e: Vec<u8>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    /// The RSA key; `None` for a key of another type or for another use than signatures.
    fn into_key(self) -> Option<Key> {
        let signs = self.usage.is_none_or(|usage| usage == "sig");
        let number = |text: Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text?).ok();
        (self.kty == "RSA" && signs).then_some(())?;
        Some(Key {
            kid: self.kid?,
            algorithm: self.alg,
            n: number(self.n)?,
            e: number(self.e)?,
        })
    }
}

impl KeySet {
    pub(super) fn parse(body: &[u8], from: Url, now: u64) -> Result<Self, ItaError> {
        let document: Document =
            serde_json::from_slice(body).map_err(|_| ItaError::MalformedKeys)?;
        if document.keys.len() > MAX_KEY_SET_KEYS {
            return Err(ItaError::MalformedKeys);
        }
        Ok(Self {
            keys: document
                .keys
                .into_iter()
                .filter_map(Jwk::into_key)
                .collect(),
            fetched_at: now,
            from,
        })
    }

    /// Whether the set was fetched from `from`, and recently at `now`, in whichever direction a clock was
    /// set.
    pub(super) fn is_fresh_for(&self, from: &Url, now: u64) -> bool {
        self.from == *from && now.abs_diff(self.fetched_at) < MAX_AGE
    }

    /// Finds the key with this id, if it may sign with `algorithm`.
    pub(super) fn find(&self, kid: &str, algorithm: Algorithm) -> Result<&Key, ItaError> {
        let key = self.keys.iter().find(|key| key.kid == kid);
        let key = key.ok_or(ItaError::UnknownKey)?;
        let fits = key
            .algorithm
            .as_ref()
            .is_none_or(|a| a == algorithm.as_str());
        match fits {
            true if key.bits() < MIN_RSA_BITS => Err(ItaError::WeakKey),
            true => Ok(key),
            false => Err(ItaError::Algorithm),
        }
    }
}

impl Key {
    fn bits(&self) -> usize {
        let significant = self.n.iter().skip_while(|byte| **byte == 0);
        8 * significant.count()
    }

    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), ItaError> {
        let (n, e) = (self.n.as_slice(), self.e.as_slice());
        RsaPublicKeyComponents { n, e }
            .verify(algorithm.parameters(), signed, signature)
            .map_err(|_| ItaError::BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &str) -> Result<KeySet, ItaError> {
        let from = Url::parse("https://ita.example/certs").unwrap();
        KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes(), from, 1_000)
    }

    fn key(kid: &str, bytes: usize, more: &str) -> String {
        let n = BASE64_URL_SAFE_NO_PAD.encode(vec![0xc1; bytes]);
        format!(r#"{{"kty":"RSA","kid":"{kid}","n":"{n}","e":"AQAB"{more}}}"#)
    }

    #[test]
    fn finds_keys_by_id_and_use() {
        let keys = [
            key("plain", 256, ""),
            key("ps", 384, r#","alg":"PS384","use":"sig""#),
            key("encrypts", 256, r#","use":"enc""#),
            key("weak", 255, ""),
            r#"{"kty":"EC","kid":"ec","crv":"P-256","x":"AA","y":"AA"}"#.into(),
        ];
        let set = set(&keys.join(",")).unwrap();
        let find = |kid, algorithm| set.find(kid, algorithm).map(|key| key.kid.as_str());
        assert_eq!(find("plain", Algorithm::Ps384), Ok("plain"));
        assert_eq!(find("plain", Algorithm::Rs256), Ok("plain"));
        assert_eq!(find("ps", Algorithm::Ps384), Ok("ps"));
        assert_eq!(find("ps", Algorithm::Rs256), Err(ItaError::Algorithm));
        assert_eq!(find("weak", Algorithm::Ps384), Err(ItaError::WeakKey));
        for unknown in ["encrypts", "ec", "", "PLAIN"] {
            assert_eq!(find(unknown, Algorithm::Ps384), Err(ItaError::UnknownKey));
        }
    }

    #[test]
    fn a_set_is_capped_and_expires() {
        let many = vec![key("k", 256, ""); MAX_KEY_SET_KEYS];
        assert!(set(&many.join(",")).is_ok());
        let more = vec![key("k", 256, ""); MAX_KEY_SET_KEYS + 1];
        assert!(set(&more.join(",")).is_err());
        let set = set("").unwrap();
        let (from, other) = ("https://ita.example/certs", "https://ita.example/other");
        let [from, other] = [from, other].map(|url| Url::parse(url).unwrap());
        assert!(set.is_fresh_for(&from, 1_000) && set.is_fresh_for(&from, 4_599));
        assert!(!set.is_fresh_for(&from, 4_600) && !set.is_fresh_for(&other, 1_000));
    }
}
