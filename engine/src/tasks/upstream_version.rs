//! The protocol version of the Postgres server, shared by all threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use wire::startup::ProtocolVersion;

/// How long a client may wait for the first news of what Postgres speaks.
const FIRST_NEWS: Duration = Duration::from_secs(1);
const FIRST_NEWS_CHECK: Duration = Duration::from_millis(10);

/// What is known about Postgres, shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct UpstreamVersion {
    /// [`ProtocolVersion::to_u32`]; 0 while nothing is known.
    newest: AtomicU32,
    /// `server_version` as the first login after the last probe saw it.
    server_version: ArcSwapOption<String>,
    /// Rung when it may have changed.
    pub(crate) stale: Notify,
}

impl UpstreamVersion {
    pub(crate) fn learned(&self, newest: ProtocolVersion) {
        self.newest.store(newest.to_u32(), Ordering::Release);
        self.server_version.store(None);
    }

    pub(crate) fn newest(&self) -> Option<ProtocolVersion> {
        match self.newest.load(Ordering::Acquire) {
            0 => None,
            known => Some(ProtocolVersion::from_u32(known)),
        }
    }

    /// What to negotiate from. Waits a little where the very first probe is
    /// still under way, and is careful where it has failed: every Postgres
    /// speaks 3.0.
    pub(crate) async fn newest_or_oldest(&self) -> ProtocolVersion {
        let give_up = Instant::now() + FIRST_NEWS;
        loop {
            if let Some(newest) = self.newest() {
                return newest;
            }
            if Instant::now() >= give_up {
                return ProtocolVersion::V3_0;
            }
            monoio::time::sleep(FIRST_NEWS_CHECK).await;
        }
    }

    pub(crate) fn saw_version(&self, version: Option<String>) {
        let Some(version) = version else { return };
        let known = self.server_version.load();
        match known.as_deref() {
            Some(known) if *known == version => {}
            None => self.server_version.store(Some(Arc::new(version))),
            // Another Postgres answers than the one that was asked.
            Some(_) => self.stale.notify_one(),
        }
    }
}
