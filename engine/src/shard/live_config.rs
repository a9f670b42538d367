//! Configuration that can be reloaded, as an atomically swapped snapshot: TLS identity and
//! secrets.
//!
//! It is read once for each accepted connection, and must never be locked.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use crate::auth::cluster_secrets::Authenticator;

/// The configuration at one moment. A session keeps the one that it began with.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) authenticator: Arc<Authenticator>,
}

/// The current snapshot. Only the control thread replaces it.
pub(crate) struct LiveConfig(ArcSwap<Snapshot>);

impl LiveConfig {
    pub(crate) fn new(tls: Arc<ServerConfig>, authenticator: Authenticator) -> Arc<Self> {
        let authenticator = Arc::new(authenticator);
        Arc::new(Self(ArcSwap::from_pointee(Snapshot { tls, authenticator })))
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub(crate) fn set_tls(&self, tls: Arc<ServerConfig>) {
        let now = Snapshot::clone(&self.read());
        self.0.store(Arc::new(Snapshot { tls, ..now }));
    }

    pub(crate) fn set_authenticator(&self, authenticator: Authenticator) {
        let now = Snapshot::clone(&self.read());
        let authenticator = Arc::new(authenticator);
        self.0.store(Arc::new(Snapshot {
            authenticator,
            ..now
        }));
    }
}
