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

use crate::cvm_integration::Town;
use crate::harness::READ_SECRET;
use crate::harness::client::{Client, Opening};
use crate::harness::sidecar::Sidecar;

/// Whoever holds its certificate's key is welcome.
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

/// With the town's client certificate, or with none.
pub(crate) fn config(client: Option<&Town>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("rustls' defaults")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(town) => {
            let pem = fs::read(town.file("client.pem")).expect("client.pem");
            let chain = CertificateDer::pem_slice_iter(&pem).map(|der| der.expect("PEM"));
            let key = PrivateKeyDer::from_pem_file(town.file("client.key")).expect("a key");
            let with = builder.with_client_auth_cert(chain.collect(), key);
            with.expect("a key that rustls signs with")
        }
    };
    config.resumption = Resumption::disabled();
    config
}

/// A session of `teesql_read`'s.
pub(crate) fn enter(town: Option<&Town>, sidecar: &Sidecar) -> Client {
    let mut client = connect(town, sidecar);
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("the login succeeds");
    client
}

pub(crate) fn connect(town: Option<&Town>, sidecar: &Sidecar) -> Client {
    let opened = Client::open_with(config(town), sidecar.address(), Opening::Raw);
    opened.expect("the TLS handshake succeeds")
}

/// The chain that new connections are shown, leaf first, in DER.
pub(crate) fn shown(address: SocketAddr) -> Vec<CertificateDer<'static>> {
    let client = Client::open_with(config(None), address, Opening::Raw).expect("TLS");
    let chain = client.tls.conn.peer_certificates().expect("a chain");
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    client.hang_up();
    chain
}
