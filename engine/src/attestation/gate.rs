//! The gate between TLS and the login: verifies the attestation in the peer's certificate.
//!
//! rustls calls a certificate verifier during full handshakes only, not on resumption, and the
//! verifier must not wait. So that verifier checks only what TLS needs: that the peer possesses
//! the key of its certificate. The gate verifies the certificate itself, on every connection,
//! after the handshake and before the first byte of the login.
//!
//! A verdict is cached per shard for the current epoch, which is the version of policy and
//! collateral. A verdict of an earlier epoch must never admit a peer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use attest::cache::{Capacity, Epoch, Verdict, VerdictCache};
use attest::policy::PolicyEpoch;
use attest::{AttestedPeer, BoundEvidence, Denial, examine};
use rustls::pki_types::CertificateDer;

use crate::attestation::verifier::{AsOf, QuoteVerifier, VERDICT_TTL, Verification};
use crate::auth::grants::{EntryIsFull, EntryPermit};
use crate::io::clock::unix_now;
use crate::io::offload::{OffloadPool, PendingJobs};
use crate::sched::yield_now::yield_now;
use crate::telemetry::shard_metrics::{ShardMetrics, VerdictSource};

/// Attempts at one verification. The second one is needed if the first one lacked collateral, the
/// others if policy or collateral change in the meantime.
const MAX_ATTEMPTS: u32 = 4;

/// Proof that a peer has passed the gate. Only the gate can create it, and the login requires it.
pub(crate) struct Attested(PeerState);

enum PeerState {
    Peer(Arc<AttestedPeer>),
    /// The configuration admits peers without evidence.
    Unattested,
}

impl Attested {
    /// The verified peer; `None` if it was admitted without evidence.
    pub(crate) fn peer(&self) -> Option<&Arc<AttestedPeer>> {
        match &self.0 {
            PeerState::Peer(peer) => Some(peer),
            PeerState::Unattested => None,
        }
    }
}

/// The gate of one shard.
pub(crate) enum Gate {
    /// Admits every peer: `allow_unattested_clients`, or a forwarder's `verifier = none`.
    Open,
    /// Verifies every peer.
    Attesting(Box<AttestingGate>),
}

/// A gate that verifies evidence.
pub(crate) struct AttestingGate {
    quote_verifier: Arc<QuoteVerifier>,
    verify_pool: OffloadPool,
    jobs: PendingJobs,
    cache: RefCell<VerdictCache>,
    shard_metrics: Rc<ShardMetrics>,
    allows_simulators: bool,
}

impl Gate {
    pub(crate) fn attesting(gate: AttestingGate) -> Self {
        Self::Attesting(Box::new(gate))
    }

    /// Verifies the certificate chain of a peer, leaf first. What `begin_work` returns lives while the peer waits
    /// for a verification: not while collateral is fetched.
    ///
    /// # Errors
    /// The peer is refused.
    pub(crate) async fn admit<G>(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        begin_work: impl Fn() -> G,
    ) -> Result<Attested, Denial> {
        match self {
            Gate::Open => Ok(Attested(PeerState::Unattested)),
            Gate::Attesting(gate) => {
                let chain = chain.unwrap_or_default();
                match gate.verify(chain, begin_work).await {
                    Ok(peer) => Ok(Attested(PeerState::Peer(peer))),
                    Err(Denial::NoEvidence) if gate.allows_simulators => {
                        Ok(Attested(PeerState::Unattested))
                    }
                    Err(denial) => Err(denial),
                }
            }
        }
    }

    /// Whether a peer without evidence is admitted although others are verified.
    pub(crate) fn allows_simulators(&self) -> bool {
        match self {
            Gate::Open => false,
            Gate::Attesting(gate) => gate.allows_simulators,
        }
    }

    /// The current policy; `None` if every peer is admitted.
    pub(crate) fn policy_epoch(&self) -> Option<PolicyEpoch> {
        match self {
            Gate::Open => None,
            Gate::Attesting(gate) => Some(gate.quote_verifier.policy().epoch()),
        }
    }

