//! What clients' evidence is judged with, shared by all threads: the policy,
//! the trusted root, the collateral.
//!
//! Everything here runs on the verify thread or the control thread, never on a
//! shard: one verification is about half a millisecond, and fetching collateral
//! takes as long as a network does.

use crate::io::clock::unix_now;
use crate::io::offload::OffloadThread;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use attest::cache::{Epoch, Verdict, VerdictCache};
use attest::chain::{Chain, KmsRoot};
use attest::collateral::{Collateral, CollateralKey, Handle};
use attest::quote::TdQuote;
use attest::{BoundEvidence, Denial, Policy, TrustedRoot, Verifier};
use metrics::Histogram;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Verdicts that the verify thread remembers, so that a crowd with the same new
/// certificate costs one verification.
const REMEMBERED: usize = 4096;
/// Seconds for which an admission is remembered at the most.
pub(crate) const VERDICT_TTL: u64 = 600;

thread_local! {
    /// The verify thread's own memory. Jobs run there one after the other, so
    /// the second with the same certificate finds the first one's verdict.
    static SEEN: RefCell<Option<VerdictCache>> = const { RefCell::new(None) };
}

/// How far the verify thread stands back behind the shards: a third of their
/// weight, so that a crowd of strangers waits rather than those who are inside
/// (docs/adr/0006-paced-handshake-queue.md).
const VERIFY_NICE: i32 = 5;

/// The thread for full verifications.
///
/// # Errors
/// The system has no thread left.
pub(crate) fn verify_thread() -> std::io::Result<OffloadThread> {
    OffloadThread::start("verify", VERIFY_NICE)
}

/// The policy in force, and what it is applied with.
pub(crate) struct QuoteVerifier {
    policy: ArcSwap<Policy>,
    verifier: Verifier,
    issuer: Option<KmsRoot>,
    collateral: Handle,
    control: tokio::runtime::Handle,
    /// Seconds of each full verification.
    verification: Histogram,
    authority: Option<Authority>,
}

/// Intel Trust Authority, where it is asked instead of verifying here.
struct Authority {
    client: attest::ita::Client,
    /// Held while a question is under way, so that a crowd with one certificate
    /// asks once.
    asking: tokio::sync::Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    seen: Option<VerdictCache>,
    /// When a question ended without an answer, and how: those who waited for it
    /// have theirs.
    failed: Option<(Instant, Denial)>,
}

