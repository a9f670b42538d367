//! What may change while the sidecar runs, and is read once for each accepted
//! connection: its identity, and the secrets.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use crate::auth::cluster_secrets::Gatekeeper;

/// As it is at one moment. A session keeps what it began with.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) gatekeeper: Arc<Gatekeeper>,
}

/// Written by the control thread alone.
pub(crate) struct Live(ArcSwap<Snapshot>);

impl Live {
    pub(crate) fn new(tls: Arc<ServerConfig>, gatekeeper: Gatekeeper) -> Arc<Self> {
        let gatekeeper = Arc::new(gatekeeper);
        Arc::new(Self(ArcSwap::from_pointee(Snapshot { tls, gatekeeper })))
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub(crate) fn set_tls(&self, tls: Arc<ServerConfig>) {
        let now = Snapshot::clone(&self.read());
        self.0.store(Arc::new(Snapshot { tls, ..now }));
    }

    pub(crate) fn set_gatekeeper(&self, gatekeeper: Gatekeeper) {
        let now = Snapshot::clone(&self.read());
        let gatekeeper = Arc::new(gatekeeper);
        self.0.store(Arc::new(Snapshot { gatekeeper, ..now }));
    }
}
