//! Requests to stop or to reload, from Unix signals or from the program that embeds the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Replaces the default action of SIGXFSZ, which is to end the process: a write beyond the limit of a
/// file's size then fails.
///
/// # Errors
/// The signal handler cannot be installed.
pub(crate) fn ignore_file_size_limit() -> io::Result<()> {
    // The handler stays installed when the stream is dropped.
    signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).map(drop)
}

/// A source of requests. SIGHUP requests a reload, every other signal a stop.
pub(crate) trait SignalSource {
    /// The next request of either kind.
    async fn next(&mut self) -> SignalKind;

    /// The next stop request. A reload request stays pending until [`Self::next`].
    async fn next_stop(&mut self) -> SignalKind;
}

/// SIGTERM, SIGINT and SIGHUP of this process.
pub(crate) struct ProcessSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl ProcessSignals {
    /// Replaces the default action of the three signals, which is to end the process.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        }
    }
}

impl SignalSource for ProcessSignals {
    async fn next(&mut self) -> SignalKind {
        Self::next(self).await
    }

    async fn next_stop(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// The requests of an embedding program. It never requests a reload.
impl SignalSource for mpsc::UnboundedReceiver<SignalKind> {
    async fn next(&mut self) -> SignalKind {
        match self.recv().await {
            Some(signal) => signal,
            // The sender has been dropped, so that no request can follow.
            None => std::future::pending().await,
        }
    }

    async fn next_stop(&mut self) -> SignalKind {
        self.next().await
    }
}
