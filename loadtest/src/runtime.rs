//! A thread's monoio runtime: io_uring, or epoll where the kernel refuses it.

use std::future::Future;
use std::time::Duration;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver};

use crate::error::{Error, Result, io_context};

/// Submission queue entries of a ring.
const RING_ENTRIES: u32 = 1024;

/// One thread's runtime. It may be entered many times.
pub enum Runtime {
    /// Completion I/O.
    Ring(monoio::Runtime<TimeDriver<IoUringDriver>>),
    /// Readiness I/O.
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

impl Runtime {
    /// A new runtime for this thread, with the engine's ring flags where the
    /// kernel has them (docs/adr/0005-io-uring-ring-flags.md).
    ///
    /// # Errors
    /// Neither io_uring nor epoll can be had: out of raise_descriptor_limit or memory.
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
            .map_err(io_context("cannot make a runtime"))
    }

    /// Runs `future` to its end on this thread.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }

    /// For the report.
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

/// `future`, for at most `limit`.
///
/// On time-out the future is dropped with its I/O half done, which is why
/// nothing goes on after it: a load that was late has failed.
///
/// # Errors
/// [`Error::Timeout`] with `what`, or the future's own.
pub async fn with_timeout<T>(
    limit: Duration,
    what: &'static str,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let outcome = monoio::time::timeout(limit, future).await;
    outcome.unwrap_or(Err(Error::Timeout(what)))
}
