//! A client that takes any server and remembers what it was shown.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::cvm_integration::TdxFixture;
use crate::harness::READ_SECRET;
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::sidecar::Sidecar;

/// Whoever holds its certificate's key is accept_login.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// With the tdx's client certificate, or with none.
pub(crate) fn config(client: Option<&TdxFixture>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("rustls' defaults")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(tdx) => {
            let pem = fs::read(tdx.file("client.pem")).expect("client.pem");
            let chain = CertificateDer::pem_slice_iter(&pem).map(|der| der.expect("PEM"));
            let key = PrivateKeyDer::from_pem_file(tdx.file("client.key")).expect("a key");
            let with = builder.with_client_auth_cert(chain.collect(), key);
            with.expect("a key that rustls signs with")
        }
    };
    config.resumption = Resumption::disabled();
    config
}

/// A session of `teesql_read`'s.
pub(crate) fn enter(tdx: Option<&TdxFixture>, sidecar: &Sidecar) -> Client {
    let mut client = connect(tdx, sidecar);
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
    client
}

pub(crate) fn connect(tdx: Option<&TdxFixture>, sidecar: &Sidecar) -> Client {
    let opened = Client::open_with(config(tdx), sidecar.address(), TlsNegotiation::Raw);
    opened.expect("the TLS handshake succeeds")
}

/// The chain that new connections are shown, leaf first, in DER.
pub(crate) fn shown(address: SocketAddr) -> Vec<CertificateDer<'static>> {
    let client = Client::open_with(config(None), address, TlsNegotiation::Raw).expect("TLS");
    let chain = client.tls.conn.peer_certificates().expect("a chain");
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    client.disconnect();
    chain
}
