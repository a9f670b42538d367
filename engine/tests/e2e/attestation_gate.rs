//! Tests of the attestation gate: which client certificates a sidecar in production mode admits.

mod admission;
mod collateral;
mod handshake;
mod memory;
mod revocation;

use std::process::Command;
use std::sync::Arc;

use attest::mock::{Certificate, Key};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::harness::READER;
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_for_both_outputs};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::libpq_clients::client;

pub(crate) fn add(suite: &mut Suite) {
    admission::add(suite);
    handshake::add(suite);
    memory::add(suite);
    revocation::add(suite);
    collateral::add(suite);
}

/// The output of `select 1` in psql for an admitted client.
pub(crate) const ADMITTED: &str = "1\n";

/// What psql prints for a client that is refused with `code`.
pub(crate) fn refusal(code: &str) -> String {
    format!("FATAL:  client attestation rejected: {code}\n")
}

impl TdxFixture {
    /// Runs `select 1` in psql with this certificate; both of its outputs.
    pub(crate) fn psql_select_1(
        &self,
        fixture: &Fixture,
        sidecar: &Sidecar,
        certificate: Option<&Certificate>,
    ) -> String {
        let psql = self.psql_command(fixture, sidecar, certificate);
        run_for_both_outputs(psql, TIMEOUT)
    }

    fn psql_command(
        &self,
        fixture: &Fixture,
        sidecar: &Sidecar,
        certificate: Option<&Certificate>,
    ) -> Command {
        let mut psql = client(fixture, sidecar, "psql", READER, "via_scram");
        psql.args(["-X", "-A", "-t", "-c", "select 1"]);
        if let Some(certificate) = certificate {
            let (cert, key) = self.write_pem(&fixture.harness.unique_name("leaf"), certificate);
            psql.env("PGSSLCERT", cert).env("PGSSLKEY", key);
        }
        psql
    }
}

/// Presents one certificate, and signs with a key that need not belong to it.
#[derive(Debug)]
struct FixedCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for FixedCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn client_config(fixture: &Fixture, certificate: &Certificate, key: &Key) -> ClientConfig {
    client_config_with_chain(fixture, &certificate.chain_der(), key)
}

fn client_config_with_chain(fixture: &Fixture, chain: &[&[u8]], key: &Key) -> ClientConfig {
    let der = key.to_pkcs8_der().expect("a key");
    let der = PrivateKeyDer::try_from(der).expect("PKCS#8");
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec()));
    let signing_key = any_supported_type(&der).expect("P-256");
    let certified = CertifiedKey::new(chain.collect(), signing_key);
    let mut config = fixture.harness.certificates.client(None);
    config.client_auth_cert_resolver = Arc::new(FixedCertificate(Arc::new(certified)));
    config
}

/// Completes the TLS handshake with this certificate. The gate decides afterwards.
pub(crate) fn connect(fixture: &Fixture, sidecar: &Sidecar, certificate: &Certificate) -> Client {
    connect_with_config(
        client_config(fixture, certificate, certificate.key()),
        sidecar,
    )
}

fn connect_with_config(config: ClientConfig, sidecar: &Sidecar) -> Client {
    Client::connect_with(config, sidecar.address(), TlsNegotiation::Raw).expect("TLS")
}