/// Whether the quote's platform is of the trusted root, which is asked before
/// collateral for it is: anybody can invent a platform.
pub(crate) fn check_issuer(
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

/// What the verify thread says.
pub(crate) enum Verification {
    /// In which epoch, and how.
    Verdict(Epoch, Verdict),
    /// Ask again when this has been fetched.
    MissingCollateral(CollateralKey),
}

impl QuoteVerifier {
    pub(crate) fn new(
        policy: Policy,
        root: TrustedRoot,
        collateral: Handle,
        control: tokio::runtime::Handle,
        verification: Histogram,
        authority: Option<attest::ita::Client>,
    ) -> Arc<Self> {
        let authority = authority.map(|client| Authority {
            client,
            asking: tokio::sync::Mutex::default(),
        });
        Arc::new(Self {
            authority,
            policy: ArcSwap::from_pointee(policy),
            issuer: KmsRoot::from_der(root.der()).ok(),
            verifier: Verifier::new(root),
            collateral,
            control,
            verification,
        })
    }

    pub(crate) fn policy(&self) -> arc_swap::Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// Puts another policy in force; `true` if it is another one.
    pub(crate) fn set_policy(&self, policy: Policy) -> bool {
        let before = self.policy.swap(Arc::new(policy));
        before.epoch() != self.policy.load().epoch()
    }

    /// What verdicts depend on at this moment.
    pub(crate) fn epoch(&self, policy: &Policy) -> Epoch {
        Epoch {
            policy: policy.epoch(),
            collateral: self.collateral.epoch(),
        }
    }

    /// The full verification. For the verify thread: about 0.6 ms.
    pub(crate) fn verify(&self, evidence: &BoundEvidence) -> Verification {
        let (policy, now) = (self.policy.load_full(), unix_now());
        let snapshot = self.collateral.snapshot();
        let epoch = Epoch {
            policy: policy.epoch(),
            collateral: snapshot.epoch(),
        };
        let known = SEEN.with_borrow_mut(|seen| {
            seen.get_or_insert_with(|| VerdictCache::new(REMEMBERED, VERDICT_TTL, epoch))
                .get(epoch, evidence.chain().certificates(), now)
        });
        if let Some(verdict) = known {
            return Verification::Verdict(epoch, verdict);
        }
        let verdict = match evidence.collateral_key() {
            Err(denial) => Err(denial),
            Ok(key) => match snapshot.get(key, now) {
                Some(collateral) => self.verify_with_collateral(evidence, collateral, &policy, now),
                // Only for platforms of the trusted root: anybody can invent
                // others and have them asked for.
                None => match self.check_issuer(evidence, now) {
                    Ok(()) => return Verification::MissingCollateral(key),
                    Err(denial) => Err(denial),
                },
            },
        };
        SEEN.with_borrow_mut(|seen| {
            if let Some(seen) = seen {
                seen.insert(epoch, evidence.chain(), &verdict, now);
            }
        });
        Verification::Verdict(epoch, verdict)
    }

    fn verify_with_collateral(
        &self,
        evidence: &BoundEvidence,
        collateral: &Collateral,
        policy: &Policy,
        now: u64,
    ) -> Verdict {
        let begun = Instant::now();
        let verdict = self.verifier.verify(evidence, collateral, policy, now);
        self.verification.record(begun.elapsed());
        verdict.map(Arc::new)
    }

    fn check_issuer(&self, evidence: &BoundEvidence, now: u64) -> Result<(), Denial> {
        check_issuer(self.issuer.as_ref(), evidence.quote(), now)
    }

    /// Whether Trust Authority judges.
    pub(crate) fn asks_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Has Trust Authority judge, on the control thread, and tells `done`.
    pub(crate) fn appraise(
        self: &Arc<Self>,
        evidence: Arc<BoundEvidence>,
        done: impl FnOnce(Verification) + Send + 'static,
    ) {
        let quote_verifier = Arc::clone(self);
        self.control.spawn(async move {
            if let Some(authority) = &quote_verifier.authority {
                done(quote_verifier.ask(authority, &evidence).await);
            }
        });
    }

    async fn ask(&self, authority: &Authority, evidence: &BoundEvidence) -> Verification {
        let (policy, now) = (self.policy.load_full(), unix_now());
        let epoch = self.epoch(&policy);
        let came = Instant::now();
        let mut asking = authority.asking.lock().await;
        let Asking { seen, failed } = &mut *asking;
        let seen = seen.get_or_insert_with(|| VerdictCache::new(REMEMBERED, VERDICT_TTL, epoch));
        if let Some(verdict) = seen.get(epoch, evidence.chain().certificates(), now) {
            return Verification::Verdict(epoch, verdict);
        }
        if let Some((ended, denial)) = failed
            && came <= *ended
        {
            return Verification::Verdict(epoch, Err(denial.clone()));
        }
        let begun = Instant::now();
        let asked = authority.client.verify(evidence, &policy, now).await;
        self.verification.record(begun.elapsed());
        let verdict = asked.map(Arc::new).map_err(Denial::from);
        seen.insert(epoch, evidence.chain(), &verdict, now);
        if let Err(denial) = &verdict
            && denial.fault() == attest::denial::Fault::Ours
        {
            *failed = Some((Instant::now(), denial.clone()));
        }
        Verification::Verdict(epoch, verdict)
    }

    /// Seconds until the first of what is held expires.
    pub(crate) fn collateral_left(&self, now: u64) -> Option<u64> {
        let snapshot = self.collateral.snapshot();
        snapshot
            .seconds_until_expiry(now)
            .map(|(_, left)| left)
            .min()
    }

    /// What is held, and the way to more.
    pub(crate) fn collateral(&self) -> &Handle {
        &self.collateral
    }

    /// Has collateral fetched, and tells `done` whether there is some now. The
    /// keeper makes it one flight per key, however many ask.
    pub(crate) fn fetch(&self, key: CollateralKey, done: impl FnOnce(bool) + Send + 'static) {
        let collateral = self.collateral.clone();
        self.control.spawn(async move {
            let answer = collateral.request(key).await;
            if let Err(error) = &answer {
                tracing::warn!(%error, "no collateral for a client");
            }
            done(answer.is_ok());
        });
    }
}
