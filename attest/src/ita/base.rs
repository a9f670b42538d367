//! The base URL of a Trust Authority, and the origins from which its keys may come.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use url::{Host, Origin, Url};

use crate::limits::MAX_JKU_LEN;

/// Intel's service outside the European Union.
pub const INTEL_US: &str = "https://api.trustauthority.intel.com";
/// Intel's service in the European Union.
pub const INTEL_EU: &str = "https://api.eu.trustauthority.intel.com";
/// Each of Intel's services publishes its keys on a separate host, which its tokens name.
/// [Intel, trustauthority-client-for-go: BaseUrl and ApiUrl of each region]
const KEYS_US: &str = "https://portal.trustauthority.intel.com";
const KEYS_EU: &str = "https://portal.eu.trustauthority.intel.com";

/// A Trust Authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// [`INTEL_US`].
    #[default]
    Us,
    /// [`INTEL_EU`].
    Eu,
    /// Another one, for tests: https, or http on a loopback address. It must publish its own keys.
    Url(String),
}

/// A text that does not name a Trust Authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// It is not a URL.
    #[error("a Trust Authority is `us`, `eu`, or a URL")]
    NotAUrl,
    /// It is plain http to another host, where an attacker on the network could answer.
    #[error("a Trust Authority's URL must be https, or http on a loopback address")]
    Scheme,
    /// The URL holds a user name or password, which would end up in logs.
    #[error("a Trust Authority's URL must not hold a user name or password")]
    Credentials,
    /// The URL holds a query or fragment, which would end up in the middle of the request URLs.
    #[error("a Trust Authority's URL must not hold a query or fragment")]
    Query,
}

impl FromStr for Base {
    type Err = BaseError;

    /// `us`, `eu`, or a URL.
    fn from_str(text: &str) -> Result<Self, BaseError> {
        match text {
            "us" => Ok(Self::Us),
            "eu" => Ok(Self::Eu),
            other => parse(other).map(|_| Self::Url(other.to_owned())),
        }
    }
}

impl Base {
    pub(super) fn endpoints(&self) -> Result<Endpoints, BaseError> {
        let (base, keys) = match self {
            Self::Us => (INTEL_US, Some(KEYS_US)),
            Self::Eu => (INTEL_EU, Some(KEYS_EU)),
            Self::Url(url) => (url.as_str(), None),
        };
        let base = parse(base)?;
        let mut origins = vec![base.origin()];
        if let Some(keys) = keys {
            origins.push(parse(keys)?.origin());
        }
        let attest = format!(
            "{}/appraisal/v2/attest",
            base.as_str().trim_end_matches('/')
        );
        Ok(Endpoints {
            attest: Url::parse(&attest).map_err(|_| BaseError::NotAUrl)?,
            origins,
        })
    }
}

fn parse(text: &str) -> Result<Url, BaseError> {
    let url = Url::parse(text).map_err(|_| BaseError::NotAUrl)?;
    // IP addresses only: a name such as localhost may resolve to any address.
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => Ipv4Addr::is_loopback(&address),
        Some(Host::Ipv6(address)) => Ipv6Addr::is_loopback(&address),
        Some(Host::Domain(_)) | None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return Err(BaseError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BaseError::Credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(BaseError::Query);
    }
    Ok(url)
}

/// The URLs of one Trust Authority.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// The appraisal endpoint.
    pub(super) attest: Url,
    /// The origins (scheme, host and port) from which keys may be fetched.
    origins: Vec<Origin>,
}

impl Endpoints {
    /// Parses a token's `jku`. `None` unless it is at one of the origins.
    pub(super) fn keys_url(&self, jku: &str) -> Option<Url> {
        let url = Url::parse(jku)
            .ok()
            .filter(|url| jku.len() <= MAX_JKU_LEN && self.origins.contains(&url.origin()))?;
        (url.username().is_empty() && url.password().is_none()).then_some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(base: &Base, jku: &str) -> bool {
        base.endpoints().unwrap().keys_url(jku).is_some()
    }

    #[test]
    fn accepts_a_jku_of_the_same_service_only() {
        let us = "https://portal.trustauthority.intel.com/certs";
        let eu = "https://portal.eu.trustauthority.intel.com/certs";
        assert!(accepts(&Base::Us, us) && accepts(&Base::Eu, eu));
        assert!(accepts(
            &Base::Us,
            "https://api.trustauthority.intel.com:443/certs"
        ));
        assert!(!accepts(&Base::Us, eu) && !accepts(&Base::Eu, us));
        let own = Base::Url("https://ita.example:8443/prefix/".into());
        assert!(accepts(&own, "https://ita.example:8443/certs"));
        assert!(!accepts(&own, us));
        for elsewhere in [
            "",
            "certs",
            "/certs",
            "http://portal.trustauthority.intel.com/certs",
            "https://portal.trustauthority.intel.com:8443/certs",
            "https://portal.trustauthority.intel.com.evil.example/certs",
            "https://portal.trustauthority.intel.com@evil.example/certs",
            "https://evil@portal.trustauthority.intel.com/certs",
            "https://evil.example/portal.trustauthority.intel.com/certs",
            "https://evil.example#https://portal.trustauthority.intel.com/certs",
            "https://eviltrustauthority.intel.com/certs",
            "file:///etc/passwd",
            "data:application/json,{}",
        ] {
            assert!(!accepts(&Base::Us, elsewhere), "{elsewhere}");
        }
        let long = format!("{us}/{}", "a".repeat(MAX_JKU_LEN));
        assert!(!accepts(&Base::Us, &long));
    }

    #[test]
    fn a_base_is_https_or_loopback() {
        let attest = |base: Base| base.endpoints().unwrap().attest.to_string();
        assert_eq!(attest(Base::Us), format!("{INTEL_US}/appraisal/v2/attest"));
        assert_eq!(attest(Base::Eu), format!("{INTEL_EU}/appraisal/v2/attest"));
        assert_eq!("us".parse(), Ok(Base::Us));
        assert_eq!("eu".parse(), Ok(Base::Eu));
        let slash = "http://127.0.0.1:8080/";
        assert_eq!(
            attest(slash.parse().unwrap()),
            "http://127.0.0.1:8080/appraisal/v2/attest"
        );
        for (text, error) in [
            ("asia", BaseError::NotAUrl),
            ("http://ita.example", BaseError::Scheme),
            ("http://localhost:80", BaseError::Scheme),
            ("http://10.0.0.1", BaseError::Scheme),
            ("ftp://127.0.0.1", BaseError::Scheme),
            ("https://key@ita.example", BaseError::Credentials),
            ("https://ita.example?region=us", BaseError::Query),
            ("https://ita.example#us", BaseError::Query),
        ] {
            assert_eq!(text.parse::<Base>(), Err(error), "{text}");
            assert!(Base::Url(text.into()).endpoints().is_err());
        }
    }
}