    /// Verifies a peer that was admitted at `admitted_at` (Unix seconds) against the current policy and collateral.
    /// Its certificates, leaf and issuers, need not be valid any more: they have done their part in the handshake.
    ///
    /// # Errors
    /// The peer would be refused now.
    pub(crate) async fn still_admits(
        &self,
        peer: &AttestedPeer,
        admitted_at: u64,
    ) -> Result<Option<Arc<AttestedPeer>>, Denial> {
        match self {
            Gate::Open => Ok(None),
            Gate::Attesting(gate) => {
                let chain = peer.chain().certificates();
                // The leaf, or a certificate above it, which a verdict of now would not tell from a wrong one.
                if peer.valid_until() < unix_now() {
                    return gate.verify_as_of(chain, admitted_at).await.map(Some);
                }
                let verdict = match gate.verify(chain, || ()).await {
                    // The policy accepts younger certificates only, by now.
                    Err(denial) if denial.is_of_dates() => {
                        gate.verify_as_of(chain, admitted_at).await
                    }
                    verdict => verdict,
                };
                verdict.map(Some)
            }
        }
    }

    /// Whether the collateral that `peer` was last verified with has been invalid for longer than `grace`.
    pub(crate) fn collateral_ended(&self, peer: &AttestedPeer, now: u64, grace: Duration) -> bool {
        match self {
            // A token of Trust Authority lives for minutes, and says nothing about the time after it.
            Gate::Attesting(gate) if !gate.quote_verifier.uses_authority() => {
                let until = peer.appraisal_valid_until();
                now > until.saturating_add(grace.as_secs())
            }
            Gate::Open | Gate::Attesting(_) => false,
        }
    }

    /// Removes expired verdicts from the caches of this shard and of the verify threads, in steps between which the
    /// shard's other tasks run.
    pub(crate) async fn sweep_cache(&self) {
        let Gate::Attesting(gate) = self else { return };
        // A full queue means that the thread is busy, and inserts verdicts itself.
        let verifier = Arc::clone(&gate.quote_verifier);
        let sweep = move || verifier.sweep_verdicts();
        let _ = gate.jobs.offload(&gate.verify_pool, sweep).await;
        while !gate.cache.borrow_mut().sweep(unix_now()) {
            yield_now().await;
        }
    }

    /// Takes a place among the sessions of the peer's policy entry.
    ///
    /// # Errors
    /// The entry's `max_sessions` is reached.
    pub(crate) fn acquire_session(
        &self,
        peer: Option<&AttestedPeer>,
    ) -> Result<Option<EntryPermit>, EntryIsFull> {
        match (self, peer) {
            (Gate::Attesting(gate), Some(peer)) => {
                let sessions = gate.quote_verifier.sessions();
                sessions.acquire(peer.entry()).map(Some)
            }
            (Gate::Open | Gate::Attesting(_), _) => Ok(None),
        }
    }

    /// Moves a session's place to the policy entry that admits `peer` now.
    pub(crate) fn move_session(&self, peer: &AttestedPeer, permit: &mut EntryPermit) {
        if let Gate::Attesting(gate) = self {
            gate.quote_verifier.sessions().move_to(peer.entry(), permit);
        }
    }
}

impl AttestingGate {
    /// With `allows_simulators`, which is a forwarder's setting, a peer without any evidence is
    /// admitted.
    pub(crate) fn new(
        quote_verifier: &Arc<QuoteVerifier>,
        verify_pool: &OffloadPool,
        jobs: &PendingJobs,
        shard_metrics: &Rc<ShardMetrics>,
        allows_simulators: bool,
    ) -> Self {
        let epoch = quote_verifier.epoch(&quote_verifier.policy());
        Self {
            quote_verifier: Arc::clone(quote_verifier),
            verify_pool: verify_pool.clone(),
            jobs: jobs.clone(),
            cache: RefCell::new(VerdictCache::new(Capacity::default(), VERDICT_TTL, epoch)),
            shard_metrics: Rc::clone(shard_metrics),
            allows_simulators,
        }
    }

    /// Verifies a chain: from the cache, by the cheap checks on this shard, or on a verify thread.
    async fn verify<G>(&self, chain: &[impl AsRef<[u8]>], begin_work: impl Fn() -> G) -> Verdict {
        let now = unix_now();
        let evidence = {
            let policy = self.quote_verifier.policy();
            let epoch = self.quote_verifier.epoch(&policy);
            if let Some(verdict) = self.cache.borrow_mut().get(epoch, chain, now) {
                return self.count_verdict(VerdictSource::Cache, verdict);
            }
            match examine(chain, now, &policy) {
                Ok(evidence) => Arc::new(evidence),
                Err(denial) => return self.count_verdict(VerdictSource::Examination, Err(denial)),
            }
        };
        let (epoch, verdict) = self
            .verify_examined(chain, AsOf::Now(now), evidence.clone(), begin_work)
            .await?;
        let mut cache = self.cache.borrow_mut();
        cache.insert(epoch, evidence.chain(), &verdict, now);
        self.count_verdict(VerdictSource::Verification, verdict)
    }

