//! The address of a server, as given on the command line.

use std::str::FromStr;

use rustls::pki_types::ServerName;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The address as given.
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
}

impl FromStr for Address {
    type Err = String;

    /// Parses `host:5433`, `127.0.0.1:5433` or `[::1]:5433`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || "expected a server as HOST:PORT, e.g. db.example:5433 or [::1]:5433".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(host) => host,
            None if host.contains(':') => return Err(error()),
            None => host,
        };
        ServerName::try_from(host).map_err(|_| error())?;
        Ok(Self {
            name: text.to_owned(),
            host: host.to_owned(),
            port: port.ok_or_else(error)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_addresses() {
        for (text, host, port) in [
            ("db.example:5433", "db.example", 5433),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("[::1]:65535", "::1", 65535),
            ("localhost:5433", "localhost", 5433),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
        }
        for text in [
            "", ":", ":5433", "db", "db:", "db:0", "db:65536", "db:x", "::1:5433", "[::1]", "[]:1",
            "a b:1", "cert.pem",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
