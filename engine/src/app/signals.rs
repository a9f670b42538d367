//! Who tells the process to stop or to reload: the system's signals, or the
//! program that the sidecar is a part of.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(feature = "mock")]
use tokio::sync::mpsc;

/// Who says what the process is to do. SIGHUP means to reload, all others to
/// stop.
pub(crate) trait SignalSource {
    /// The next order of any kind.
    async fn next(&mut self) -> SignalKind;

    /// The next order to stop. One to reload waits until it is asked for.
    async fn stop(&mut self) -> SignalKind;
}

/// The signals that end or change a daemon.
pub(crate) struct ProcessSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl ProcessSignals {
    /// From here on none of them ends the process by itself.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next that comes.
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

    async fn stop(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

#[cfg(feature = "mock")]
impl SignalSource for mpsc::UnboundedReceiver<SignalKind> {
    async fn next(&mut self) -> SignalKind {
        match self.recv().await {
            Some(order) => order,
            // Whoever gave orders is gone, and the process is about to be.
            None => std::future::pending().await,
        }
    }

    /// Nobody who gives these has anything to reload.
    async fn stop(&mut self) -> SignalKind {
        self.next().await
    }
}
