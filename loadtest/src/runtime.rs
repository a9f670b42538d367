//! A monoio runtime for one thread: io_uring, or epoll where the kernel refuses io_uring.

use std::future::Future;
use std::time::Duration;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver};

use crate::error::{Error, Result, io_context};

/// Submission queue entries of the ring.
const RING_ENTRIES: u32 = 1024;

/// The runtime of one thread. `block_on` may be called repeatedly.
pub enum Runtime {
    /// Completion I/O.
    Ring(monoio::Runtime<TimeDriver<IoUringDriver>>),
    /// Readiness I/O.
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

impl Runtime {
    /// Creates a runtime for this thread, with the same ring flags as the engine where the kernel
    /// supports them (docs/adr/0005-io-uring-ring-flags.md).
    ///
    /// # Errors
    /// Neither io_uring nor epoll can be created: out of descriptors or memory.
    pub fn new() -> Result<Self> {
        let mut flags = io_uring::IoUring::builder();
        flags.setup_coop_taskrun().setup_single_issuer();
        if let Ok(ring) = ring(flags).or_else(|_| ring(io_uring::IoUring::builder())) {
            return Ok(Self::Ring(ring));
        }
        monoio::RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .map(Self::Epoll)
            .map_err(io_context("cannot create a runtime"))
    }

    /// Runs `future` to completion on this thread.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }

    /// The name of the I/O driver, for the report.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ring(_) => "io_uring",
            Self::Epoll(_) => "epoll",
        }
    }
}

fn ring(flags: io_uring::Builder) -> std::io::Result<monoio::Runtime<TimeDriver<IoUringDriver>>> {
    monoio::RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(flags)
        .enable_timer()
        .build()
}

/// Runs `future` for at most `limit`.
///
/// On a timeout the future is dropped with I/O in flight, so the connection must not be used
/// afterwards: a load that times out has failed.
///
/// # Errors
/// [`Error::Timeout`] with `what`, or the future's own error.
pub async fn with_timeout<T>(
    limit: Duration,
    what: &'static str,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let outcome = monoio::time::timeout(limit, future).await;
    outcome.unwrap_or(Err(Error::Timeout(what)))
}
