//! A verifier that is a function which blocks.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{Acceptance, BoxFuture, Evidence, Refusal, Verifier};

/// Calls of one verifier at a time. The others wait, until their deadline.
pub(super) const MAX_CALLS: usize = 16;

struct BlockingVerifier<F> {
    decide: Arc<F>,
    /// A call that never returns keeps its permit: what waits for it is bounded.
    calls: Arc<Semaphore>,
}

/// A verifier that calls a blocking function, on one of a few threads for that. A function that never returns keeps its
/// thread, also after the forwarder was stopped; when 16 calls do not return, further connections are refused with the code
/// `verifier_timeout`.
pub fn verifier_fn<F>(decide: F) -> impl Verifier
where
    F: Fn(&Evidence) -> Result<Acceptance, Refusal> + Send + Sync + 'static,
{
    BlockingVerifier {
        decide: Arc::new(decide),
        calls: Arc::new(Semaphore::new(MAX_CALLS)),
    }
}

impl<F> Verifier for BlockingVerifier<F>
where
    F: Fn(&Evidence) -> Result<Acceptance, Refusal> + Send + Sync + 'static,
{
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        Box::pin(async move {
            let ended = || Refusal::Failed("its thread has ended".to_owned());
            let permit = Arc::clone(&self.calls).acquire_owned().await;
            let permit = permit.map_err(|_| ended())?;
            let (decide, evidence) = (Arc::clone(&self.decide), evidence.clone());
            let call = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                decide(&evidence)
            });
            match call.await {
                Ok(decision) => decision,
                Err(error) if error.is_panic() => Err(Refusal::Failed("it panicked".to_owned())),
                Err(_) => Err(ended()),
            }
        })
    }
}
