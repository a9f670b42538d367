//! A certificate authority for one run, the server certificate, and client configurations.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::harness::process::write_private;

/// PEM files for the sidecar and for libpq, and the root certificates for our own client.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    /// Another server with a certificate of the same authority for the same names.
    pub(crate) impostor: Arc<ServerConfig>,
    roots: Arc<RootCertStore>,
}

impl Certificates {
    pub(crate) fn create(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // OpenSSL considers a leaf with the name of its issuer self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "TeeSQL test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a certificate authority");

        let (key, leaf) = issue_leaf(&authority);
        let (other_key, other_leaf) = issue_leaf(&authority);
        let impostor = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("rustls' defaults")
            .with_no_client_auth()
            .with_single_cert(
                vec![other_leaf.der().clone(), authority.der().clone()],
                PrivateKeyDer::try_from(other_key.serialize_der()).expect("PKCS#8"),
            );

        let files = Self {
            chain: folder.join("server.pem"),
            key: folder.join("server.key"),
            ca: folder.join("ca.pem"),
            impostor: Arc::new(impostor.expect("a key pair")),
            roots: Arc::new(roots(authority.der().clone())),
        };
        fs::write(&files.chain, leaf.pem() + &authority.pem()).expect("server.pem");
        write_private(&files.key, &key.serialize_pem());
        fs::write(&files.ca, authority.pem()).expect("ca.pem");
        files
    }

    /// A client that verifies the server certificate and never resumes a session.
    pub(crate) fn client(&self, alpn: Option<&[u8]>) -> ClientConfig {
        self.client_with(aws_lc_rs::default_provider(), rustls::ALL_VERSIONS, alpn)
    }

    pub(crate) fn client_with(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        alpn: Option<&[u8]>,
    ) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("versions that the provider supports")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        config
    }
}

/// A server's key and its certificate.
fn issue_leaf(authority: &CertifiedIssuer<'_, KeyPair>) -> (KeyPair, rcgen::Certificate) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("valid names");
    params
        .distinguished_name
        .push(DnType::CommonName, "TeeSQL test sidecar");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, authority).expect("a leaf");
    (key, leaf)
}

fn roots(authority: CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(authority)
        .expect("our own authority is well formed");
    roots
}
