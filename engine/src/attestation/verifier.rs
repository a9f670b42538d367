//! Verifies quotes, with the policy, the trusted root and the collateral of the process.
//!
//! Runs on a verify thread or the control thread, never on a shard: a verification takes about
//! half a millisecond, and fetching collateral takes a network round trip or more. Verdicts are cached, so that a burst
//! of connections with the same new certificate costs at most one verification on each thread. Forwarders of one
//! process share the verify threads, and may trust different roots: each verifier has its own cache.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use attest::cache::{Capacity, Epoch, Verdict, VerdictCache};
use attest::chain::{Chain, KmsRoot};
use attest::collateral::{Collateral, CollateralKey, FamilyUsage, Handle};
use attest::quote::TdQuote;
use attest::{AttestedPeer, BoundEvidence, Denial, Policy, TrustedRoot, Verifier, examine};
use metrics::Histogram;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::attestation::custom::CustomVerifier;
use crate::attestation::members::MemberVerifier;
use crate::auth::grants::EntrySessions;
use crate::io::clock::unix_now;
use crate::io::offload::{OffloadPool, PoolOptions};

/// The longest time that a verdict is cached, in seconds.
pub(crate) const VERDICT_TTL: u64 = 600;

/// Nice value of a verify thread, about one third of a shard's CPU weight: a surge of new clients
/// queues instead of slowing established sessions (docs/adr/0006-paced-handshake-queue.md).
const VERIFY_NICE: i32 = 5;

/// A pool for full verifications.
pub(crate) fn verify_pool_options(threads: usize, max_wait: Duration) -> PoolOptions {
    PoolOptions {
        threads,
        max_wait,
        ..PoolOptions::single("verify", VERIFY_NICE)
    }
}

/// Starts a pool of one thread for full verifications.
///
/// # Errors
/// The system cannot create another thread.
pub(crate) fn start_verify_pool() -> std::io::Result<OffloadPool> {
    OffloadPool::start("verify", VERIFY_NICE)
}

/// The current policy and everything that a verification needs.
pub(crate) struct QuoteVerifier {
    policy: ArcSwap<Policy>,
    /// Stands for `kms_root = own`, once a certificate of the guest agent shows it.
    own_root: ArcSwapOption<KmsRoot>,
    sessions: EntrySessions,
    verifier: Verifier,
    pck_root: Option<KmsRoot>,
    collateral: Handle,
    control: tokio::runtime::Handle,
    /// The duration of each full verification, in seconds.
    verification_seconds: Histogram,
    authority: Option<Authority>,
    /// Verdicts of the verify threads, which find those of each other: the same certificate is verified at most once
    /// on each of them. Only they take the lock, and never during a verification.
    verdicts: Mutex<Option<VerdictCache>>,
    /// Verifies the members of a cluster, if there is one.
    members: OnceLock<Arc<MemberVerifier>>,
}

/// Verifies quotes instead of this process.
pub(crate) enum Appraiser {
    /// Intel Trust Authority.
    TrustAuthority(Box<attest::ita::Client>),
    /// The application that this forwarder is part of.
    Custom(CustomVerifier),
}

impl Appraiser {
    async fn verify(&self, evidence: &BoundEvidence, policy: &Policy, now: u64) -> Verdict {
        let peer = match self {
            Self::TrustAuthority(client) => client.verify(evidence, policy, now).await?,
            Self::Custom(verifier) => verifier.appraise(evidence, policy, now).await?,
        };
        Ok(Arc::new(peer))
    }
}

/// What verifies instead of this process, and its verdicts.
struct Authority {
    appraiser: Appraiser,
    /// Locked during a request, so that a burst of connections with the same certificate causes
    /// one request.
    state: tokio::sync::Mutex<AuthorityState>,
}

#[derive(Default)]
struct AuthorityState {
    verdicts: Option<VerdictCache>,
    /// When the last request failed, and why. Callers that waited for it get this denial.
    failed: Option<(Instant, Denial)>,
}

