//! An application's own verifier of servers (strategy): a callback after the binding check.
//!
//! It either follows DCAP and the policy, and can only refuse more, or stands for DCAP, for programs that have quotes
//! verified elsewhere. In both cases the quote is bound to the key of the server's certificate before the callback sees
//! it, and the policy is applied.
//!
//! The callback is foreign code: it runs on a separate thread and not on a shard or the control thread, with a deadline
//! that others keep. One that panics, fails or never returns is a refusal, and must never be an admission.

mod blocking;
mod evidence;
mod thread;

use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use attest::denial::Fault;
use attest::tcb::TcbStatus;
use attest::verify::dangerous_admit;
use attest::{AttestedPeer, BoundEvidence, Denial, Policy};
use tokio::sync::oneshot;

pub use blocking::verifier_fn;
pub use evidence::{Claims, Evidence};
pub(crate) use thread::{CallbackThread, CallbackThreadGuard};

use crate::attestation::verifier::VERDICT_TTL;

/// The deadline of a decision, unless the application sets another.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a refusal's text is cut to, in characters.
const MAX_TEXT: usize = 200;

/// A future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An application's own decision about a server, after the quote was found to belong to the key of its certificate.
///
/// It runs on a separate thread, so that it may take long but should not block: [`verifier_fn`] makes one of a function
/// that blocks. If it panics, or has not answered before its deadline, the connection is refused with the code
/// `verifier_failed` or `verifier_timeout`. The thread has a tokio runtime with timers and I/O.
pub trait Verifier: Send + Sync + 'static {
    /// Accepts or refuses a server.
    ///
    /// # Errors
    /// [`Refusal`].
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>>;
}

impl<V: Verifier + ?Sized> Verifier for Arc<V> {
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        (**self).verify(evidence)
    }
}

/// A verifier's consent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acceptance {
    /// The TCB status that a verifier instead of DCAP found, which the policy then accepts or not; `UpToDate` if it is not
    /// set. Other verifiers leave it out.
    pub tcb_status: Option<String>,
}

impl Acceptance {
    /// Consent with a TCB status, in Intel's spelling.
    #[must_use]
    pub fn with_tcb_status(status: impl Into<String>) -> Self {
        Self {
            tcb_status: Some(status.into()),
        }
    }

    fn status(&self) -> Result<TcbStatus, Denial> {
        match self.tcb_status.as_deref() {
            None => Ok(TcbStatus::UpToDate),
            Some("Revoked") => Ok(TcbStatus::Revoked),
            Some(text) => TcbStatus::from_str(text)
                .map_err(|error| failed(&format!("it reports the TCB status {text:?}: {error}"))),
        }
    }
}

/// Why a verifier does not accept a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The server is refused, with the code `verifier_refused`. The text reaches the driver and the log, with control
    /// characters escaped and cut to 200 characters.
    Refused(String),
    /// There is no decision, because the verifier failed: `verifier_failed`. The text is treated alike.
    Failed(String),
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Refused(text) => Self::Authority {
                code: Self::VERIFIER_REFUSED,
                fault: Fault::Peer,
                detail: format!("the application's verifier refuses it: {}", shown(&text)),
            },
            Refusal::Failed(text) => failed(&text),
        }
    }
}

fn failed(text: &str) -> Denial {
    Denial::Authority {
        code: Denial::VERIFIER_FAILED,
        fault: Fault::Ours,
        detail: format!("the application's verifier failed: {}", shown(text)),
    }
}

fn timed_out(after: Duration) -> Denial {
    Denial::Authority {
        code: Denial::VERIFIER_TIMEOUT,
        fault: Fault::Ours,
        detail: format!("the application's verifier did not answer within {after:?}"),
    }
}

/// The text of foreign code, for terminals and logs.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.chars();
    for char in rest.by_ref().take(MAX_TEXT) {
        match char {
            '"' | '\'' => shown.push(char),
            other => shown.extend(other.escape_debug()),
        }
    }
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

/// An application's verifier with its deadline and its thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CustomVerifier {
    verifier: Arc<dyn Verifier>,
    timeout: Duration,
    thread: CallbackThread,
}

impl CustomVerifier {
    pub(crate) fn new(
        verifier: Arc<dyn Verifier>,
        timeout: Duration,
        thread: CallbackThread,
    ) -> Self {
        Self {
            verifier,
            timeout,
            thread,
        }
    }

    /// The limit for one decision. Who waits must not rely on the callback's thread to keep it.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What a caller says who has waited for [`Self::timeout`].
    pub(crate) fn timed_out(&self) -> Denial {
        timed_out(self.timeout)
    }

    /// Has the application decide about a verified peer, and calls `done` on the callback's thread.
    pub(crate) fn decide(
        &self,
        peer: Arc<AttestedPeer>,
        done: impl FnOnce(Result<(), Denial>) + Send + 'static,
    ) {
        let evidence = move || Evidence::of_peer(&peer);
        self.ask(evidence, |decision| done(decision.map(drop)));
    }

    /// Has the application decide instead of DCAP, and applies the policy. Waits for at most [`Self::timeout`]. Runs on a
    /// tokio runtime with timers; never on a shard.
    ///
    /// # Errors
    /// The application or the policy refuses.
    pub(crate) async fn appraise(
        &self,
        evidence: &BoundEvidence,
        policy: &Policy,
        now: u64,
    ) -> Result<AttestedPeer, Denial> {
        let shown = Evidence::of_bound(evidence);
        let (sender, receiver) = oneshot::channel();
        self.ask(
            || Ok(shown),
            |decision| {
                // The receiver is gone after the deadline.
                let _ = sender.send(decision);
            },
        );
        let acceptance = match tokio::time::timeout(self.timeout, receiver).await {
            Ok(Ok(decision)) => decision?,
            Ok(Err(_)) => return Err(failed("its thread has ended")),
            Err(_) => return Err(self.timed_out()),
        };
        let until = now.saturating_add(VERDICT_TTL);
        dangerous_admit(evidence, acceptance.status()?, until, policy)
    }

    /// The decision about a peer that DCAP has verified, within the deadline. Runs on a tokio runtime with timers.
    ///
    /// # Errors
    /// The application refuses.
    pub(crate) async fn confirm(&self, peer: &Arc<AttestedPeer>) -> Result<(), Denial> {
        let (sender, receiver) = oneshot::channel();
        self.decide(Arc::clone(peer), |decision| {
            let _ = sender.send(decision);
        });
        match tokio::time::timeout(self.timeout, receiver).await {
            Ok(Ok(decision)) => decision,
            Ok(Err(_)) => Err(failed("its thread has ended")),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn ask(
        &self,
        evidence: impl FnOnce() -> Result<Evidence, Denial> + Send + 'static,
        done: impl FnOnce(Result<Acceptance, Denial>) + Send + 'static,
    ) {
        let verifier = Arc::clone(&self.verifier);
        self.thread.run(verifier, self.timeout, evidence, done);
    }
}

#[cfg(test)]
mod tests;
