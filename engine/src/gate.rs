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

use crate::house::Desk;
use crate::metrics::{Meters, Source};
use crate::offload::{Tickets, Worker};
use crate::shard::Replies;
use crate::trust::{Judgement, Trust, VERDICT_TTL, unix_now};

/// Admissions that a shard remembers.
const REMEMBERED: usize = 4096;
/// Tries at one verification: the second finds the collateral that the first
/// missed, the others are for policy or collateral that changes in between.
const TRIES: u32 = 4;

/// What a client has shown of itself. Only the gate makes one, and the login
/// asks for one.
pub(crate) struct Attested(Shown);

enum Shown {
    Peer(Arc<AttestedPeer>),
    /// Clients are let in unattested, which was asked for twice.
    Nothing,
}

impl Attested {
    pub(crate) fn peer(&self) -> Option<&Arc<AttestedPeer>> {
        match &self.0 {
            Shown::Peer(peer) => Some(peer),
            Shown::Nothing => None,
        }
    }
}

/// A shard's gate.
pub(crate) enum Gate {
    /// `allow_unattested_clients`.
    Open,
    /// Every client has to prove itself.
    Guarded(Box<Guard>),
}

pub(crate) struct Guard {
    trust: Arc<Trust>,
    verify: Worker,
    tickets: Tickets,
    replies: Replies,
    cache: RefCell<VerdictCache>,
    meters: Rc<Meters>,
    allows_simulators: bool,
}

impl Gate {
    pub(crate) fn guarded(guard: Guard) -> Self {
        Self::Guarded(Box::new(guard))
    }

    /// Lets a client in, or says why not.
    pub(crate) async fn admit(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Attested, Denial> {
        match self {
            Gate::Open => Ok(Attested(Shown::Nothing)),
            Gate::Guarded(guard) => {
                let chain = chain.unwrap_or_default();
                match guard.judge(chain).await {
                    Ok(peer) => Ok(Attested(Shown::Peer(peer))),
                    Err(Denial::NoEvidence) if guard.allows_simulators => {
                        Ok(Attested(Shown::Nothing))
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
            Gate::Guarded(guard) => guard.judge(chain.certificates()).await.map(drop),
        }
    }
}

impl Guard {
    /// `allows_simulators` is a forwarder's: a peer without any evidence may enter.
    pub(crate) fn new(
        trust: &Arc<Trust>,
        verify: &Worker,
        desk: &Desk,
        allows_simulators: bool,
    ) -> Self {
        let epoch = trust.epoch(&trust.policy());
        Self {
            trust: Arc::clone(trust),
            verify: verify.clone(),
            tickets: desk.tickets.clone(),
            replies: desk.replies.clone(),
            cache: RefCell::new(VerdictCache::new(REMEMBERED, VERDICT_TTL, epoch)),
            meters: Rc::clone(&desk.meters),
            allows_simulators,
        }
    }

    async fn judge(&self, chain: &[impl AsRef<[u8]>]) -> Verdict {
        let now = unix_now();
        let mut evidence = {
            let policy = self.trust.policy();
            let epoch = self.trust.epoch(&policy);
            if let Some(verdict) = self.cache.borrow_mut().get(epoch, chain, now) {
                return self.counted(Source::Cache, verdict);
            }
            match examine(chain, now, &policy) {
                Ok(evidence) => Arc::new(evidence),
                Err(denial) => return self.counted(Source::Examination, Err(denial)),
            }
        };
        for _ in 0..TRIES {
            match self.ask(Arc::clone(&evidence)).await? {
                Judgement::Verdict(epoch, verdict) => {
                    if epoch != self.trust.epoch(&self.trust.policy()) {
                        // It changed meanwhile, and the sessions may have been
                        // looked at already: this one is judged anew.
                        evidence = Arc::new(examine(chain, now, &self.trust.policy())?);
                        continue;
                    }
                    let mut cache = self.cache.borrow_mut();
                    cache.insert(epoch, evidence.chain(), &verdict, now);
                    return self.counted(Source::Verification, verdict);
                }
                Judgement::Needs(key) => {
                    let (trust, reply) = (&self.trust, self.replies.one());
                    let there = self
                        .tickets
                        .ask(reply, |answer| {
                            trust.fetch(key, answer);
                            Ok(())
                        })
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

    fn counted(&self, source: Source, verdict: Verdict) -> Verdict {
        self.meters.verdicts.count(source, verdict.is_ok());
        verdict
    }

    async fn ask(&self, evidence: Arc<BoundEvidence>) -> Result<Judgement, Denial> {
        let trust = Arc::clone(&self.trust);
        if trust.asks_authority() {
            let asked = self.tickets.ask(self.replies.one(), |answer| {
                trust.appraise(evidence, answer);
                Ok(())
            });
            return asked.await.map_err(|_| Denial::Overloaded);
        }
        self.tickets
            .offload(&self.verify, self.replies.one(), move || {
                trust.judge(&evidence)
            })
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
    use crate::driver::{Driver, block_on};
    use crate::lane::Lane;
    use crate::log::Journal;
    use crate::mailbox::mailbox;
    use crate::metrics::Metrics;
    use crate::mode::Mode;
    use crate::shard::Message;

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
        let trust = Trust::new(
            Policy::default(),
            root,
            collateral(&pki, &platform, &runtime),
            control,
            metrics::Histogram::noop(),
            None,
        );
        let verify = Worker::start("verify", 0).unwrap();
        block_on(Driver::Epoll, async {
            let (sender, mailbox) = mailbox::<Message>().unwrap();
            let tickets = Tickets::default();
            let desk = Desk {
                tickets: tickets.clone(),
                replies: Replies(sender),
                lane: Lane::new(std::time::Duration::from_secs(5)),
                meters: Rc::new(Meters::new(&Metrics::new().unwrap(), 0)),
                journal: Rc::new(Journal::new(Mode::Production)),
            };
            let guard = Guard::new(&trust, &verify, &desk, false);
            let mut judging = std::pin::pin!(guard.judge(&chain));
            assert!(judging.as_mut().now_or_never().is_none());
            verify.finish_queue();
            let strict = Settings {
                mrtd: vec![attest::values::Mrtd([0x12; 48])],
                ..Settings::default()
            };
            assert!(trust.set_policy(Policy::new(strict)));
            // Only now does the shard read its mail.
            monoio::spawn(mailbox.deliver(move |message| {
                if let Message::Done(done) = message {
                    tickets.answer(done);
                }
                true
            }));
            let verdict = judging.await;
            assert_eq!(verdict.unwrap_err().code(), "mrtd_not_allowed");
        })
        .unwrap();
    }
}
