//! The gate between TLS and the login: nobody passes unattested.
//!
//! rustls' own verifier is asked during a full handshake only, never on a
//! resumed session, and it must not wait. So it does just what TLS needs, the
//! proof that the client holds its certificate's key; and the gate looks at the
//! certificate itself, on every connection, after the handshake and before the
//! first byte of the login.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use attest::cache::{Verdict, VerdictCache};
use attest::chain::Chain;
use attest::{AttestedPeer, BoundEvidence, Denial, examine};
use rustls::pki_types::CertificateDer;

use crate::attestation::verifier::{QuoteVerifier, VERDICT_TTL, Verification};
use crate::io::clock::unix_now;
use crate::io::offload::{OffloadThread, PendingJobs};
use crate::telemetry::shard_metrics::{ShardMetrics, VerdictSource};

/// Admissions that a shard remembers.
const REMEMBERED: usize = 4096;
/// Tries at one verification: the second finds the collateral that the first
/// missed, the others are for policy or collateral that changes in between.
const TRIES: u32 = 4;

/// What a client has shown of itself. Only the gate makes one, and the login
/// asks for one.
pub(crate) struct Attested(PeerState);

enum PeerState {
    Peer(Arc<AttestedPeer>),
    /// Clients are let in unattested, which was asked for twice.
    Nothing,
}

impl Attested {
    pub(crate) fn peer(&self) -> Option<&Arc<AttestedPeer>> {
        match &self.0 {
            PeerState::Peer(peer) => Some(peer),
            PeerState::Nothing => None,
        }
    }
}

/// A shard's gate.
pub(crate) enum Gate {
    /// `allow_unattested_clients`.
    Open,
    /// Every client has to prove itself.
    Attesting(Box<AttestingGate>),
}

pub(crate) struct AttestingGate {
    quote_verifier: Arc<QuoteVerifier>,
    verify: OffloadThread,
    jobs: PendingJobs,
    cache: RefCell<VerdictCache>,
    shard_metrics: Rc<ShardMetrics>,
    allows_simulators: bool,
}

impl Gate {
    pub(crate) fn attesting(gate: AttestingGate) -> Self {
        Self::Attesting(Box::new(gate))
    }

    /// Lets a client in, or says why not.
    pub(crate) async fn admit(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Attested, Denial> {
        match self {
            Gate::Open => Ok(Attested(PeerState::Nothing)),
            Gate::Attesting(gate) => {
                let chain = chain.unwrap_or_default();
                match gate.verify(chain).await {
                    Ok(peer) => Ok(Attested(PeerState::Peer(peer))),
                    Err(Denial::NoEvidence) if gate.allows_simulators => {
                        Ok(Attested(PeerState::Nothing))
                    }
                    Err(denial) => Err(denial),
                }
            }
        }
    }

    /// Whether a client that was let in would be let in now.
    pub(crate) async fn still_admits(&self, chain: &Chain) -> Result<(), Denial> {
        match self {
            Gate::Open => Ok(()),
            Gate::Attesting(gate) => gate.verify(chain.certificates()).await.map(drop),
        }
    }
}

impl AttestingGate {
    /// `allows_simulators` is a forwarder's: a peer without any evidence may enter.
    pub(crate) fn new(
        quote_verifier: &Arc<QuoteVerifier>,
        verify: &OffloadThread,
        jobs: &PendingJobs,
        shard_metrics: &Rc<ShardMetrics>,
        allows_simulators: bool,
    ) -> Self {
        let epoch = quote_verifier.epoch(&quote_verifier.policy());
        Self {
            quote_verifier: Arc::clone(quote_verifier),
            verify: verify.clone(),
            jobs: jobs.clone(),
            cache: RefCell::new(VerdictCache::new(REMEMBERED, VERDICT_TTL, epoch)),
            shard_metrics: Rc::clone(shard_metrics),
            allows_simulators,
        }
    }

