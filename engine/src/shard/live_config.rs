//! Configuration that can be reloaded, as an atomically swapped snapshot: TLS identity and
//! secrets.
//!
//! It is read once for each accepted connection, and must never be locked.

use std::sync::Arc;

use arc_swap::ArcSwap;
use attest::values::Fingerprint;
use rustls::{ClientConfig, ServerConfig};
use wire::scram::server::ChannelBinding;

use crate::auth::cluster_secrets::Authenticator;

/// What TLS presents at one moment.
#[derive(Clone)]
pub(crate) struct LiveTls {
    /// For clients and for members that open links.
    pub(crate) tls: Arc<ServerConfig>,
    /// For links to other members, if there is a cluster.
    pub(crate) link: Option<Arc<ClientConfig>>,
    /// The channel binding of the certificate in `tls`, if it has one.
    pub(crate) channel_binding: Option<ChannelBinding>,
    /// SHA-256 of the key of the certificate in `tls`, as SubjectPublicKeyInfo.
    pub(crate) tls_key: Fingerprint,
}

/// The configuration at one moment. A session keeps the one that it began with.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) link: Option<Arc<ClientConfig>>,
    pub(crate) channel_binding: Option<ChannelBinding>,
    pub(crate) tls_key: Fingerprint,
    pub(crate) authenticator: Arc<Authenticator>,
}

impl Snapshot {
    fn new(live: LiveTls, authenticator: Arc<Authenticator>) -> Self {
        let LiveTls {
            tls,
            link,
            channel_binding,
            tls_key,
        } = live;
        Self {
            tls,
            link,
            channel_binding,
            tls_key,
            authenticator,
        }
    }
}

/// The current snapshot. Only the control thread replaces it.
pub(crate) struct LiveConfig(ArcSwap<Snapshot>);

impl LiveConfig {
    pub(crate) fn new(tls: LiveTls, authenticator: Authenticator) -> Arc<Self> {
        let snapshot = Snapshot::new(tls, Arc::new(authenticator));
        Arc::new(Self(ArcSwap::from_pointee(snapshot)))
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub(crate) fn set_tls(&self, tls: LiveTls) {
        let authenticator = Arc::clone(&self.read().authenticator);
        self.0.store(Arc::new(Snapshot::new(tls, authenticator)));
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