    /// Verifies a chain as [`Self::verify`], with certificates that were valid at `admitted_at`. The verdict is not
    /// cached: it admits no other connection.
    async fn verify_as_of(&self, chain: &[impl AsRef<[u8]>], admitted_at: u64) -> Verdict {
        let examined = examine(chain, admitted_at, &self.quote_verifier.policy());
        let evidence = match examined {
            Ok(evidence) => Arc::new(evidence),
            Err(denial) => return self.count_verdict(VerdictSource::Examination, Err(denial)),
        };
        let (_, verdict) = self
            .verify_examined(chain, AsOf::Admission(admitted_at), evidence, || ())
            .await?;
        self.count_verdict(VerdictSource::Verification, verdict)
    }

    /// Verifies evidence that was examined as of `as_of`, in the current epoch.
    async fn verify_examined<G>(
        &self,
        chain: &[impl AsRef<[u8]>],
        as_of: AsOf,
        mut evidence: Arc<BoundEvidence>,
        begin_work: impl Fn() -> G,
    ) -> Result<(Epoch, Verdict), Denial> {
        for _ in 0..MAX_ATTEMPTS {
            let work = begin_work();
            let verification = self.verify_evidence(Arc::clone(&evidence), as_of).await?;
            drop(work);
            match verification {
                Verification::Verdict(epoch, verdict) => {
                    let policy = self.quote_verifier.policy();
                    if epoch == self.quote_verifier.epoch(&policy) {
                        return Ok((epoch, verdict));
                    }
                    // The epoch has changed, and the running sessions may have been
                    // revalidated already. This peer must be verified again.
                    evidence = Arc::new(examine(chain, as_of.time(), &policy)?);
                }
                Verification::MissingCollateral(key) => {
                    let fetched = self
                        .jobs
                        .request(|done| self.quote_verifier.fetch(key, done))
                        .await
                        .map_err(|_| Denial::Overloaded)?;
                    if !fetched {
                        return Err(Denial::CollateralUnavailable);
                    }
                }
            }
        }
        Err(Denial::CollateralUnavailable)
    }

    /// Counts a verdict and returns it.
    fn count_verdict(&self, source: VerdictSource, verdict: Verdict) -> Verdict {
        self.shard_metrics.verdicts.count(source, verdict.is_ok());
        verdict
    }

