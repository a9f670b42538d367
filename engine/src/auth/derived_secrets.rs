//! Cluster secrets that the guest agent derives: the same for every start of the same application, and unknown to its
//! host. No variable has to carry them.

use std::str::FromStr;

use attest::agent::{Agent, AgentError};
use wire::secret::ClusterSecret;

use crate::auth::cluster_secrets::ClusterSecrets;

/// The `path` of the read secret in the guest agent's `GetKey`. It must not change: another path gives another secret.
pub(crate) const READ_PATH: &str = "cluster/read";
/// The `path` of the read-write secret.
pub(crate) const READWRITE_PATH: &str = "cluster/readwrite";

/// The value of the `cluster_secrets` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretSource {
    /// The settings `read_secret` and `readwrite_secret`.
    Configured,
    /// The guest agent.
    Derived,
}

impl FromStr for SecretSource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "configured" => Ok(Self::Configured),
            "derived" => Ok(Self::Derived),
            _ => Err("expected configured or derived"),
        }
    }
}

impl ClusterSecrets {
    /// Requests both secrets from the guest agent.
    ///
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(crate) async fn derive(agent: &Agent) -> Result<Self, AgentError> {
        let secret = async |path| {
            let key = agent.key(path, "").await?;
            Ok(Some(ClusterSecret::from_bytes(*key.as_bytes())))
        };
        Ok(Self {
            read: secret(READ_PATH).await?,
            readwrite: secret(READWRITE_PATH).await?,
        })
    }
}
