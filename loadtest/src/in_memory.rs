//! In-memory reference measurements, without a network: rustls handshakes, and verification by
//! dcap-qvl and `attest`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::cache::{Capacity, Epoch, VerdictCache};
use attest::collateral::Collateral;
use attest::mock::CollateralOptions;
use attest::{Policy, TrustedRoot, Verifier, examine};
use dcap_qvl::verify::QuoteVerifier;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, ServerConfig,
    ServerConnection, SignatureScheme,
};

use crate::endpoint::{Endpoint, Opening, provider};
use crate::error::{Error, Result};
use crate::mock_tdx::MockTdx;
use crate::process_usage;
use crate::stats::Spread;

/// Runs full mutual TLS 1.3 handshakes in memory, for `wanted` of wall time on this thread. Returns
/// the handshakes per second of the server's CPU time.
///
/// The server verifies what the sidecar verifies during a handshake, i.e. that the client holds its
/// certificate's key, and like the sidecar it sends no tickets. Building the certificate chain is
/// left out, which makes this reference faster and the comparison stricter.
///
/// # Errors
/// TLS errors.
pub fn handshakes_per_core(tdx: &MockTdx, wanted: Duration) -> Result<f64> {
    let (server, client) = (server_config(tdx)?, client_config(tdx)?);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let (mut count, mut spent) = (0_u32, Duration::ZERO);
    let end = Instant::now() + wanted;
    while Instant::now() < end {
        spent += handshake(&server, &client, &name)?;
        count += 1;
    }
    Ok(f64::from(count) / spent.as_secs_f64())
}

/// Runs one handshake. Returns the CPU time of the server's side.
fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &ServerName<'static>,
) -> Result<Duration> {
    let mut client = ClientConnection::new(Arc::clone(client), name.clone())?;
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let started = process_usage::thread_cpu();
    let mut server = ServerConnection::new(Arc::clone(server))?;
    let mut spent = process_usage::thread_cpu().saturating_sub(started);
    let failed = |_| Error::Server("an in-memory handshake failed".to_owned());
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut to_server).map_err(failed)?;
        }
        let started = process_usage::thread_cpu();
        let mut rest = to_server.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).map_err(failed)?;
            server.process_new_packets()?;
        }
        while server.wants_write() {
            server.write_tls(&mut to_client).map_err(failed)?;
        }
        spent += process_usage::thread_cpu().saturating_sub(started);
        let mut rest = to_client.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).map_err(failed)?;
            client.process_new_packets()?;
        }
        to_server.clear();
        to_client.clear();
    }
    Ok(spent)
}

fn client_config(tdx: &MockTdx) -> Result<Arc<ClientConfig>> {
    let nowhere = ([127, 0, 0, 1], 0).into();
    let endpoint = Endpoint::loopback(nowhere, Opening::Direct, Some(&tdx.identity("client")?))?;
    Ok(endpoint.tls)
}

fn server_config(tdx: &MockTdx) -> Result<Arc<ServerConfig>> {
    let identity = tdx.identity("server")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PossessionVerifier::default()))
        .with_single_cert(identity.certificates, identity.key)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts any certificate whose private key the client holds.
#[derive(Debug)]
struct PossessionVerifier(WebPkiSupportedAlgorithms);

impl Default for PossessionVerifier {
    fn default() -> Self {
        Self(aws_lc_rs::default_provider().signature_verification_algorithms)
    }
}

impl ClientCertVerifier for PossessionVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// CPU cost of a verdict, in µs.
#[derive(Clone, Copy, Debug)]
pub struct VerdictCosts {
    /// A hit in the verdict cache.
    pub cached: f64,
    /// The first verification on a thread, without any cached signatures, including the examination
    /// of the certificate.
    pub cold: f64,
    /// The same for an unknown certificate of a platform that the thread has verified before: the
    /// usual case in a connection storm.
    pub known_platform: f64,
    /// dcap-qvl alone, for the same quote.
    pub dcap_qvl: f64,
}

/// Time of verification, within the validity of the mock quotes.
const NOW: u64 = 1_800_000_000;
/// Cache hits per sample.
const HITS: u32 = 10_000;
/// Samples of cache hits.
const SAMPLES: usize = 21;

