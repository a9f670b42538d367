//! From bound evidence to [`AttestedPeer`]: Intel's signatures, the TCB, the event log, the policy.
//!
//! dcap-qvl verifies the signatures, with ring (its audited preset). This module adds the checks that dcap-qvl
//! does not make (allow-lists, replay, KMS roots), and repeats cheap ones (debug bit, dates of the collateral), so
//! that each refusal has its own code. A verification takes 0.1 to 0.5 ms of CPU, so it must never run on a shard.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use dcap_qvl::config::{ParsedCert, X509Codec};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::x509::X509CertBackend;
use x509_parser::pem::Pem;

use crate::binding::BoundEvidence;
use crate::chain::{Chain, fingerprint};
use crate::collateral::{Collateral, CollateralKey, FamilySession, FamilyUsage, Fmspc};
use crate::denial::Denial;
use crate::event_log::Identity;
use crate::policy::{OwnMeasurements, PeerEntry, Policy, PolicyEpoch};
use crate::quote::TdQuote;
use crate::signature_cache::CachingConfig;
use crate::tcb::TcbStatus;
use crate::values::{AppId, ComposeHash, Fingerprint, InstanceId, Mrtd, OsImageHash, Rtmr};

mod admit;
mod classify;
mod elsewhere;
mod inspect;

pub(crate) use admit::admit;
pub(crate) use elsewhere::check_bare;
pub use elsewhere::dangerous_admit;

/// `Intel SGX Root CA`, valid 2018-05-21 to 2049-12-31, as Intel publishes it at
/// <https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer>.
const INTEL_ROOT: &[u8] = include_bytes!("verify/intel-sgx-root-ca.der");

/// The root under which quotes must verify.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedRoot {
    der: Cow<'static, [u8]>,
    dangerous: bool,
}

/// A root that is not a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not one X.509 certificate, in PEM or DER")]
pub struct RootError;

impl TrustedRoot {
    /// Intel's root, the only one for production.
    #[must_use]
    pub fn intel() -> Self {
        Self {
            der: Cow::Borrowed(INTEL_ROOT),
            dangerous: false,
        }
    }

    /// Another root, for tests: the holder of its key can forge any quote. (`dangerous_tdx_root_ca`)
    ///
    /// # Errors
    /// [`RootError`] if it is not one certificate.
    pub fn dangerous(pem_or_der: &[u8]) -> Result<Self, RootError> {
        let der = match pem_or_der.first() {
            Some(&crate::der::SEQUENCE) => pem_or_der.to_vec(),
            _ => only_pem(pem_or_der)?,
        };
        X509CertBackend::from_der(&der).map_err(|_| RootError)?;
        let dangerous = der != INTEL_ROOT;
        Ok(Self {
            der: Cow::Owned(der),
            dangerous,
        })
    }

    /// Whether it is not Intel's.
    #[must_use]
    pub fn is_dangerous(&self) -> bool {
        self.dangerous
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.der)
    }
}

fn only_pem(pem: &[u8]) -> Result<Vec<u8>, RootError> {
    let mut blocks = Pem::iter_from_buffer(pem);
    match (blocks.next(), blocks.next()) {
        (Some(Ok(block)), None) if block.label == "CERTIFICATE" => Ok(block.contents),
        _ => Err(RootError),
    }
}

impl fmt::Debug for TrustedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TrustedRoot({}, dangerous: {})",
            self.fingerprint(),
            self.dangerous
        )
    }
}

impl TdQuote {
    /// Identifies the collateral for the quote: the platform family and the CA of its PCK certificate. Parses a
    /// certificate, so it must not run on a shard.
    ///
    /// # Errors
    /// [`Denial::UnsupportedQuote`] if the PCK certificate cannot be parsed, or has an unknown CA.
    pub fn collateral_key(&self) -> Result<CollateralKey, Denial> {
        let wrong = Denial::UnsupportedQuote("its PCK certificate cannot be read");
        let pck = self.pck_certificate()?;
        let extension = dcap_qvl::intel::parse_pck_extension(&pck).map_err(|_| wrong.clone())?;
        let ca = X509CertBackend::from_der(&pck).map_err(|_| wrong)?.pck_ca();
        let ca = ca.ok_or(Denial::UnsupportedQuote(
            "its PCK certificate is of an unknown CA",
        ))?;
        Ok(CollateralKey {
            fmspc: Fmspc(extension.fmspc),
            ca: ca.into(),
        })
    }

