//! The leading instance and its address.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

use super::ManifestError;
use crate::limits::{MAX_INSTANCE_DIGITS, MAX_LEADER_URL_LEN};
use crate::values::InstanceId;

/// The id of the leading instance: hex, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderInstance(String);

impl LeaderInstance {
    /// The hex digits, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As dstack's instance id, to compare with what the leader's event log proves. `None` if it has another
    /// length.
    #[must_use]
    pub fn instance_id(&self) -> Option<InstanceId> {
        self.0.parse().ok()
    }
}

impl FromStr for LeaderInstance {
    type Err = ManifestError;

    /// An even number of hex digits in any case, at most [`MAX_INSTANCE_DIGITS`].
    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let whole = text.len().is_multiple_of(2) && !text.is_empty();
        if !digits || !whole || text.len() > MAX_INSTANCE_DIGITS {
            return Err(ManifestError::Value {
                name: "leader_instance",
                expected: "bytes in hex",
            });
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for LeaderInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host and port to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// A name in ASCII and lower case, or an IP address (IPv6 without brackets).
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port. Never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Target {
    /// `host:port`, with IPv6 addresses in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A leader's URL: http or https with a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderUrl {
    text: String,
    target: Target,
}

impl LeaderUrl {
    /// The URL as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port. Without a port it is 443 for https and 80 for http.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }
}

impl FromStr for LeaderUrl {
    type Err = ManifestError;

    /// An absolute http or https URL. A path and a query are accepted and ignored.
    fn from_str(text: &str) -> Result<Self, ManifestError> {
        check_text(text)?;
        let wrong = ManifestError::LeaderUrl;
        let url = Url::parse(text).map_err(|_| wrong("it is not an absolute URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("its scheme is neither http nor https"));
        }
        // The URL standard accepts `https:host` and `https:///host` too.
        let rest = text.get(url.scheme().len()..).unwrap_or_default();
        let authority = rest.strip_prefix("://").unwrap_or_default();
        if authority.is_empty() || authority.starts_with('/') {
            return Err(wrong("it names no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it holds a user name or password"));
        }
        if url.fragment().is_some() {
            return Err(wrong("it holds a fragment"));
        }
        Ok(Self {
            target: target_of(&url)?,
            text: text.to_owned(),
        })
    }
}

/// Refuses characters that no URL needs, and on which URL parsers disagree.
fn check_text(text: &str) -> Result<(), ManifestError> {
    if text.len() > MAX_LEADER_URL_LEN {
        return Err(ManifestError::LeaderUrl("it is too long"));
    }
    let odd = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b';');
    if text.bytes().any(odd) {
        return Err(ManifestError::LeaderUrl(
            "it holds a space, a backslash, a semicolon, or a character outside ASCII",
        ));
    }
    Ok(())
}

fn target_of(url: &Url) -> Result<Target, ManifestError> {
    let host = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => return Err(ManifestError::LeaderUrl("it names no host")),
    };
    match url.port_or_known_default() {
        Some(port) if port != 0 => Ok(Target { host, port }),
        Some(_) | None => Err(ManifestError::LeaderUrl("it names port 0")),
    }
}
