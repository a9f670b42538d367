//! Configuration that can be reloaded, as an atomically swapped snapshot: TLS identity and
//! secrets.
//!
//! It is read once for each accepted connection, and must never be locked.

use std::sync::Arc;

use arc_swap::ArcSwap;
use attest::values::Fingerprint;
use rustls::ServerConfig;
use wire::scram::server::ChannelBinding;

use crate::auth::cluster_secrets::Authenticator;

/// The configuration at one moment. A session keeps the one that it began with.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tls: Arc<ServerConfig>,
    /// The channel binding of the certificate in `tls`, if it has one.
    pub(crate) channel_binding: Option<ChannelBinding>,
    /// SHA-256 of the key of the certificate in `tls`, as SubjectPublicKeyInfo.
    pub(crate) tls_key: Fingerprint,
    pub(crate) authenticator: Arc<Authenticator>,
}

/// The current snapshot. Only the control thread replaces it.
pub(crate) struct LiveConfig(ArcSwap<Snapshot>);

impl LiveConfig {
    pub(crate) fn new(
        tls: Arc<ServerConfig>,
        channel_binding: Option<ChannelBinding>,
        tls_key: Fingerprint,
        authenticator: Authenticator,
    ) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(Snapshot {
            tls,
            channel_binding,
            tls_key,
            authenticator: Arc::new(authenticator),
        })))
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub(crate) fn set_tls(
        &self,
        tls: Arc<ServerConfig>,
        channel_binding: Option<ChannelBinding>,
        tls_key: Fingerprint,
    ) {
        let now = Snapshot::clone(&self.read());
        self.0.store(Arc::new(Snapshot {
            tls,
            channel_binding,
            tls_key,
            ..now
        }));
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