    /// The PCK certificate in DER.
    ///
    /// # Errors
    /// [`Denial::UnsupportedQuote`] if it is not PEM.
    pub(crate) fn pck_certificate(&self) -> Result<Vec<u8>, Denial> {
        let first = Pem::iter_from_buffer(self.pck_chain()).next();
        let pck = first.and_then(Result::ok);
        let pck = pck.ok_or(Denial::UnsupportedQuote(
            "its PCK certificate cannot be read",
        ))?;
        Ok(pck.contents)
    }
}

/// The result of verifying a quote by Intel's signatures or by Trust Authority, before any policy. It says nothing
/// about the quote's owner: a verified peer is an [`AttestedPeer`].
#[derive(Clone, Debug)]
pub struct Appraisal {
    pub(crate) tcb_status: TcbStatus,
    pub(crate) advisories: Arc<[String]>,
    pub(crate) valid_until: u64,
}

impl Appraisal {
    /// The TCB status of the platform, with the quoting enclave and the TDX module.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// The advisories that the platform is subject to.
    #[must_use]
    pub fn advisories(&self) -> &[String] {
        &self.advisories
    }

    /// The last second at which collateral, PCK chain and root, or the token, are valid, in Unix seconds.
    #[must_use]
    pub fn valid_until(&self) -> u64 {
        self.valid_until
    }
}

/// Verifies quotes under one root.
pub struct Verifier {
    root: TrustedRoot,
    strict: QuoteVerifier<CachingConfig>,
    debug_allowed: QuoteVerifier<CachingConfig>,
}