    /// Verifies evidence on a verify thread, or by Intel Trust Authority.
    async fn verify_evidence(
        &self,
        evidence: Arc<BoundEvidence>,
        as_of: AsOf,
    ) -> Result<Verification, Denial> {
        let quote_verifier = Arc::clone(&self.quote_verifier);
        if quote_verifier.uses_authority() {
            let appraised = self
                .jobs
                .request(|done| quote_verifier.appraise(evidence, as_of, done));
            return appraised.await.map_err(|_| Denial::Overloaded);
        }
        self.jobs
            .offload(&self.verify_pool, move || {
                quote_verifier.verify(&evidence, as_of)
            })
            .await
            .map_err(|_| Denial::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use attest::chain::KmsRoot;
    use attest::collateral::{Environment, Handle, Refresher, Schedule, Store};
    use attest::mock::{
        Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, PkiOptions, Platform,
        PlatformOptions, Validity,
    };
    use attest::policy::{KmsRootPin, Settings};
    use attest::{Policy, TrustedRoot};
    use futures_util::FutureExt;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};
    use crate::io::mailbox::mailbox;
    use crate::io::offload::JobResult;
    use crate::telemetry::metrics::Metrics;

    fn collateral(pki: &Pki, platform: &Platform, runtime: &tokio::runtime::Runtime) -> Handle {
        let store = Store::new(pki.root_der().to_vec(), Schedule::default());
        let environment = Environment {
            now: Box::new(unix_now),
            random: Box::new(|| 0),
            events: Box::new(drop),
        };
        let (refresher, handle) = Refresher::new(store, None, None, environment);
        runtime.spawn(refresher.run());
        let options = CollateralOptions::at(unix_now());
        handle
            .import(pki.parsed_collateral(&options).unwrap())
            .unwrap();
        runtime
            .block_on(handle.request(platform.collateral_key()))
            .unwrap();
        handle
    }

    /// A verdict under the old policy that arrives after the sessions have been revalidated must
    /// not admit a peer.
    #[test]
    fn a_verdict_of_an_earlier_epoch_is_verified_again() {
        let seed = [0x6a; 32];
        let pki = Pki::new(&seed).unwrap();
        let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
        let key = Key::derive(&seed, "client").unwrap();
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        let client = Certificate::issue(&pki, &platform, &key, &evidence, &leaf).unwrap();
        let chain = client
            .chain_der()
            .map(|der| CertificateDer::from(der.to_vec()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let root = TrustedRoot::dangerous(pki.root_der()).unwrap();
        let control = runtime.handle().clone();
        let quote_verifier = QuoteVerifier::new(
            Policy::default(),
            root,
            collateral(&pki, &platform, &runtime),
            control,
            metrics::Histogram::noop(),
            None,
        );
        let verify = OffloadPool::start("verify", 0).unwrap();
        block_on(IoDriver::Epoll, async {
            let (sender, mailbox) = mailbox::<JobResult>().unwrap();
            let jobs = PendingJobs::new(Arc::new(move |result| sender.send(result)));
            let shard_metrics = Rc::new(ShardMetrics::new(&Metrics::new().unwrap(), 0));
            let gate = AttestingGate::new(&quote_verifier, &verify, &jobs, &shard_metrics, false);
            let mut verifying = std::pin::pin!(gate.verify(&chain, || ()));
            assert!(verifying.as_mut().now_or_never().is_none());
            verify.finish_queue();
            let strict = Settings {
                mrtd: vec![attest::values::Mrtd([0x12; 48])],
                ..Settings::default()
            };
            assert!(quote_verifier.set_policy(Policy::new(strict)));
            // The shard reads its mailbox only after the policy has changed.
            monoio::spawn(mailbox.deliver(move |result| {
                jobs.complete(result);
                true
            }));
            let verdict = verifying.await;
            assert_eq!(verdict.unwrap_err().code(), "mrtd_not_allowed");
        })
        .unwrap();
    }

    /// The certificate of an issuer that has expired refuses a new connection, and ends no session.
    #[test]
    fn a_session_outlives_the_certificate_of_its_issuer() {
        let seed = [0x6b; 32];
        let now = unix_now();
        let expired = Validity {
            until: now - 60,
            ..Validity::default()
        };
        let options = PkiOptions {
            kms: expired,
            ..PkiOptions::default()
        };
        let pki = Pki::with_options(&seed, &options).unwrap();
        let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
        let key = Key::derive(&seed, "client").unwrap();
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        let client = Certificate::issue(&pki, &platform, &key, &evidence, &leaf).unwrap();
        let chain = client
            .chain_der()
            .map(|der| CertificateDer::from(der.to_vec()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let pinned = |der: &[u8]| {
            let root = KmsRoot::from_der(der).unwrap();
            Policy::new(Settings {
                kms_root: KmsRootPin::Roots(vec![root]),
                ..Settings::default()
            })
        };
        let quote_verifier = QuoteVerifier::new(
            pinned(pki.kms_der()),
            TrustedRoot::dangerous(pki.root_der()).unwrap(),
            collateral(&pki, &platform, &runtime),
            runtime.handle().clone(),
            metrics::Histogram::noop(),
            None,
        );
        let verify = OffloadPool::start("verify", 0).unwrap();
        block_on(IoDriver::Epoll, async {
            let (sender, mailbox) = mailbox::<JobResult>().unwrap();
            let jobs = PendingJobs::new(Arc::new(move |result| sender.send(result)));
            let completed = jobs.clone();
            monoio::spawn(mailbox.deliver(move |result| {
                completed.complete(result);
                true
            }));
            let shard_metrics = Rc::new(ShardMetrics::new(&Metrics::new().unwrap(), 0));
            let gate = AttestingGate::new(&quote_verifier, &verify, &jobs, &shard_metrics, false);
            let admitted_at = now - 120;
            let peer = gate.verify_as_of(&chain, admitted_at).await.unwrap();
            let new = gate.verify(&chain, || ()).await;
            assert_eq!(new.unwrap_err().code(), "kms_root_mismatch");
            // Also while the denial is cached.
            let gate = Gate::attesting(gate);
            let still = gate.still_admits(&peer, admitted_at).await.unwrap();
            assert_eq!(still.unwrap().chain(), peer.chain());
            // A policy with another root ends it.
            let other = Pki::new(&[0x6c; 32]).unwrap();
            assert!(quote_verifier.set_policy(pinned(other.kms_der())));
            let still = gate.still_admits(&peer, admitted_at).await;
            assert_eq!(still.unwrap_err().code(), "kms_root_mismatch");
        })
        .unwrap();
    }
}
