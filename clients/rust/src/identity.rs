//! The client certificate: where it comes from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::config::PemIdentity;
use engine::embed::{Error, Options, request_client_certificate};

/// The certificate that a client presents to servers. Its private key is overwritten in memory when it is dropped, and no
/// error or `Debug` shows it.
#[derive(Clone)]
pub struct Identity(Source);

#[derive(Clone)]
enum Source {
    Agent(Option<String>),
    Pem(Arc<PemIdentity>),
    Files(PathBuf, PathBuf),
    None,
}

impl Identity {
    /// From dstack's guest agent of this machine, renewed in time.
    #[must_use]
    pub fn guest_agent() -> Self {
        Self(Source::Agent(None))
    }

    /// From the guest agent at this address: a path, or `http://host:port`.
    #[must_use]
    pub fn guest_agent_at(address: impl Into<String>) -> Self {
        Self(Source::Agent(Some(address.into())))
    }

    /// From memory: the chain, leaf first, and the leaf's key, in PEM.
    #[must_use]
    pub fn pem(chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        Self(Source::Pem(Arc::new(PemIdentity::new(
            chain.into(),
            key.into(),
        ))))
    }

    /// From PEM files, read again when they change.
    #[must_use]
    pub fn pem_files(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self(Source::Files(chain.into(), key.into()))
    }

    /// None: only the server is attested. The sidecar must accept clients that are not attested.
    #[must_use]
    pub fn none() -> Self {
        Self(Source::None)
    }

    /// Sets it for a forwarder, instead of what was set before or is in the environment.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.pem_identity = None;
        options.unset(&["client_cert", "client_key"]);
        let attested = !matches!(self.0, Source::None);
        options.set("client_attestation", attested.to_string());
        match &self.0 {
            Source::Agent(None) => options.set("guest_agent", "auto"),
            Source::Agent(Some(address)) => {
                options.unset(&["simulator_endpoint"]);
                options.set("guest_agent", address);
            }
            Source::Pem(pem) => options.pem_identity = Some(Arc::clone(pem)),
            Source::Files(chain, key) => {
                options.set("client_cert", chain.display().to_string());
                options.set("client_key", key.display().to_string());
            }
            Source::None => {}
        }
    }

    /// The certificate as PEM, for a single connection.
    pub(crate) async fn load(&self, timeout: Duration) -> Result<Option<Arc<PemIdentity>>, Error> {
        Ok(match &self.0 {
            Source::Agent(address) => {
                let certificate = request_client_certificate(address.as_deref(), timeout).await?;
                let chain = certificate.chain_pem.into_bytes();
                let key = certificate.key_pem.as_bytes().to_vec();
                Some(Arc::new(PemIdentity::new(chain, key)))
            }
            Source::Pem(pem) => Some(Arc::clone(pem)),
            Source::Files(chain, key) => Some(Arc::new(PemIdentity::from_files(chain, key)?)),
            Source::None => None,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Agent(address) => f.debug_tuple("GuestAgent").field(address).finish(),
            Source::Pem(_) => f.write_str("Pem([redacted])"),
            Source::Files(chain, _) => f.debug_tuple("Files").field(chain).finish(),
            Source::None => f.write_str("None"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_counts() {
        let set = |identities: &[Identity]| {
            let mut options = Options::default();
            identities
                .iter()
                .for_each(|identity| identity.apply(&mut options));
            let names = options.settings.iter().map(|(name, _)| name.clone());
            let mut names: Vec<_> = names.collect();
            names.dedup();
            (names, options.pem_identity.is_some())
        };
        let (pem, files) = (Identity::pem("a", "b"), Identity::pem_files("a", "b"));
        let attested = "client_attestation".to_owned();
        let (names, has_pem) = set(&[pem.clone(), files.clone(), Identity::none()]);
        assert_eq!((names, has_pem), (vec![attested.clone()], false));
        let (names, has_pem) = set(&[files, Identity::none(), pem]);
        assert_eq!((names, has_pem), (vec![attested], true));
    }

    #[test]
    fn no_key_is_shown() {
        let identity = Identity::pem("CERT", "SECRET");
        assert_eq!(format!("{identity:?}"), "Pem([redacted])");
    }
}