impl Verifier {
    /// A verifier under `root`.
    #[must_use]
    pub fn new(root: TrustedRoot) -> Self {
        let verifier = || QuoteVerifier::new_with_config(root.der.to_vec());
        Self {
            strict: verifier(),
            debug_allowed: verifier().allow_debug(true),
            root,
        }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &TrustedRoot {
        &self.root
    }

    /// Makes every check that [`examine`](crate::examine) has not made. `now` is in Unix seconds.
    ///
    /// # Errors
    /// The first [`Denial`], in the order of [`Denial::CODES`].
    pub fn verify(
        &self,
        evidence: &BoundEvidence,
        collateral: &Collateral,
        policy: &Policy,
        now: u64,
    ) -> Result<AttestedPeer, Denial> {
        let appraisal = self.appraise(evidence.quote(), collateral, policy, now)?;
        admit(evidence, appraisal, policy)
    }

    /// Checks the debug bit, the collateral, and every signature from the quote up to the root. Does not
    /// check whose quote it is: for bare quotes, which have no certificate to be bound to.
    ///
    /// # Errors
    /// A [`Denial`] from `collateral_unavailable` to `tcb_not_supported` in [`Denial::CODES`], or
    /// `tcb_revoked`.
    pub fn appraise(
        &self,
        quote: &TdQuote,
        collateral: &Collateral,
        policy: &Policy,
        now: u64,
    ) -> Result<Appraisal, Denial> {
        collateral.check_dates(now)?;
        policy.check_tcb_evaluation(collateral)?;
        policy.check_debug(quote.report())?;
        let allow_debug = policy.settings().allow_debug_td;
        self.verify_signatures(quote, collateral, policy, allow_debug, now)
    }

    /// dcap-qvl's part of [`Verifier::appraise`].
    fn verify_signatures(
        &self,
        quote: &TdQuote,
        collateral: &Collateral,
        policy: &Policy,
        allow_debug: bool,
        now: u64,
    ) -> Result<Appraisal, Denial> {
        let verifier = if allow_debug {
            &self.debug_allowed
        } else {
            &self.strict
        };
        // Accepts every TCB status: our policy decides, afterwards.
        let any = dcap_qvl::QuotePolicy::claims_only(now);
        let claims = verifier
            .verify_with_policy(quote.as_bytes(), collateral.as_qvl(), now, &any)
            .map_err(|error| classify::denial(&error, quote, collateral, policy))?;
        Ok(Appraisal {
            tcb_status: claims.tcb.status.into(),
            advisories: claims.tcb.advisory_ids.into(),
            valid_until: claims
                .earliest_expiration_date
                .min(collateral.expires_at().saturating_sub(1)),
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// A verified peer: its quote is genuine, bound to its certificate's key, and allowed by the policy.
///
/// Only [`Verifier::verify`], [`Verifier::inspect`],
/// [`AppraisedEvidence::admit`](crate::ita::AppraisedEvidence::admit) and [`dangerous_admit`] make one.
#[derive(Clone, Debug)]
pub struct AttestedPeer {
    chain: Chain,
    mrtd: Mrtd,
    rtmrs: [Rtmr; 4],
    identity: Identity,
    appraisal: Appraisal,
    debug: bool,
    policy: PolicyEpoch,
    entry: Arc<PeerEntry>,
    os: Option<Arc<str>>,
    valid_until: u64,
    family: Option<FamilyUsage>,
}

impl AttestedPeer {
    /// The same peer, whose sessions count as use of the collateral that it was verified with.
    #[must_use]
    pub fn of_family(self, family: Option<FamilyUsage>) -> Self {
        Self { family, ..self }
    }

    /// Counts a session of this peer for its platform family, from `now` in Unix seconds until the result is dropped.
    #[must_use]
    pub fn begin_session(&self, now: u64) -> Option<FamilySession> {
        self.family.as_ref().map(|family| family.begin(now))
    }

    /// The presented chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The leaf's fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.chain.fingerprint()
    }

    /// MRTD.
    #[must_use]
    pub fn mrtd(&self) -> Mrtd {
        self.mrtd
    }

    /// RTMR0 to RTMR3.
    #[must_use]
    pub fn rtmrs(&self) -> [Rtmr; 4] {
        self.rtmrs
    }

    /// The identity that the event log proves.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the members of a cluster have in common, if this peer is the process itself. `None` if its event log proves
    /// no app id or no compose hash: any application on the same operating system would then be a member.
    #[must_use]
    pub fn measurements(&self) -> Option<OwnMeasurements> {
        let [_, rtmr1, rtmr2, _] = self.rtmrs;
        Some(OwnMeasurements {
            mrtd: self.mrtd,
            rtmr1,
            rtmr2,
            app_id: self.app_id()?,
            compose_hash: self.compose_hash()?,
        })
    }

    /// The app id, if the event log proves one.
    #[must_use]
    pub fn app_id(&self) -> Option<AppId> {
        self.identity.app_id()
    }

    /// The compose hash, if the event log proves one.
    #[must_use]
    pub fn compose_hash(&self) -> Option<ComposeHash> {
        self.identity.compose_hash()
    }

    /// The instance id, if the event log proves one.
    #[must_use]
    pub fn instance_id(&self) -> Option<InstanceId> {
        self.identity.instance_id()
    }

    /// The OS image hash, if the event log proves one.
    #[must_use]
    pub fn os_image_hash(&self) -> Option<OsImageHash> {
        self.identity.os_image_hash()
    }

    /// The key provider, if the event log proves one.
    #[must_use]
    pub fn key_provider(&self) -> Option<&str> {
        self.identity.key_provider()
    }

    /// The TCB status.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.appraisal.tcb_status
    }

    /// The advisories that the platform is subject to.
    #[must_use]
    pub fn advisories(&self) -> &[String] {
        &self.appraisal.advisories
    }

    /// Whether it is in debug mode, which needs `allow_debug_td`.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.debug
    }

    /// The policy that admitted it.
    #[must_use]
    pub fn policy_epoch(&self) -> PolicyEpoch {
        self.policy
    }

    /// The entry of the policy that admitted it.
    #[must_use]
    pub fn entry(&self) -> &Arc<PeerEntry> {
        &self.entry
    }

    /// The name of its operating system in the policy file.
    #[must_use]
    pub fn os_name(&self) -> Option<&str> {
        self.os.as_deref()
    }

    /// The last second at which what says of the platform that it is genuine is valid, in Unix seconds: collateral,
    /// PCK chain and root, or the token.
    #[must_use]
    pub fn appraisal_valid_until(&self) -> u64 {
        self.appraisal.valid_until
    }

    /// The last second at which the verdict is valid, in Unix seconds: the earliest end of the certificate, its
    /// issuers, the collateral or token, the platform's certificates and the maximum age.
    #[must_use]
    pub fn valid_until(&self) -> u64 {
        self.valid_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine shares them between threads.
    #[test]
    fn types_are_send_and_sync() {
        fn is_send_and_sync<T: Send + Sync>() {}
        is_send_and_sync::<Verifier>();
        is_send_and_sync::<AttestedPeer>();
        is_send_and_sync::<BoundEvidence>();
        is_send_and_sync::<Policy>();
    }
}
