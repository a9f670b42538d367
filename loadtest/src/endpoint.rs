//! The server under load: its address, how connections to it are opened, TLS settings, and the login
//! to use.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use wire::frontend::{AwaitStartup, StartupStep};
use wire::scram::{Keys, Password};
use wire::startup::Startup;

use crate::error::{Error, Result};
use crate::message;

/// How a connection is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opening {
    /// No TLS.
    Plain,
    /// SSLRequest, then TLS.
    SslRequest,
    /// TLS immediately (direct TLS of PostgreSQL 17), with ALPN `postgresql`.
    Direct,
    /// TLS immediately, without ALPN.
    Raw,
}

impl FromStr for Opening {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "plain" => Ok(Self::Plain),
            "ssl-request" => Ok(Self::SslRequest),
            "direct" => Ok(Self::Direct),
            "raw" => Ok(Self::Raw),
            _ => Err("expected plain, ssl-request, direct or raw"),
        }
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::SslRequest => "ssl-request",
            Self::Direct => "direct",
            Self::Raw => "raw",
        })
    }
}

/// The server under load.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Address to connect to.
    pub address: SocketAddr,
    /// How a connection is opened.
    pub opening: Opening,
    /// TLS settings. Unused if the opening is [`Opening::Plain`].
    pub tls: Arc<ClientConfig>,
    /// The server's name, for SNI and certificate verification.
    pub name: ServerName<'static>,
}

impl Endpoint {
    /// An endpoint on loopback, whose certificate is not verified, because verification is not part
    /// of what is measured.
    ///
    /// # Errors
    /// [`Error::Usage`] if the address is not loopback: the password would be sent to an unverified
    /// server.
    pub fn loopback(
        address: SocketAddr,
        opening: Opening,
        identity: Option<&Identity>,
    ) -> Result<Self> {
        if !address.ip().is_loopback() {
            return Err(Error::Usage(format!(
                "{address} is not on loopback: name the CA certificates of the server (--ca)"
            )));
        }
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        Self::with_verifier(
            address,
            opening,
            identity,
            Arc::new(PossessionVerifier::default()),
            name,
        )
    }

    /// An endpoint anywhere, whose certificate must be issued by one of `roots` for `name`.
    ///
    /// # Errors
    /// The file has no usable roots, the name is invalid, or the opening is [`Opening::Plain`].
    pub fn trusted(
        address: SocketAddr,
        opening: Opening,
        identity: Option<&Identity>,
        roots: &Path,
        name: &str,
    ) -> Result<Self> {
        if opening == Opening::Plain {
            let why = "opening `plain` does not authenticate the server: use TLS with --ca";
            return Err(Error::Usage(why.to_owned()));
        }
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Error::Usage(format!("{name} is not a valid server name")))?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(pem(roots)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| Error::Usage(format!("{}: {error}", roots.display())))?;
        Self::with_verifier(address, opening, identity, verifier, name)
    }

    fn with_verifier(
        address: SocketAddr,
        opening: Opening,
        identity: Option<&Identity>,
        verifier: Arc<dyn ServerCertVerifier>,
        name: ServerName<'static>,
    ) -> Result<Self> {
        let tls = Arc::new(config(opening, identity, verifier)?);
        Ok(Self {
            address,
            opening,
            tls,
            name,
        })
    }

    /// The same endpoint with another client certificate. Loopback only.
    ///
    /// # Errors
    /// As [`Endpoint::loopback`].
    pub fn with_identity(&self, identity: &Identity) -> Result<Self> {
        Self::loopback(self.address, self.opening, Some(identity))
    }
}

/// A client's certificate chain, leaf first, and the leaf's private key.
#[derive(Debug)]
pub struct Identity {
    /// The certificates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The private key. Its Debug output contains no key material.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads the chain and the key from PEM files.
    ///
    /// # Errors
    /// A file cannot be read or parsed.
    pub fn read(certificates: &Path, key: &Path) -> Result<Self> {
        let unreadable = |error| Error::Usage(format!("{}: {error}", key.display()));
        Ok(Self {
            certificates: pem(certificates)?,
            key: PrivateKeyDer::from_pem_file(key).map_err(unreadable)?,
        })
    }
}

