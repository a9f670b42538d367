//! The TLS identity of this process: a certificate chain with its private key, and the rustls
//! server configuration that presents it.
//!
//! The private key must never appear in an error or a log line.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use attest::agent::TlsKey;
use attest::certificate::{Leaf, server_end_point};
use attest::chain::Chain;
use attest::values::Fingerprint;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use wire::link::LINK_ALPN;
use wire::scram::server::ChannelBinding;
use zeroize::Zeroizing;

use crate::io::private_file;
use crate::tls::peer_verifier::PossessionVerifier;
use crate::tls::record_layer::RecordLayer;

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}: {problem}: {detail}")]
pub struct IdentityError {
    /// The path of a file, or a description of where the certificate comes from.
    source_name: String,
    problem: &'static str,
    detail: String,
}

impl IdentityError {
    fn new(source_name: &impl ToString, problem: &'static str, detail: &impl ToString) -> Self {
        Self {
            source_name: source_name.to_string(),
            problem,
            detail: detail.to_string(),
        }
    }
}

impl From<rustls::Error> for IdentityError {
    /// rustls rejected its own defaults. This is a bug.
    fn from(error: rustls::Error) -> Self {
        Self::new(&"certificate", "cannot configure TLS", &error)
    }
}

/// The contents of a certificate file and a key file.
pub(crate) struct PemFiles<'a> {
    cert: &'a Path,
    key: &'a Path,
    cert_pem: Vec<u8>,
    key_pem: Zeroizing<Vec<u8>>,
}

impl<'a> PemFiles<'a> {
    /// Reads both files.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn read(cert: &'a Path, key: &'a Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| IdentityError::new(&path.display(), "cannot be read", &error))
        };
        let key_pem = private_file::read(key)
            .map_err(|error| IdentityError::new(&key.display(), "cannot be read", &error))?;
        Ok(Self {
            cert,
            key,
            cert_pem: read(cert)?,
            key_pem: key_pem.into(),
        })
    }

    /// SHA-256 of both contents, to detect a change.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(Sha256::digest(&self.cert_pem));
        hash.update(self.key_pem.as_slice());
        hash.finalize().into()
    }
}

/// A certificate chain and its key in PEM, in memory. The key is overwritten when this is dropped.
pub struct PemIdentity {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl PemIdentity {
    /// The chain is leaf first. They are parsed when they are used.
    #[must_use]
    pub fn new(chain: Vec<u8>, key: Vec<u8>) -> Self {
        Self {
            chain,
            key: Zeroizing::new(key),
        }
    }

    /// Reads two files.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let files = PemFiles::read(cert, key)?;
        Ok(Self {
            chain: files.cert_pem,
            key: files.key_pem,
        })
    }
}

impl fmt::Debug for PemIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PemIdentity([redacted])")
    }
}

/// A certificate chain, leaf first, and the private key of the leaf. The constructors check that
/// the key matches.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    source_name: String,
    not_before: u64,
    not_after: u64,
    fingerprint: Fingerprint,
    key_fingerprint: Fingerprint,
    channel_binding: Option<ChannelBinding>,
}