/// Verifies `certificates` unknown certificates, alternating with dcap-qvl alone.
///
/// # Errors
/// Errors of the mock platform, or a rejected certificate.
pub fn verdict_costs(tdx: &MockTdx, certificates: u32) -> Result<VerdictCosts> {
    let (pki, _) = tdx.parts();
    let collateral = pki.parsed_collateral(&CollateralOptions::at(NOW))?;
    let root = TrustedRoot::dangerous(pki.root_der());
    let root = root.map_err(|_| Error::Server("the mock root is invalid".to_owned()))?;
    let (verifier, bare) = (
        Verifier::new(root),
        QuoteVerifier::new(pki.root_der().to_vec()),
    );
    let (mut cold_times, mut known_times, mut dcap_qvl_times) =
        (Vec::new(), Vec::new(), Vec::new());
    for number in 0..certificates {
        let certificate = tdx.issue(&format!("verdict {number}"))?;
        let quote = certificate.quote().unwrap_or_default();
        let started = Instant::now();
        let verdict = bare.verify(black_box(quote), collateral.as_qvl(), NOW);
        dcap_qvl_times.push(micros(started.elapsed()));
        verdict.map_err(|error| Error::Server(format!("dcap-qvl: {error}")))?;
        let time = || {
            let started = Instant::now();
            verify(&verifier, &collateral, &certificate.chain_der())?;
            Ok(micros(started.elapsed()))
        };
        cold_times.push(on_new_thread(time)?);
        known_times.push(time()?);
    }
    // The first one was verified before the thread knew the platform.
    known_times.drain(..1.min(known_times.len()));
    Ok(VerdictCosts {
        cached: cached_verdict(&verifier, &collateral, tdx)?,
        cold: median(cold_times),
        known_platform: median(known_times),
        dcap_qvl: median(dcap_qvl_times),
    })
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let panicked = |_| Err(Error::Server("a thread panicked".to_owned()));
        scope.spawn(work).join().unwrap_or_else(panicked)
    })
}

fn verify(
    verifier: &Verifier,
    collateral: &Collateral,
    chain: &[&[u8]],
) -> Result<Arc<attest::AttestedPeer>> {
    let policy = Policy::default();
    let refused = |denial| Error::Server(format!("a mock certificate was rejected: {denial}"));
    let evidence = examine(black_box(chain), NOW, &policy).map_err(refused)?;
    let peer = verifier.verify(&evidence, collateral, &policy, NOW);
    Ok(Arc::new(peer.map_err(refused)?))
}

/// Time of one cache hit, in µs.
fn cached_verdict(verifier: &Verifier, collateral: &Collateral, tdx: &MockTdx) -> Result<f64> {
    let certificate = tdx.issue("client")?;
    let chain = certificate.chain_der();
    let peer = verify(verifier, collateral, &chain)?;
    let epoch = Epoch {
        policy: Policy::default().epoch(),
        collateral: 0,
    };
    let mut cache = VerdictCache::new(Capacity::default(), 3600, epoch);
    cache.insert(epoch, peer.chain(), &Ok(Arc::clone(&peer)), NOW);
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let started = Instant::now();
        for _ in 0..HITS {
            let verdict = black_box(cache.get(epoch, black_box(&chain), NOW));
            if !matches!(verdict, Some(Ok(_))) {
                return Err(Error::Server("the verdict cache has no entry".to_owned()));
            }
        }
        samples.push(micros(started.elapsed()) / f64::from(HITS));
    }
    Ok(median(samples))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(values: Vec<f64>) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_in_memory_complete() {
        let tdx = MockTdx::new().unwrap();
        let rate = handshakes_per_core(&tdx, Duration::from_millis(50)).unwrap();
        assert!(rate > 10.0 && rate.is_finite(), "{rate}");
    }

    #[test]
    fn verdicts_are_computed_and_cached() {
        let verdicts = verdict_costs(&MockTdx::new().unwrap(), 3).unwrap();
        assert!(
            verdicts.cached > 0.0 && verdicts.cached < verdicts.cold,
            "{verdicts:?}"
        );
        assert!(verdicts.dcap_qvl > 0.0 && verdicts.known_platform > 0.0);
    }
}
