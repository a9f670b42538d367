//! Who the sidecar is on the wire: a certificate chain with its key, and the
//! TLS that is spoken with it.

use std::path::Path;
use std::sync::Arc;

use attest::agent::TlsKey;
use attest::certificate::Leaf;
use attest::chain::Chain;
use attest::values::Fingerprint;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::tls::peer_verifier::PossessionVerifier;
use crate::tls::schedule::SecretCapture;

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}: {why}")]
pub struct IdentityError {
    place: String,
    what: &'static str,
    why: String,
}

impl IdentityError {
    fn new(place: &impl ToString, what: &'static str, why: &impl ToString) -> Self {
        Self {
            place: place.to_string(),
            what,
            why: why.to_string(),
        }
    }
}

impl From<rustls::Error> for IdentityError {
    /// rustls' defaults do not go together: a bug.
    fn from(error: rustls::Error) -> Self {
        Self::new(&"certificate", "no TLS", &error)
    }
}

/// What was in two PEM files.
pub(crate) struct PemFiles<'a> {
    cert: &'a Path,
    key: &'a Path,
    cert_pem: Vec<u8>,
    key_pem: Zeroizing<Vec<u8>>,
}

impl<'a> PemFiles<'a> {
    /// # Errors
    /// One of them cannot be read.
    pub(crate) fn read(cert: &'a Path, key: &'a Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| IdentityError::new(&path.display(), "cannot be read", &error))
        };
        Ok(Self {
            cert,
            key,
            cert_pem: read(cert)?,
            key_pem: read(key)?.into(),
        })
    }

    /// The same for the same contents, and for no others.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(Sha256::digest(&self.cert_pem));
        hash.update(self.key_pem.as_slice());
        hash.finalize().into()
    }
}

/// A chain, leaf first, and the leaf's key, which has been found to be its own.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    place: String,
    not_before: u64,
    not_after: u64,
    fingerprint: Fingerprint,
}

impl Identity {
    /// From two PEM files.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, or a key of another certificate.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&PemFiles::read(cert, key)?)
    }

    /// From what was in two PEM files.
    ///
    /// # Errors
    /// As [`Self::from_files`].
    pub(crate) fn from_pem(files: &PemFiles<'_>) -> Result<Self, IdentityError> {
        let (cert, key) = (files.cert.display(), files.key.display());
        let not_pem = "not a PEM certificate";
        let chain = CertificateDer::pem_slice_iter(&files.cert_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IdentityError::new(&cert, not_pem, &error))?;
        if chain.is_empty() {
            return Err(IdentityError::new(&cert, not_pem, &"none in it"));
        }
        let private = PrivateKeyDer::from_pem_slice(&files.key_pem)
            .map_err(|error| IdentityError::new(&key, "not a PEM private key", &error))?;
        Self::new(&cert, chain, private)
    }

    /// From the guest agent, which has checked that the two belong together.
    ///
    /// # Errors
    /// A key that rustls cannot sign with.
    pub fn from_agent(answer: &TlsKey) -> Result<Self, IdentityError> {
        let chain = answer.chain_der().iter().cloned();
        let key = PrivatePkcs8KeyDer::from(answer.key_der().to_vec());
        Self::new(
            &"the guest agent's certificate",
            chain.map(CertificateDer::from).collect(),
            key.into(),
        )
    }

    fn new(
        place: &impl ToString,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain
            .first()
            .ok_or_else(|| IdentityError::new(place, "no certificate", &"none in it"))?;
        let dates = Leaf::parse(leaf)
            .map(|leaf| (leaf.not_before(), leaf.not_after()))
            .map_err(|error| IdentityError::new(place, "cannot be used", &error))?;
        let fingerprint = Chain::copy(std::slice::from_ref(leaf))
            .map(|chain| chain.fingerprint())
            .map_err(|error| IdentityError::new(place, "cannot be used", &error))?;
        let certified = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|error| IdentityError::new(place, "does not go with its key", &error))?;
        Ok(Self {
            certified: Arc::new(certified),
            place: place.to_string(),
            not_before: dates.0,
            not_after: dates.1,
            fingerprint,
        })
    }

    /// Whether it can be shown at `now`, in unix seconds.
    ///
    /// # Errors
    /// It is expired, or not yet valid.
    pub fn check_dates(&self, now: u64) -> Result<(), IdentityError> {
        let wrong = |why| Err(IdentityError::new(&self.place, "cannot be used", &why));
        if now > self.not_after {
            wrong("it has expired")
        } else if now.saturating_add(attest::certificate::CLOCK_SKEW) < self.not_before {
            wrong("it is not valid yet")
        } else {
            Ok(())
        }
    }

    /// The last second at which it is valid, in unix seconds.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// SHA-256 of the leaf.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The chain, leaf first, and the key to sign with.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// TLS 1.3 and 1.2 with it; `ask_client` for a certificate.
    ///
    /// # Errors
    /// rustls' defaults do not go together: a bug.
    pub fn server(&self, ask_client: bool) -> Result<Arc<ServerConfig>, IdentityError> {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| IdentityError::new(&self.place, "no TLS", &error))?;
        let builder = if ask_client {
            builder.with_client_cert_verifier(Arc::new(PossessionVerifier(provider)))
        } else {
            builder.with_no_client_auth()
        };
        let resolver = SingleCertAndKey::from(CertifiedKey::clone(&self.certified));
        let mut tls = builder.with_cert_resolver(Arc::new(resolver));
        // libpq 17 and later insist on it for direct TLS (IANA: postgresql).
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
        // No resumption: rustls verifies nothing on a resumed session, and the
        // certificates that the gate would look at come from the ticket.
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        // Our own record layer goes on with them; nothing is logged.
        tls.key_log = Arc::new(SecretCapture);
        Ok(Arc::new(tls))
    }
}
