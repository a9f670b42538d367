//! The thread on which verifiers of applications run: a separate tokio runtime, with a bounded number of decisions.
//!
//! A callback that blocks stops the other callbacks and nothing else. Ending the thread must not wait for a callback that
//! never returns.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use attest::Denial;
use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, oneshot};

use super::{Acceptance, Evidence, Verifier, failed, timed_out};
use crate::io::worker::Worker;

/// Decisions at a time, in all forwarders of the process. Further connections are refused: `overloaded`.
pub(super) const MAX_DECISIONS: usize = 256;
/// Threads for functions that block. Each verifier uses at most [`super::blocking::MAX_CALLS`] of them.
const MAX_BLOCKING_THREADS: usize = 64;

/// A handle to the thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CallbackThread {
    runtime: tokio::runtime::Handle,
    decisions: Arc<Semaphore>,
}

/// Ends the thread when dropped.
pub(crate) struct CallbackThreadGuard {
    stop: Option<oneshot::Sender<()>>,
    worker: Worker,
}

impl CallbackThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The process has no threads or descriptors left.
    pub(crate) fn start() -> io::Result<(Self, CallbackThreadGuard)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_BLOCKING_THREADS)
            .thread_name("verifier-call")
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let worker = Worker::spawn("verifier", move || {
            // An error means that the guard has been dropped.
            let _ = runtime.block_on(stopped);
            // A function that never returns keeps its thread.
            runtime.shutdown_background();
        })?;
        let guard = CallbackThreadGuard {
            stop: Some(stop),
            worker,
        };
        let thread = Self {
            runtime: handle,
            decisions: Arc::new(Semaphore::new(MAX_DECISIONS)),
        };
        Ok((thread, guard))
    }

    /// Runs `verifier` and calls `done` with its decision.
    pub(super) fn run(
        &self,
        verifier: Arc<dyn Verifier>,
        timeout: Duration,
        evidence: impl FnOnce() -> Result<Evidence, Denial> + Send + 'static,
        done: impl FnOnce(Result<Acceptance, Denial>) + Send + 'static,
    ) {
        let Ok(permit) = Arc::clone(&self.decisions).try_acquire_owned() else {
            return done(Err(Denial::Overloaded));
        };
        self.runtime.spawn(async move {
            let _permit = permit;
            let decision = async {
                let evidence = evidence()?;
                verifier.verify(&evidence).await.map_err(Denial::from)
            };
            let decision = AssertUnwindSafe(decision).catch_unwind();
            done(match tokio::time::timeout(timeout, decision).await {
                Ok(Ok(decision)) => decision,
                // Without its message, which may contain anything.
                Ok(Err(_)) => Err(failed("it panicked")),
                Err(_) => Err(timed_out(timeout)),
            });
        });
    }
}

impl Drop for CallbackThreadGuard {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.worker.join();
    }
}