fn pem(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |error| Error::Usage(format!("{}: {error}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    certificates
        .collect::<std::result::Result<_, _>>()
        .map_err(unreadable)
}

/// TLS settings that all peers support, one cipher suite and one key exchange, so that all of them
/// do the same work. OpenSSL 3.0 has no ML-KEM.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

/// TLS 1.3 without resumption: every handshake is a full one.
fn config(
    opening: Opening,
    identity: Option<&Identity>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(chain) => {
            config.with_client_auth_cert(chain.certificates.clone(), chain.key.clone_key())?
        }
    };
    config.resumption = Resumption::disabled();
    if opening != Opening::Raw {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

/// Accepts any certificate, but verifies that the server holds its private key, which is part of a
/// handshake's cost.
#[derive(Debug)]
struct PossessionVerifier(WebPkiSupportedAlgorithms);

impl Default for PossessionVerifier {
    fn default() -> Self {
        Self(aws_lc_rs::default_provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for PossessionVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// The role and database to log in with. The Debug output contains no password.
#[derive(Clone, Debug)]
pub struct Login {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
    /// The role's password or the cluster's secret. May be empty.
    pub password: Arc<Password>,
}

impl Login {
    /// `password` may be empty if the server requests none.
    #[must_use]
    pub fn new(role: &str, database: &str, password: &str) -> Self {
        Self {
            role: role.to_owned(),
            database: database.to_owned(),
            password: Arc::new(Password::new(password)),
        }
    }

    /// Builds the StartupMessage and validates it.
    pub(crate) fn startup(&self) -> Result<Startup> {
        let packet = message::startup(&self.role, &self.database);
        match AwaitStartup::new().advance(&packet) {
            StartupStep::Startup { message, .. } => Ok(message.to_owned()),
            _ => Err(Error::Usage(
                "the role or database name is invalid".to_owned(),
            )),
        }
    }
}

/// SCRAM keys by salt and iteration count.
type KnownKeys = HashMap<(Vec<u8>, u32), Keys>;

/// A login with the state that a thread reuses. SCRAM keys are derived once for each salt, so that
/// a direct login costs the load no more than one through a proxy.
#[derive(Clone)]
pub struct PreparedLogin {
    pub(crate) startup: Rc<Startup>,
    pub(crate) password: Arc<Password>,
    pub(crate) keys: Rc<RefCell<KnownKeys>>,
}

impl PreparedLogin {
    /// Prepares the login for this thread.
    ///
    /// # Errors
    /// The role or database name is empty or contains a NUL.
    pub fn new(login: &Login) -> Result<Self> {
        Ok(Self {
            startup: Rc::new(login.startup()?),
            password: Arc::clone(&login.password),
            keys: Rc::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_on_loopback_or_has_a_verified_name() {
        let far = SocketAddr::from(([192, 0, 2, 1], 5433));
        assert!(Endpoint::loopback(far, Opening::Raw, None).is_err());
        let nowhere = Path::new("/nonexistent");
        assert!(Endpoint::trusted(far, Opening::Plain, None, nowhere, "db").is_err());
        assert!(Endpoint::trusted(far, Opening::Raw, None, nowhere, "db").is_err());
    }

    #[test]
    fn debug_output_contains_no_password() {
        let shown = format!("{:?}", Login::new("teesql_read", "postgres", "hunter2"));
        assert!(
            shown.contains("teesql_read") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn an_invalid_role_name_is_rejected() {
        assert!(Login::new("", "postgres", "").startup().is_err());
        assert!(Login::new("a\0b", "postgres", "").startup().is_err());
    }
}
