//! Verification for programs, without a forwarder: of a quote, of a certificate, of a server.
//!
//! The checks are the gate's. Collateral is kept for the process, so that a second verification needs no request.

mod collateral;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attest::agent::{Agent, AgentOptions};
use attest::binding::report_data_for_key;
use attest::certificate::Leaf;
use attest::chain::KmsRoot;
use attest::evidence::UnboundEvidence;
use attest::quote::TdQuote;
use attest::verify::Appraisal;
use attest::{AttestedPeer, BoundEvidence, Denial, Policy, Verifier, examine};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::error::{Error, ErrorKind};
use super::options::{ApplicationVerifier, Options};
use super::runtime::SharedRuntime;
use crate::app::error::StartError;
use crate::attestation::custom::{Claims, CustomVerifier};
use crate::attestation::verifier::check_pck_chain;
use crate::config::{
    CertificateRequest, CertificateUsage, Criteria, PemIdentity, Verifier as Verifies,
};
use crate::io::clock::unix_now;
use crate::tls::certificate::Identity;
use crate::tls::certificate_source::CertificateSource;
use crate::tls::probe::{self, Opening, ProbeError};

/// The result of a verification that found nothing to refuse.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verified {
    /// What is proved.
    pub claims: Claims,
    /// The quote.
    pub quote: Vec<u8>,
    /// The certificates in DER, leaf first. Empty for a bare quote, which proves nothing about who sent it.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the leaf certificate in hex; empty for a bare quote.
    pub fingerprint: String,
    /// The last moment at which the result holds.
    pub valid_until: SystemTime,
}

impl Verified {
    fn of_quote(quote: &TdQuote, appraisal: &Appraisal) -> Self {
        Self {
            claims: Claims::of_quote(quote).with_appraisal(appraisal),
            quote: quote.as_bytes().to_vec(),
            chain: Vec::new(),
            fingerprint: String::new(),
            valid_until: time(appraisal.valid_until()),
        }
    }
}

/// How [`verify_server`] connects.
#[derive(Clone, Debug)]
pub struct ServerProbe {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// From name resolution to the end of the TLS handshake.
    pub timeout: Duration,
    /// The certificate to present if the server requests one.
    pub pem_identity: Option<Arc<PemIdentity>>,
}

/// Verifies a bare quote: Intel's signatures, the TCB, and of the policy in `options` what a quote can show. Who sent it
/// remains open.
///
/// # Errors
/// [`ErrorKind::Refused`]; [`ErrorKind::Unavailable`] without collateral; [`ErrorKind::Configuration`].
pub async fn verify_quote(quote: Vec<u8>, options: &Options) -> Result<Verified, Error> {
    on_control_thread(options, async move |checker| checker.quote(&quote).await).await
}

/// Verifies a certificate chain in DER, leaf first: the binding of its quote, and all that the policy in `options` requires.
///
/// # Errors
/// As [`verify_quote`].
pub async fn verify_certificate(chain: Vec<Vec<u8>>, options: &Options) -> Result<Verified, Error> {
    on_control_thread(options, async move |checker| checker.chain(chain).await).await
}

/// Connects to a server, verifies it as a forwarder does, and closes the connection without a login.
///
/// # Errors
/// As [`verify_quote`]; [`ErrorKind::Network`]; [`ErrorKind::Timeout`]; [`ErrorKind::Identity`].
pub async fn verify_server(server: ServerProbe, options: &Options) -> Result<Verified, Error> {
    on_control_thread(options, async move |checker| {
        let chain = presented_by(server).await?;
        checker.chain(chain).await
    })
    .await
}

/// The certificates in DER, leaf first, that a server presents. It has proved that it holds the key of the first; nothing
/// else is verified.
///
/// # Errors
/// [`ErrorKind::Network`]; [`ErrorKind::Timeout`]; [`ErrorKind::Identity`].
pub async fn server_certificates(server: ServerProbe) -> Result<Vec<Vec<u8>>, Error> {
    let runtime = SharedRuntime::acquire()?;
    let answer = runtime.control().spawn(presented_by(server)).await;
    runtime.release().await;
    answer.map_err(Error::internal)?
}

/// The TDX quote in a certificate in DER; `None` if there is none. Nothing is verified.
#[must_use]
pub fn extract_tdx_quote(der: &[u8]) -> Option<Vec<u8>> {
    let leaf = Leaf::parse(der).ok()?;
    let evidence = UnboundEvidence::from_extensions(leaf.extensions()).ok()?;
    Some(evidence.quote().as_bytes().to_vec())
}