    async fn verify(&self, chain: &[impl AsRef<[u8]>]) -> Verdict {
        let now = unix_now();
        let mut evidence = {
            let policy = self.quote_verifier.policy();
            let epoch = self.quote_verifier.epoch(&policy);
            if let Some(verdict) = self.cache.borrow_mut().get(epoch, chain, now) {
                return self.counted(VerdictSource::Cache, verdict);
            }
            match examine(chain, now, &policy) {
                Ok(evidence) => Arc::new(evidence),
                Err(denial) => return self.counted(VerdictSource::Examination, Err(denial)),
            }
        };
        for _ in 0..TRIES {
            match self.ask(Arc::clone(&evidence)).await? {
                Verification::Verdict(epoch, verdict) => {
                    if epoch != self.quote_verifier.epoch(&self.quote_verifier.policy()) {
                        // It changed meanwhile, and the sessions may have been
                        // looked at already: this one is judged anew.
                        evidence = Arc::new(examine(chain, now, &self.quote_verifier.policy())?);
                        continue;
                    }
                    let mut cache = self.cache.borrow_mut();
                    cache.insert(epoch, evidence.chain(), &verdict, now);
                    return self.counted(VerdictSource::Verification, verdict);
                }
                Verification::MissingCollateral(key) => {
                    let there = self
                        .jobs
                        .request(|done| self.quote_verifier.fetch(key, done))
                        .await
                        .map_err(|_| Denial::Overloaded)?;
                    if !there {
                        return Err(Denial::CollateralUnavailable);
                    }
                }
            }
        }
        Err(Denial::CollateralUnavailable)
    }

    fn counted(&self, source: VerdictSource, verdict: Verdict) -> Verdict {
        self.shard_metrics.verdicts.count(source, verdict.is_ok());
        verdict
    }

    async fn ask(&self, evidence: Arc<BoundEvidence>) -> Result<Verification, Denial> {
        let quote_verifier = Arc::clone(&self.quote_verifier);
        if quote_verifier.asks_authority() {
            let asked = self
                .jobs
                .request(|done| quote_verifier.appraise(evidence, done));
            return asked.await.map_err(|_| Denial::Overloaded);
        }
        self.jobs
            .offload(&self.verify, move || quote_verifier.verify(&evidence))
            .await
            .map_err(|_| Denial::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use attest::collateral::{Environment, Handle, Refresher, Schedule, Store};
    use attest::mock::{
        Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, Platform, PlatformOptions,
    };
    use attest::policy::Settings;
    use attest::{Policy, TrustedRoot};
    use futures_util::FutureExt;

    use super::*;
    use crate::io::driver::{IoDriver, block_on};
    use crate::io::mailbox::mailbox;
    use crate::io::offload::JobResult;
    use crate::telemetry::metrics::Metrics;

    fn collateral(pki: &Pki, platform: &Platform, runtime: &tokio::runtime::Runtime) -> Handle {
        let store = Store::new(pki.root_der().to_vec(), Schedule::default());
        let around = Environment {
            now: Box::new(unix_now),
            random: Box::new(|| 0),
            events: Box::new(drop),
        };
        let (keeper, handle) = Refresher::new(store, None, None, around);
        runtime.spawn(keeper.run());
        let options = CollateralOptions::at(unix_now());
        handle
            .import(pki.parsed_collateral(&options).unwrap())
            .unwrap();
        runtime
            .block_on(handle.request(platform.collateral_key()))
            .unwrap();
        handle
    }

    /// A verdict under the old policy that arrives after the sessions have been
    /// looked at again must not let anybody in.
    #[test]
    fn a_verdict_that_comes_late_is_judged_anew() {
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
        let verify = OffloadThread::start("verify", 0).unwrap();
        block_on(IoDriver::Epoll, async {
            let (sender, mailbox) = mailbox::<JobResult>().unwrap();
            let jobs = PendingJobs::new(Arc::new(move |result| sender.send(result)));
            let shard_metrics = Rc::new(ShardMetrics::new(&Metrics::new().unwrap(), 0));
            let gate = AttestingGate::new(&quote_verifier, &verify, &jobs, &shard_metrics, false);
            let mut verifying = std::pin::pin!(gate.verify(&chain));
            assert!(verifying.as_mut().now_or_never().is_none());
            verify.finish_queue();
            let strict = Settings {
                mrtd: vec![attest::values::Mrtd([0x12; 48])],
                ..Settings::default()
            };
            assert!(quote_verifier.set_policy(Policy::new(strict)));
            // Only now does the shard read its mail.
            monoio::spawn(mailbox.deliver(move |result| {
                jobs.complete(result);
                true
            }));
            let verdict = verifying.await;
            assert_eq!(verdict.unwrap_err().code(), "mrtd_not_allowed");
        })
        .unwrap();
    }
}
