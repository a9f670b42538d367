//! The address of the guest agent: a Unix socket or a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

/// Maximum length of a Unix socket's path in bytes: `sun_path` has 108, and the last is NUL. [unix(7)]
pub const MAX_SOCKET_PATH: usize = 107;

/// An address at which an agent may listen.
#[derive(Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A base URL, http or https, without a trailing slash. For simulators only.
    Url(String),
}

/// A text that is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentAddressError {
    /// Neither a path nor a URL.
    #[error("a guest agent is an http URL, unix:<path>, or a path that starts with / or .")]
    Unknown,
    /// Longer than [`MAX_SOCKET_PATH`].
    #[error("a Unix socket's path has at most {MAX_SOCKET_PATH} bytes")]
    PathTooLong,
    /// The URL holds a user name or password, which would end up in logs.
    #[error("a guest agent's URL must not hold a user name or password")]
    Credentials,
    /// The URL holds a query or fragment, which would end up in the middle of the request URLs.
    #[error("a guest agent's URL must not hold a query or fragment")]
    Query,
}

impl AgentAddress {
    /// Parses the value of `DSTACK_SIMULATOR_ENDPOINT`: `http://…`, `https://…`, `unix:<path>`, or a
    /// path that starts with `/` or `.`.
    ///
    /// # Errors
    /// [`AgentAddressError`].
    pub fn parse(text: &str) -> Result<Self, AgentAddressError> {
        let text = text.trim();
        if text.starts_with("http://") || text.starts_with("https://") {
            return url(text);
        }
        match text.strip_prefix("unix:") {
            // The URL form has two more slashes: unix:///run/dstack.sock.
            Some(path) => socket(path.strip_prefix("//").unwrap_or(path)),
            None if text.starts_with(['/', '.']) => socket(text),
            None => Err(AgentAddressError::Unknown),
        }
    }
}

fn socket(path: &str) -> Result<AgentAddress, AgentAddressError> {
    match path.len() {
        0 => Err(AgentAddressError::Unknown),
        1..=MAX_SOCKET_PATH => Ok(AgentAddress::Unix(path.into())),
        _ => Err(AgentAddressError::PathTooLong),
    }
}

fn url(text: &str) -> Result<AgentAddress, AgentAddressError> {
    let url = Url::parse(text).map_err(|_| AgentAddressError::Unknown)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(AgentAddressError::Credentials);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(AgentAddressError::Query);
    }
    Ok(AgentAddress::Url(
        url.as_str().trim_end_matches('/').to_owned(),
    ))
}

impl FromStr for AgentAddress {
    type Err = AgentAddressError;

    /// Same as [`AgentAddress::parse`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl fmt::Debug for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses() {
        for (text, shown) in [
            ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
            (" http://127.0.0.1:8090/ \n", "http://127.0.0.1:8090"),
            ("https://sim.example/agent/", "https://sim.example/agent"),
            ("/run/dstack.sock", "unix:/run/dstack.sock"),
            ("./dstack.sock", "unix:./dstack.sock"),
            ("unix:dstack.sock", "unix:dstack.sock"),
            ("unix:/run/dstack.sock", "unix:/run/dstack.sock"),
            ("unix:///run/dstack.sock", "unix:/run/dstack.sock"),
        ] {
            assert_eq!(AgentAddress::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn rejects_other_texts() {
        let long = format!("/{}", "x".repeat(MAX_SOCKET_PATH));
        for (text, error) in [
            ("", AgentAddressError::Unknown),
            ("unix:", AgentAddressError::Unknown),
            ("127.0.0.1:8090", AgentAddressError::Unknown),
            ("ftp://host/", AgentAddressError::Unknown),
            ("http://", AgentAddressError::Unknown),
            ("http://me:secret@host/", AgentAddressError::Credentials),
            ("http://host/?a=b", AgentAddressError::Query),
            ("http://host/#a", AgentAddressError::Query),
            (long.as_str(), AgentAddressError::PathTooLong),
        ] {
            assert_eq!(text.parse::<AgentAddress>(), Err(error), "{text}");
        }
        assert!(AgentAddress::parse(&long[..MAX_SOCKET_PATH]).is_ok());
    }
}
