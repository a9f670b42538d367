//! The protocol version that Postgres supports, shared by all threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use wire::startup::ProtocolVersion;

/// How long a client waits for the first probe to complete.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const FIRST_PROBE_POLL: Duration = Duration::from_millis(10);

/// The result of the last probe of Postgres.
#[derive(Debug, Default)]
pub(crate) struct UpstreamVersion {
    /// [`ProtocolVersion::to_u32`]; 0 before the first probe.
    newest: AtomicU32,
    /// The `server_version` that the first login after the last probe received.
    server_version: ArcSwapOption<String>,
    invalidated: Notify,
}

impl UpstreamVersion {
    /// Stores the result of a probe.
    pub(crate) fn set(&self, newest: ProtocolVersion) {
        self.newest.store(newest.to_u32(), Ordering::Release);
        self.server_version.store(None);
    }

    /// The newest version that Postgres supports; `None` before the first probe.
    pub(crate) fn newest(&self) -> Option<ProtocolVersion> {
        match self.newest.load(Ordering::Acquire) {
            0 => None,
            known => Some(ProtocolVersion::from_u32(known)),
        }
    }

    /// The newest version to negotiate. Waits up to a second for the first probe to complete,
    /// then falls back to 3.0, which every Postgres supports.
    pub(crate) async fn newest_or_fallback(&self) -> ProtocolVersion {
        let deadline = Instant::now() + FIRST_PROBE_TIMEOUT;
        loop {
            if let Some(newest) = self.newest() {
                return newest;
            }
            if Instant::now() >= deadline {
                return ProtocolVersion::V3_0;
            }
            monoio::time::sleep(FIRST_PROBE_POLL).await;
        }
    }

    /// Requests another probe, because Postgres may have been replaced.
    pub(crate) fn invalidate(&self) {
        self.invalidated.notify_one();
    }

    /// Waits for a call of [`Self::invalidate`] since the last wait.
    pub(crate) async fn invalidated(&self) {
        self.invalidated.notified().await;
    }

    /// Requests another probe if a login received another `server_version` than the one before.
    pub(crate) fn observe_server_version(&self, version: Option<String>) {
        let Some(version) = version else { return };
        let known = self.server_version.load();
        match known.as_deref() {
            Some(known) if *known == version => {}
            None => self.server_version.store(Some(Arc::new(version))),
            Some(_) => self.invalidate(),
        }
    }
}
