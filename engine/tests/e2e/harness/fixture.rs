//! The fixture that every test function receives.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::{Cluster, ClusterOptions, Server};
use crate::harness::fake_server::FakeServer;
use crate::harness::settings::{Settings, Variant};
use crate::harness::sidecar::Sidecar;
use crate::harness::{AuthSettings, Harness, PasswordEncryption};

/// The harness, and the I/O driver and record layer to test with.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) harness: Arc<Harness>,
    pub(crate) variant: Variant,
}

impl Fixture {
    /// The shared cluster of the installed Postgres version.
    pub(crate) fn cluster(&self) -> &Cluster {
        let installed = &self.harness.installed;
        self.harness.cluster(installed, PasswordEncryption::Scram)
    }

    /// A new cluster of the installed Postgres version, for one test.
    pub(crate) fn private_cluster(&self, options: &ClusterOptions) -> Cluster {
        let installed = &self.harness.installed;
        self.harness.private_cluster(installed, options)
    }

    /// The shared sidecar in front of [`cluster`](Self::cluster).
    pub(crate) fn sidecar(&self) -> Arc<Sidecar> {
        self.sidecar_for(&self.harness.installed, PasswordEncryption::Scram)
    }

    /// The shared sidecar in front of the shared cluster of `server`.
    pub(crate) fn sidecar_for(
        &self,
        server: &Server,
        encryption: PasswordEncryption,
    ) -> Arc<Sidecar> {
        self.sidecar_with(server, encryption, AuthSettings::Scram)
    }

    /// The same with other authentication methods.
    pub(crate) fn sidecar_with(
        &self,
        server: &Server,
        encryption: PasswordEncryption,
        auth: AuthSettings,
    ) -> Arc<Sidecar> {
        self.harness.sidecar(self.variant, server, encryption, auth)
    }

    /// Settings for a separate sidecar in front of the shared cluster.
    pub(crate) fn settings(&self) -> Settings {
        self.settings_for(&self.cluster().address().to_string())
    }

    /// Settings for a separate sidecar in front of `upstream`: `host:port` or the path of a socket.
    pub(crate) fn settings_for(&self, upstream: &str) -> Settings {
        Settings::for_sidecar(self.variant, upstream, &self.harness.certificates)
    }

    /// Settings for a separate sidecar in front of a fake server, which lets it in without
    /// authentication.
    pub(crate) fn settings_for_fake(&self, postgres: &FakeServer) -> Settings {
        self.settings_for(&postgres.address().to_string())
            .set("TEESQL_POSTGRES_AUTH", "any")
    }

    /// A client inside TLS, negotiated by SSLRequest, that has not logged in.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        Client::connect(&self.harness, address, TlsNegotiation::SslRequest)
    }

    /// A session of `teesql_read` in the database `via_scram`.
    pub(crate) fn session(&self, sidecar: &Sidecar) -> Client {
        let mut client = self.client(sidecar.address());
        client.login_reader();
        client
    }
}