/// What a quote says, without verifying it.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is not a TDX quote.
pub fn read_quote(quote: &[u8]) -> Result<Claims, Error> {
    Ok(Claims::of_quote(&TdQuote::parse(quote)?))
}

/// The quote in a certificate in DER, which is bound to the key of that certificate. Nothing else is verified: anybody can
/// have made it.
///
/// # Errors
/// [`ErrorKind::Refused`]: `no_evidence` without a quote, and `unbound_key` with a quote for another key.
pub fn bound_quote(der: &[u8]) -> Result<Vec<u8>, Error> {
    let leaf = Leaf::parse(der)?;
    let evidence = UnboundEvidence::from_extensions(leaf.extensions())?;
    evidence.check_binding(leaf.spki())?;
    Ok(evidence.quote().as_bytes().to_vec())
}

/// `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`: the report data of a quote that is bound to this key, in DER.
#[must_use]
pub fn expected_report_data(spki_der: &[u8]) -> [u8; 64] {
    report_data_for_key(spki_der)
}

/// Verifies a bare quote as of `now`, in Unix seconds, with collateral that the program has: the JSON of dcap-qvl's
/// `QuoteCollateralV3`. Needs no network.
///
/// # Errors
/// [`ErrorKind::Refused`]; [`ErrorKind::Unavailable`] if the collateral does not verify; [`ErrorKind::Configuration`].
pub fn verify_quote_with_collateral(
    quote: &[u8],
    collateral_json: &[u8],
    now: u64,
    options: &Options,
) -> Result<Verified, Error> {
    let (criteria, _) = options.criteria()?;
    let parsed = TdQuote::parse(quote)?;
    let collateral = attest::collateral::Collateral::from_json(collateral_json);
    let collateral = collateral.map_err(collateral::unavailable)?;
    collateral::check(&collateral, &criteria.root, now)?;
    let verifier = Verifier::new(criteria.root);
    let found = |_: &TdQuote| Ok(collateral);
    let appraisal = verifier.inspect_quote(quote, &criteria.policy, now, found, &mut ())?;
    Ok(Verified::of_quote(&parsed, &appraisal))
}

/// SHA-256 of a certificate in DER, in hex.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex::encode(Sha256::digest(der))
}

/// The certificates of a PEM text in DER.
///
/// # Errors
/// [`ErrorKind::Configuration`].
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let chain = CertificateDer::pem_slice_iter(pem);
    let chain: Result<Vec<_>, _> = chain.map(|der| der.map(|der| der.to_vec())).collect();
    chain.map_err(|error| Error::configuration(format!("not PEM certificates: {error}")))
}

/// What to verify with.
struct Checker {
    criteria: Criteria,
    verifier: Verifier,
    pck_root: Option<KmsRoot>,
    /// Intel Trust Authority, instead of DCAP.
    authority: Option<attest::ita::Client>,
    /// The application's, and whether it stands for DCAP.
    custom: Option<(CustomVerifier, bool)>,
}

/// Runs `check` on the control thread.
async fn on_control_thread<F>(
    options: &Options,
    check: impl FnOnce(Checker) -> F + Send + 'static,
) -> Result<Verified, Error>
where
    F: Future<Output = Result<Verified, Error>> + Send + 'static,
{
    let (criteria, verifies) = options.criteria()?;
    let authority = match verifies {
        Verifies::Dcap | Verifies::None => None,
        Verifies::Ita { base, key } => {
            let client = attest::ita::Client::new(&base, key, attest::ita::Options::default());
            Some(client.map_err(StartError::Authority)?)
        }
    };
    let runtime = SharedRuntime::acquire()?;
    let custom = options.verifier.as_ref();
    let custom = custom.map(|own: &ApplicationVerifier| {
        let started = own.start(&runtime)?;
        Ok::<_, StartError>((started, own.instead_of_dcap))
    });
    let checker = Checker {
        pck_root: KmsRoot::from_der(criteria.root.der()).ok(),
        verifier: Verifier::new(criteria.root.clone()),
        authority,
        custom: custom.transpose()?,
        criteria,
    };
    let answer = runtime.control().spawn(check(checker)).await;
    runtime.release().await;
    answer.map_err(Error::internal)?
}

impl Checker {
    async fn quote(self, bytes: &[u8]) -> Result<Verified, Error> {
        let (now, policy) = (unix_now(), self.policy().await?);
        let quote = TdQuote::parse(bytes)?;
        let appraisal = match &self.authority {
            Some(client) => {
                let appraised = client.verify_quote(&quote, &policy, now).await;
                appraised.map_err(Denial::from)?
            }
            None => {
                let collateral = self.collateral(&quote, now).await?;
                let found = |_: &TdQuote| Ok(Arc::clone(&collateral));
                let verifier = &self.verifier;
                verifier.inspect_quote(bytes, &policy, now, found, &mut ())?
            }
        };
        Ok(Verified::of_quote(&quote, &appraisal))
    }