impl Identity {
    /// Reads two PEM files.
    ///
    /// # Errors
    /// A file cannot be read or parsed, or the key belongs to another certificate.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&PemFiles::read(cert, key)?)
    }

    /// Parses the contents of two PEM files.
    ///
    /// # Errors
    /// As [`Self::from_files`].
    pub(crate) fn from_pem(files: &PemFiles<'_>) -> Result<Self, IdentityError> {
        Self::parse(
            (&files.cert.display(), &files.cert_pem),
            (&files.key.display(), &files.key_pem),
        )
    }

    /// Parses PEM from memory.
    ///
    /// # Errors
    /// As [`Self::from_files`].
    pub(crate) fn from_memory(pem: &PemIdentity) -> Result<Self, IdentityError> {
        Self::parse(
            (&"the certificate in memory", &pem.chain),
            (&"the private key in memory", &pem.key),
        )
    }

    /// Parses a chain and a key, each with its name for errors.
    fn parse(
        (cert, cert_pem): (&impl ToString, &[u8]),
        (key, key_pem): (&impl ToString, &[u8]),
    ) -> Result<Self, IdentityError> {
        let not_pem = "not a PEM certificate";
        let chain = CertificateDer::pem_slice_iter(cert_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IdentityError::new(cert, not_pem, &error))?;
        if chain.is_empty() {
            let missing = "the file contains no certificate";
            return Err(IdentityError::new(cert, not_pem, &missing));
        }
        let private = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| IdentityError::new(key, "not a PEM private key", &error))?;
        Self::new(cert, chain, private)
    }

    /// Takes a response of the guest agent, in which certificate and key are known to match.
    ///
    /// # Errors
    /// rustls cannot sign with the key.
    pub fn from_agent(response: &TlsKey) -> Result<Self, IdentityError> {
        let chain = response.chain_der().iter().cloned();
        let key = PrivatePkcs8KeyDer::from(response.key_der().to_vec());
        Self::new(
            &"the guest agent's certificate",
            chain.map(CertificateDer::from).collect(),
            key.into(),
        )
    }

    fn new(
        source_name: &impl ToString,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or_else(|| {
            IdentityError::new(
                source_name,
                "cannot be used",
                &"the certificate chain is empty",
            )
        })?;
        let parsed = Leaf::parse(leaf)
            .map_err(|error| IdentityError::new(source_name, "cannot be used", &error))?;
        let (not_before, not_after) = (parsed.not_before(), parsed.not_after());
        let key_fingerprint = Fingerprint(Sha256::digest(parsed.spki()).into());
        let fingerprint = Chain::copy(std::slice::from_ref(leaf))
            .map(|chain| chain.fingerprint())
            .map_err(|error| IdentityError::new(source_name, "cannot be used", &error))?;
        let channel_binding = server_end_point(leaf);
        let channel_binding = channel_binding.and_then(|hash| ChannelBinding::new(&hash));
        let certified =
            CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
                IdentityError::new(source_name, "does not match its private key", &error)
            })?;
        Ok(Self {
            certified: Arc::new(certified),
            source_name: source_name.to_string(),
            not_before,
            not_after,
            fingerprint,
            key_fingerprint,
            channel_binding,
        })
    }

    /// Checks that the leaf is valid at `now`, in Unix seconds.
    ///
    /// # Errors
    /// It has expired, or is not valid yet.
    pub fn check_dates(&self, now: u64) -> Result<(), IdentityError> {
        let invalid = |detail| {
            Err(IdentityError::new(
                &self.source_name,
                "cannot be used",
                &detail,
            ))
        };
        if now > self.not_after {
            invalid("it has expired")
        } else if now.saturating_add(attest::certificate::CLOCK_SKEW) < self.not_before {
            invalid("it is not valid yet")
        } else {
            Ok(())
        }
    }

    /// The end of the leaf's validity, inclusive, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// The channel binding `tls-server-end-point` of the leaf; `None` if its signature algorithm
    /// has none.
    #[must_use]
    pub fn channel_binding(&self) -> Option<ChannelBinding> {
        self.channel_binding
    }

    /// SHA-256 of the leaf certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// SHA-256 of the leaf's SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn key_fingerprint(&self) -> Fingerprint {
        self.key_fingerprint
    }

    /// The chain, leaf first, and the key to sign with.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Builds a server configuration for TLS 1.3 and 1.2 that presents this identity, and
    /// with `request_client_certificate` requests one from the client.
    /// With `own_host`, under which the other members of a cluster reach this one, it offers the ALPN protocol of
    /// links. A link to another name gets the alert access_denied: an attacker on the network could otherwise
    /// exchange members, which all prove the same.
    /// `record_layer` seals and opens the records of its TLS 1.3 sessions.
    ///
    /// # Errors
    /// rustls rejected its own defaults. This is a bug.
    pub fn server_config(
        &self,
        request_client_certificate: bool,
        own_host: Option<&str>,
        record_layer: RecordLayer,
    ) -> Result<Arc<ServerConfig>, IdentityError> {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                IdentityError::new(&self.source_name, "cannot configure TLS", &error)
            })?;
        let builder = if request_client_certificate {
            builder.with_client_cert_verifier(Arc::new(PossessionVerifier(provider)))
        } else {
            builder.with_no_client_auth()
        };
        let resolver = CertResolver {
            certified: Arc::clone(&self.certified),
            own_host: own_host.map(|host| host.trim_end_matches('.').to_owned()),
        };
        let mut tls = builder.with_cert_resolver(Arc::new(resolver));
        // libpq 17 and later requires it for direct TLS (IANA: postgresql).
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
        if own_host.is_some() {
            tls.alpn_protocols.push(LINK_ALPN.to_vec());
        }
        // No resumption: rustls verifies nothing on a resumed session, and the certificates
        // that the attestation gate checks would come from the ticket.
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.key_log = record_layer.key_log();
        Ok(Arc::new(tls))
    }
}

/// Presents one certificate to every client, except to one that opens a link to another member.
#[derive(Debug)]
struct CertResolver {
    certified: Arc<CertifiedKey>,
    own_host: Option<String>,
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_link = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|protocol| protocol == LINK_ALPN));
        // A client that connects to an IP address sends no name.
        let is_other = match (hello.server_name(), &self.own_host) {
            (Some(name), Some(own)) => is_link && !name.eq_ignore_ascii_case(own),
            (Some(_), None) | (None, _) => false,
        };
        (!is_other).then(|| Arc::clone(&self.certified))
    }
}
