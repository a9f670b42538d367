//! How clients prove that they know a secret: the setting `client_auth`.

use std::str::FromStr;

/// The authentication method that clients are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// SCRAM-SHA-256, and SCRAM-SHA-256-PLUS with clients that have TLS with this sidecar. The
    /// secret does not cross the wire.
    #[default]
    Scram,
    /// The secret in cleartext, inside TLS.
    Password,
}

impl ClientAuth {
    /// The value of the setting.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scram => "scram",
            Self::Password => "password",
        }
    }
}

impl FromStr for ClientAuth {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "scram" => Ok(Self::Scram),
            "password" => Ok(Self::Password),
            _ => Err("expected scram or password"),
        }
    }
}