    async fn chain(self, chain: Vec<Vec<u8>>) -> Result<Verified, Error> {
        let (now, policy) = (unix_now(), self.policy().await?);
        let evidence = examine(&chain, now, &policy)?;
        let peer = Arc::new(self.verify(&evidence, &policy, now).await?);
        if let Some((verifier, false)) = &self.custom {
            verifier.confirm(&peer).await?;
        }
        Ok(Verified {
            claims: Claims::of_peer(&peer, evidence.quote()),
            quote: evidence.quote().as_bytes().to_vec(),
            fingerprint: peer.fingerprint().to_string(),
            valid_until: time(peer.valid_until()),
            chain,
        })
    }

    async fn verify(
        &self,
        evidence: &BoundEvidence,
        policy: &Policy,
        now: u64,
    ) -> Result<AttestedPeer, Error> {
        if let Some((verifier, true)) = &self.custom {
            return Ok(verifier.appraise(evidence, policy, now).await?);
        }
        if let Some(client) = &self.authority {
            let verified = client.verify(evidence, policy, now).await;
            return Ok(verified.map_err(Denial::from)?);
        }
        let collateral = self.collateral(evidence.quote(), now).await?;
        let verified = self.verifier.verify(evidence, &collateral, policy, now);
        Ok(verified?)
    }

    /// The policy, with what `kms_root = own` stands for.
    async fn policy(&self) -> Result<Policy, Error> {
        let policy = self.criteria.policy.clone();
        if !policy.needs_own_root() {
            return Ok(policy);
        }
        let agent = Agent::new(self.criteria.guest_agent.clone(), AgentOptions::default());
        let request = CertificateRequest {
            name: "teesql-verify".to_owned(),
            alt_names: Vec::new(),
            validity: Duration::from_secs(60),
            usage: CertificateUsage::Client,
        };
        let source = CertificateSource::Agent {
            agent: agent.map_err(StartError::ClientCertificate)?,
            request,
        };
        let own = source.obtain().await.map_err(|error| {
            let text = format!("kms_root = own: {error}");
            Error::new(ErrorKind::Identity, "agent_failed", text)
        })?;
        let issuer = own.certified().cert.get(1..).and_then(<[_]>::last);
        let root = issuer.and_then(|der| KmsRoot::from_der(der).ok());
        if root.is_none() {
            let text = "kms_root = own: the guest agent's chain has no CA certificate";
            return Err(Error::new(ErrorKind::Identity, "agent_failed", text));
        }
        Ok(policy.with_own_root(root))
    }

    /// The collateral for a quote. A PCCS is asked only about platforms whose PCK chain leads to the trusted root.
    async fn collateral(
        &self,
        quote: &TdQuote,
        now: u64,
    ) -> Result<Arc<attest::collateral::Collateral>, Error> {
        let key = quote.collateral_key()?;
        check_pck_chain(self.pck_root.as_ref(), quote, now)?;
        let Some(source) = &self.criteria.source else {
            return Err(Denial::CollateralUnavailable.into());
        };
        collateral::get(source, &self.criteria.root, key, now).await
    }
}

/// The certificates that a server presents. Blocks a thread for that.
async fn presented_by(server: ServerProbe) -> Result<Vec<Vec<u8>>, Error> {
    let ServerProbe {
        host,
        port,
        timeout,
        pem_identity,
    } = server;
    let identity = pem_identity.map(|pem| Identity::from_memory(&pem));
    let identity = identity.transpose().map_err(StartError::Identity)?;
    let options = probe::Options {
        opening: Opening::RawTls,
        alpn: false,
        timeout,
        identity: identity.map(|identity| Arc::clone(identity.certified())),
    };
    let work = move || probe::probe(&host, port, &options);
    let presented = tokio::task::spawn_blocking(work).await;
    let presented = presented.map_err(Error::internal)?.map_err(probe_error)?;
    Ok(presented.chain)
}

fn probe_error(error: ProbeError) -> Error {
    let kind = match &error {
        ProbeError::Timeout(_) => ErrorKind::Timeout,
        ProbeError::Certificate(_) => ErrorKind::Refused,
        ProbeError::Unreachable(_) | ProbeError::NoTls(_) | ProbeError::Tls(_) => {
            ErrorKind::Network
        }
    };
    Error::new(kind, error.code(), error.to_string())
}

fn time(seconds: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.unwrap_or(UNIX_EPOCH)
}