/// Checks that the quote's platform was certified by the trusted root. This comes before the
/// request for collateral, because a client can invent any number of platforms.
///
/// # Errors
/// The PCK certificate chain is malformed, or does not end in `root`.
pub(crate) fn check_pck_chain(
    root: Option<&KmsRoot>,
    quote: &TdQuote,
    now: u64,
) -> Result<(), Denial> {
    let root = root.ok_or(Denial::BadSignature)?;
    let pem = CertificateDer::pem_slice_iter(quote.pck_chain());
    let chain: Vec<_> = pem
        .collect::<Result<_, _>>()
        .map_err(|_| Denial::UnsupportedQuote("its PCK chain cannot be read"))?;
    Chain::copy(&chain)?
        .verify_up_to(std::slice::from_ref(root), now)
        .map(drop)
        .map_err(|_| Denial::BadSignature)
}

/// When the certificates of a peer have to be valid.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AsOf {
    /// Now, which is this, in Unix seconds.
    Now(u64),
    /// When a session was admitted. Such a verdict is neither cached nor, if it is a denial, taken from the cache.
    Admission(u64),
}

impl AsOf {
    /// In Unix seconds.
    pub(crate) fn time(self) -> u64 {
        match self {
            Self::Now(time) | Self::Admission(time) => time,
        }
    }

    /// A cached verdict, if it applies. Who is admitted with certificates that are valid now was admitted before.
    fn applicable(self, cached: Option<Verdict>) -> Option<Verdict> {
        cached.filter(|verdict| matches!(self, Self::Now(_)) || verdict.is_ok())
    }
}

/// The result of a verification.
pub(crate) enum Verification {
    /// The verdict, and the epoch that it belongs to.
    Verdict(Epoch, Verdict),
    /// This collateral must be fetched first.
    MissingCollateral(CollateralKey),
}

impl QuoteVerifier {
    pub(crate) fn new(
        policy: Policy,
        root: TrustedRoot,
        collateral: Handle,
        control: tokio::runtime::Handle,
        verification_seconds: Histogram,
        authority: Option<Appraiser>,
    ) -> Arc<Self> {
        let authority = authority.map(|appraiser| Authority {
            appraiser,
            state: tokio::sync::Mutex::default(),
        });
        Arc::new(Self {
            authority,
            sessions: EntrySessions::of(&policy),
            policy: ArcSwap::from_pointee(policy),
            own_root: ArcSwapOption::empty(),
            pck_root: KmsRoot::from_der(root.der()).ok(),
            verifier: Verifier::new(root),
            collateral,
            control,
            verification_seconds,
            verdicts: Mutex::default(),
            members: OnceLock::new(),
        })
    }

    /// Removes expired verdicts. Must run on a verify thread.
    pub(crate) fn sweep_verdicts(&self) {
        self.with_verdicts(|verdicts| {
            if let Some(verdicts) = verdicts {
                while !verdicts.sweep(unix_now()) {}
            }
        });
    }

