//! A TLS client that accepts any server certificate.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::sidecar::Sidecar;
use crate::harness::tdx_fixture::TdxFixture;

/// A rustls verifier that checks only that the server has the key of its certificate.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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

/// With the client certificate of `client`, or with none.
pub(crate) fn config(client: Option<&TdxFixture>) -> ClientConfig {
    config_of(client.map(|tdx| (tdx, "client")))
}

/// With the certificate of this name in the folder of a TDX fixture, or with none.
pub(crate) fn config_of(certificate: Option<(&TdxFixture, &str)>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("rustls' defaults")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((tdx, name)) => {
            let file = |suffix| tdx.path(name) + suffix;
            let pem = fs::read(file(".pem")).expect("a chain");
            let chain = CertificateDer::pem_slice_iter(&pem).map(|der| der.expect("PEM"));
            let key = PrivateKeyDer::from_pem_file(file(".key")).expect("a key");
            let with = builder.with_client_auth_cert(chain.collect(), key);
            with.expect("a key that rustls signs with")
        }
    };
    config.resumption = Resumption::disabled();
    config
}

/// A session of `teesql_read`.
pub(crate) fn session(certificate: Option<&TdxFixture>, sidecar: &Sidecar) -> Client {
    let mut client = connect(certificate, sidecar);
    client.login_reader();
    client
}

/// A connection inside TLS that has not logged in.
pub(crate) fn connect(client: Option<&TdxFixture>, sidecar: &Sidecar) -> Client {
    let opened = Client::connect_with(config(client), sidecar.address(), TlsNegotiation::Raw);
    opened.expect("the TLS handshake succeeds")
}

/// The chain that the server presents to a new connection, leaf first, in DER.
pub(crate) fn presented_chain(address: SocketAddr) -> Vec<CertificateDer<'static>> {
    let client = Client::connect_with(config(None), address, TlsNegotiation::Raw).expect("TLS");
    let chain = client.tls.conn.peer_certificates().expect("a chain");
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    client.disconnect();
    chain
}