    /// A panic leaves no verdict half written.
    fn with_verdicts<T>(&self, with: impl FnOnce(&mut Option<VerdictCache>) -> T) -> T {
        with(&mut self.verdicts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The verifier of members, which follows this one's policy from now on.
    pub(crate) fn start_members(&self) -> &Arc<MemberVerifier> {
        self.members.get_or_init(|| {
            let clients = self.policy.load();
            let verifier = Self::new(
                clients.without_entries(),
                self.verifier.root().clone(),
                self.collateral.clone(),
                self.control.clone(),
                self.verification_seconds.clone(),
                None,
            );
            MemberVerifier::new(verifier, &clients)
        })
    }

    /// The current policy.
    pub(crate) fn policy(&self) -> arc_swap::Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// The numbers of sessions by policy entry.
    pub(crate) fn sessions(&self) -> &EntrySessions {
        &self.sessions
    }

    /// Uses the last certificate of `chain`, which the guest agent issued to this process, for `kms_root = own`.
    /// Returns whether the policy has changed. Must be called by one thread only, as [`Self::set_policy`].
    pub(crate) fn set_own_chain(&self, chain: &[CertificateDer<'_>]) -> bool {
        let policy = self.policy.load_full();
        let issuer = chain.get(1..).and_then(<[_]>::last);
        let Some(root) = issuer.and_then(|der| KmsRoot::from_der(der).ok()) else {
            if policy.needs_own_root() {
                tracing::error!(
                    "kms_root = own: the certificate chain from the guest agent has no CA certificate: name a PEM \
                     file with the KMS's root"
                );
            }
            return false;
        };
        let known = self.own_root.swap(Some(Arc::new(root.clone())));
        if !policy.needs_own_root() || known.as_deref() == Some(&root) {
            return false;
        }
        tracing::info!(root = %root.fingerprint(), "the KMS root of this machine's guest agent is required of peers");
        self.set_policy(Policy::clone(&policy))
    }

    /// Replaces the policy. Returns whether the new one differs.
    pub(crate) fn set_policy(&self, policy: Policy) -> bool {
        let own_root = self.own_root.load_full();
        let policy = policy.with_own_root(own_root.map(|root| KmsRoot::clone(&root)));
        self.sessions.set_policy(&policy);
        let changed = self.replace_policy(policy);
        if let Some(members) = self.members.get() {
            members.follow(&self.policy.load());
        }
        changed
    }

    /// Replaces the policy by one that is complete. Returns whether the new one differs.
    pub(super) fn replace_policy(&self, policy: Policy) -> bool {
        let before = self.policy.swap(Arc::new(policy));
        before.epoch() != self.policy.load().epoch()
    }

    /// The current epoch: the version of policy and collateral that verdicts depend on.
    pub(crate) fn epoch(&self, policy: &Policy) -> Epoch {
        Epoch {
            policy: policy.epoch(),
            collateral: self.collateral.epoch(),
        }
    }

    /// Performs a full verification, or returns the cached verdict. Takes up to 0.6 ms. Must run
    /// on a verify thread. `as_of` is when `evidence` was examined.
    pub(crate) fn verify(&self, evidence: &BoundEvidence, as_of: AsOf) -> Verification {
        let (policy, now) = (self.policy.load_full(), unix_now());
        let snapshot = self.collateral.snapshot();
        let epoch = Epoch {
            policy: policy.epoch(),
            collateral: snapshot.epoch(),
        };
        let cached = self.with_verdicts(|verdicts| {
            verdicts
                .get_or_insert_with(|| VerdictCache::new(Capacity::default(), VERDICT_TTL, epoch))
                .get(epoch, evidence.chain().certificates(), now)
        });
        if let Some(verdict) = as_of.applicable(cached) {
            return Verification::Verdict(epoch, verdict);
        }
        let verdict = match evidence.collateral_key() {
            Err(denial) => Err(denial),
            Ok(key) => match snapshot.get(key, now) {
                Some(collateral) => {
                    let family = snapshot.usage(key).cloned();
                    let verdict =
                        self.verify_with_collateral(evidence, collateral, family, &policy, now);
                    self.refresh_if_too_old(verdict.as_ref().err(), evidence, key, now);
                    verdict
                }
                // Clients must not cause requests for platforms that they invent.
                None => match self.check_pck_chain(evidence, now) {
                    Ok(()) => return Verification::MissingCollateral(key),
                    Err(denial) => Err(denial),
                },
            },
        };
        self.with_verdicts(|verdicts| {
            if let (Some(verdicts), AsOf::Now(_)) = (verdicts, as_of) {
                verdicts.insert(epoch, evidence.chain(), &verdict, now);
            }
        });
        Verification::Verdict(epoch, verdict)
    }

    fn verify_with_collateral(
        &self,
        evidence: &BoundEvidence,
        collateral: &Collateral,
        family: Option<FamilyUsage>,
        policy: &Policy,
        now: u64,
    ) -> Verdict {
        let started = Instant::now();
        let verdict = self.verifier.verify(evidence, collateral, policy, now);
        self.verification_seconds.record(started.elapsed());
        verdict.map(|peer| Arc::new(peer.of_family(family)))
    }

    /// What the chain of this process's own certificate proves, by the conditions on the platform only: it need not be
    /// one of its own clients. The same is then expected of members. Takes up to 0.6 ms.
    ///
    /// # Errors
    /// [`Denial`]; [`Denial::CollateralUnavailable`] if the collateral is not cached.
    pub(crate) fn judge_own(&self, chain: &[CertificateDer<'_>]) -> Result<AttestedPeer, Denial> {
        let now = unix_now();
        let policy = self.policy.load().without_entries();
        let evidence = examine(chain, now, &policy)?;
        self.check_pck_chain(&evidence, now)?;
        let snapshot = self.collateral.snapshot();
        let key = evidence.collateral_key()?;
        let collateral = snapshot
            .get(key, now)
            .ok_or(Denial::CollateralUnavailable)?;
        let verdict = self.verifier.verify(&evidence, collateral, &policy, now);
        self.refresh_if_too_old(verdict.as_ref().err(), &evidence, key, now);
        let own = verdict?;
        if let Some(members) = self.members.get() {
            members.set_own(&own, &self.policy.load());
        }
        Ok(own)
    }

    /// Asks for newer collateral if the policy's minimum TCB evaluation was raised above that of the cached one, which
    /// would otherwise refuse every peer until the next refresh.
    fn refresh_if_too_old(
        &self,
        denial: Option<&Denial>,
        evidence: &BoundEvidence,
        key: CollateralKey,
        now: u64,
    ) {
        if matches!(denial, Some(Denial::TcbEvaluationTooOld { .. }))
            && self.check_pck_chain(evidence, now).is_ok()
        {
            self.collateral.refresh(key);
        }
    }

    fn check_pck_chain(&self, evidence: &BoundEvidence, now: u64) -> Result<(), Denial> {
        check_pck_chain(self.pck_root.as_ref(), evidence.quote(), now)
    }

    /// Whether Intel Trust Authority or the application verifies instead of this process.
    pub(crate) fn uses_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Has another than this process verify `evidence`. Runs on the control thread and calls `done` with
    /// the result.
    pub(crate) fn appraise(
        self: &Arc<Self>,
        evidence: Arc<BoundEvidence>,
        as_of: AsOf,
        done: impl FnOnce(Verification) + Send + 'static,
    ) {
        let quote_verifier = Arc::clone(self);
        self.control.spawn(async move {
            if let Some(authority) = &quote_verifier.authority {
                done(
                    quote_verifier
                        .appraise_by(authority, &evidence, as_of)
                        .await,
                );
            }
        });
    }

    /// Requests a verdict as a single flight: callers with the same certificate share it.
    async fn appraise_by(
        &self,
        authority: &Authority,
        evidence: &BoundEvidence,
        as_of: AsOf,
    ) -> Verification {
        let (policy, now) = (self.policy.load_full(), unix_now());
        let epoch = self.epoch(&policy);
        let requested = Instant::now();
        let mut state = authority.state.lock().await;
        let AuthorityState { verdicts, failed } = &mut *state;
        let verdicts = verdicts
            .get_or_insert_with(|| VerdictCache::new(Capacity::default(), VERDICT_TTL, epoch));
        let cached = verdicts.get(epoch, evidence.chain().certificates(), now);
        if let Some(verdict) = as_of.applicable(cached) {
            return Verification::Verdict(epoch, verdict);
        }
        verdicts.sweep(now);
        if let Some((ended, denial)) = failed
            && requested <= *ended
        {
            return Verification::Verdict(epoch, Err(denial.clone()));
        }
        let started = Instant::now();
        let verdict = authority.appraiser.verify(evidence, &policy, now).await;
        self.verification_seconds.record(started.elapsed());
        if let AsOf::Now(_) = as_of {
            verdicts.insert(epoch, evidence.chain(), &verdict, now);
        }
        if let Err(denial) = &verdict
            && denial.fault() == attest::denial::Fault::Ours
        {
            *failed = Some((Instant::now(), denial.clone()));
        }
        Verification::Verdict(epoch, verdict)
    }

    /// Seconds until the first collateral expires of a platform family that has sessions, or of this machine's own. If
    /// there is none, of those that are valid; `None` if there is none either.
    pub(crate) fn seconds_until_collateral_expiry(&self, now: u64) -> Option<u64> {
        let snapshot = self.collateral.snapshot();
        let used = snapshot.seconds_until_expiry(now).map(|(_, left)| left);
        let cached = snapshot.iter().map(|cached| cached.expires_at());
        let valid = cached.filter_map(|at| at.checked_sub(now).filter(|left| *left > 0));
        used.min().or_else(|| valid.min())
    }

    /// The cached collateral, and the handle to request more.
    pub(crate) fn collateral(&self) -> &Handle {
        &self.collateral
    }

    /// Fetches collateral on the control thread, and calls `done` with whether it is available.
    /// Concurrent requests for one key share a single flight.
    pub(crate) fn fetch(&self, key: CollateralKey, done: impl FnOnce(bool) + Send + 'static) {
        let collateral = self.collateral.clone();
        self.control.spawn(async move {
            let result = collateral.request(key).await;
            if let Err(error) = &result {
                tracing::warn!(%error, "cannot fetch collateral to verify a peer");
            }
            done(result.is_ok());
        });
    }
}

#[cfg(test)]
mod tests {
    use attest::collateral::{Environment, Refresher, Schedule, Store};
    use attest::mock::Pki;
    use attest::policy::{KmsRootPin, Settings};

    use super::*;

    fn quote_verifier(policy: Policy, runtime: &tokio::runtime::Runtime) -> Arc<QuoteVerifier> {
        let store = Store::new(TrustedRoot::intel().der().to_vec(), Schedule::default());
        let environment = Environment {
            now: Box::new(unix_now),
            random: Box::new(|| 0),
            events: Box::new(drop),
        };
        let (_, collateral) = Refresher::new(store, None, None, environment);
        QuoteVerifier::new(
            policy,
            TrustedRoot::intel(),
            collateral,
            runtime.handle().clone(),
            Histogram::noop(),
            None,
        )
    }

    #[test]
    fn own_root_follows_the_chain_of_the_guest_agent() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let own = || {
            Policy::new(Settings {
                kms_root: KmsRootPin::Own,
                ..Settings::default()
            })
        };
        let verifier = quote_verifier(own(), &runtime);
        assert_eq!(verifier.policy().own_root(), None);
        let chain = |pki: &Pki| {
            [pki.root_der(), pki.kms_der()].map(|der| CertificateDer::from(der.to_vec()))
        };
        let [first, second] = [1, 2].map(|seed| Pki::new(&[seed; 32]).unwrap());
        assert!(verifier.set_own_chain(&chain(&first)));
        assert!(!verifier.set_own_chain(&chain(&first)), "the same root");
        let root = |pki: &Pki| KmsRoot::from_der(pki.kms_der()).unwrap();
        assert_eq!(verifier.policy().own_root(), Some(&root(&first)));
        // A renewal with another root, and a reload of the policy.
        assert!(verifier.set_own_chain(&chain(&second)));
        assert!(!verifier.set_policy(own()), "the same policy");
        assert_eq!(verifier.policy().own_root(), Some(&root(&second)));
        // A chain without a CA changes nothing.
        let [leaf, _] = chain(&first);
        assert!(!verifier.set_own_chain(&[leaf]));
        assert_eq!(verifier.policy().own_root(), Some(&root(&second)));
        assert!(verifier.set_policy(Policy::default()));
        assert!(!verifier.set_own_chain(&chain(&first)), "it is not needed");
        // The policy that needs it again has the root of the present chain.
        assert!(verifier.set_policy(own()));
        assert_eq!(verifier.policy().own_root(), Some(&root(&first)));
    }
}
