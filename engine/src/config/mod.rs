//! The configuration of the sidecar, the forwarder and the one-shot commands, from a TOML file, the
//! environment and flags. Later sources override earlier ones.
//!
//! `settings` declares every setting. [`Layers`] collects texts, and each configuration parses its
//! settings into checked values, so that the rest of the program never sees unchecked text. All
//! mistakes are reported together, each with its source. No error shows a secret.

mod attestation;
mod audit;
pub mod catalogue;
mod cluster;
pub(crate) mod connection_uri;
pub(crate) mod control;
pub(crate) mod environment;
mod flags;
mod forward;
mod identity;
mod layers;
pub mod log_format;
mod manifest;
pub mod mode;
mod policy;
mod postgres;
mod process;
mod reader;
#[cfg(test)]
mod reference;
mod roles;
mod settings;
mod spec;
mod tdx_guest;
#[cfg(test)]
mod tests;
mod unattested;
mod values;

use std::net::SocketAddr;
use std::time::Duration;

use attest::values::Fingerprint;

pub use crate::tls::certificate::PemIdentity;
pub use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};
pub use attestation::{Attestation, Criteria};
pub use audit::{AuditConfig, AuditTarget};
pub use cluster::{ClusterConfig, MAX_MEMBERS, Member, RoleConfig, Service, WritesOnStandby};
pub use control::{ControlConfig, ControlSocket};
pub use environment::take_secrets;
pub use flags::with_flags;
pub use forward::{ForwarderConfig, Listen, Verifier};
pub use identity::{AgentConfig, CertificateConfig, ClientIdentity, IdentitySource};
pub use layers::Layers;
pub(crate) use layers::ProgramEnvironment;
pub use manifest::{
    DnsUpdateConfig, ManifestConfig, ManifestDestination, ManifestKeyConfig, TsigConfig, TsigSecret,
};
pub use postgres::PostgresConfig;
pub use process::{ProcessConfig, SetLimits};
pub use roles::RolesConfig;
pub use spec::Scope;
pub use unattested::UnattestedLimits;
pub(crate) use values::duration as parse_duration;

use crate::auth::client_auth::ClientAuth;
use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::derived_secrets::SecretSource;
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::config::mode::Mode;
use crate::postgres::server::PostgresServer;
use identity::{check_launch_token, read_passwords};
use policy::OwnRoot;
use reader::{Reader, read_all};

/// The configuration of the sidecar, for `serve`.
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Postgres listens, and how it must prove that it is Postgres.
    pub postgres: PostgresServer,
    /// Production, unattested or simulator mode.
    pub mode: Mode,
    /// Clients on this machine can log in as `postgres` without a password: in simulator mode, on loopback, unless
    /// clients must be attested.
    pub passwordless_superuser: bool,
    /// Where the certificate comes from.
    pub identity: IdentitySource,
    /// Refuse clients that offer no ALPN protocol.
    pub require_alpn: bool,
    /// How clients prove that they know a secret.
    pub client_auth: ClientAuth,
    /// Offer SCRAM-SHA-256-PLUS to clients that have TLS with this sidecar.
    pub scram_channel_binding: bool,
    /// The configured cluster secrets that clients present.
    pub secrets: ClusterSecrets,
    /// The guest agent derives the cluster secrets instead.
    pub derive_secrets: bool,
    /// How long the previous cluster secrets stay valid after a change.
    pub secret_overlap: Duration,
    /// The configured passwords for Postgres. They are taken out when they are used.
    pub passwords: PostgresPasswords,
    /// The database that the superuser logs in to.
    pub database: String,
    /// How the roles in Postgres are kept, and what their sessions begin with.
    pub roles: RolesConfig,
    /// Minimum time between two quotes for `/attestation`.
    pub attestation_interval: Duration,
    /// What clients have to prove. `None` accepts clients without attestation.
    pub attestation: Option<Attestation>,
    /// Whether the role `postgres` can log in: as the policy grants it, or never.
    pub superuser_logins: bool,
    /// Forward CancelRequest messages that arrive without TLS.
    pub plaintext_cancel: bool,
    /// Peers whose PROXY protocol header is trusted.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// The audit log, if there is one.
    pub audit: Option<AuditConfig>,
    /// Where operators on this machine ask for the connections.
    pub control_socket: ControlSocket,
    /// The cluster that this sidecar belongs to, if it does.
    pub cluster: Option<ClusterConfig>,
    /// The leader manifest, if this member publishes it. It is taken out when it is used.
    pub manifest: Option<ManifestConfig>,
    /// The limits on clients that are not attested yet.
    pub unattested: UnattestedLimits,
    /// Threads, timeouts, limits and the log.
    pub process: ProcessConfig,
    /// Settings that weaken security, for the log at start.
    pub warnings: Vec<String>,
}

/// All mistakes of a configuration, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Errors(pub Vec<String>);

impl Config {
    /// Parses and checks the settings of [`Scope::Serve`].
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (mut config, mut warnings) = read_all(layers, Self::read)?;
        warnings.extend(config.security_warnings());
        config.warnings = warnings;
        Ok(config)
    }

    fn security_warnings(&self) -> Vec<String> {
        let mut warnings = match &self.attestation {
            Some(attestation) => attestation.warnings(),
            None => vec![attestation::UNATTESTED.to_owned()],
        };
        warnings.extend(self.roles.warnings());
        if self.mode == Mode::Simulator {
            let warning = match (&self.attestation, self.passwordless_superuser) {
                (Some(_), _) => identity::SIMULATOR_ATTESTING,
                (None, true) => identity::SIMULATOR_PASSWORDLESS,
                (None, false) => identity::SIMULATOR,
            };
            warnings.insert(0, warning.to_owned());
        }
        warnings.extend(postgres::server_warning(&self.postgres));
        if self.client_auth == ClientAuth::Password {
            warnings.push(identity::PASSWORD_AUTH.to_owned());
        }
        warnings
    }

    /// Whether the guest agent must derive Postgres passwords: without a cluster key, if that of a role is missing, or
    /// if the agent issues the certificate and that of the superuser is missing.
    pub(crate) fn derives_passwords(&self) -> bool {
        if self.passwords.cluster_key.is_some() {
            return false;
        }
        let from_agent = matches!(self.identity, IdentitySource::Agent(_));
        self.passwords.need_agent()
            || from_agent && self.passwords.superuser.is_none()
            || self.provisions_replication()
    }

    /// Whether the roles `replicator` and `rewind` are set up in Postgres.
    pub(crate) fn provisions_replication(&self) -> bool {
        self.roles.provision && self.cluster.is_some()
    }

    /// The fingerprint of the root of TDX quotes, if it is not Intel's.
    pub(crate) fn dangerous_root(&self) -> Option<Fingerprint> {
        let root = &self.attestation.as_ref()?.root;
        root.is_dangerous().then(|| root.fingerprint())
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let listen = reader.read(&settings::LISTEN);
        let postgres = postgres::read_server(reader);
        let identity = IdentitySource::read_server(reader);
        let require_alpn = reader.read(&settings::REQUIRE_ALPN);
        let client_auth = reader.read(&settings::CLIENT_AUTH);
        let scram_channel_binding = reader.read(&settings::SCRAM_CHANNEL_BINDING);
        let launch_token = check_launch_token(reader);
        let secrets = ClusterSecrets::read(reader);
        let secret_overlap = reader.read(&settings::SECRET_OVERLAP);
        let passwords = read_passwords(reader);
        let database = reader.read(&settings::PG_DATABASE);
        let roles = RolesConfig::read(reader);
        let attestation_interval = reader.read(&settings::ATTESTATION_INTERVAL);
        let from_agent = matches!(identity, Some(IdentitySource::Agent(_)));
        let own_root = OwnRoot::new(reader, from_agent);
        let attestation = Attestation::read_if_required(reader, own_root);
        let superuser_logins = reader.read(&settings::SUPERUSER_LOGINS);
        let plaintext_cancel = reader.read(&settings::PLAINTEXT_CANCEL);
        let proxy_protocol_from = reader.read(&settings::PROXY_PROTOCOL_FROM);
        let audit = AuditConfig::read(reader);
        let control_socket = reader.read(&settings::CONTROL_SOCKET);
        let cluster = ClusterConfig::read(reader);
        let with_cluster_key = matches!(&passwords, Some(read) if read.cluster_key.is_some());
        let in_cluster = cluster.as_ref().and_then(Option::as_ref);
        let manifest = ManifestConfig::read(reader, in_cluster, with_cluster_key);
        let unattested = UnattestedLimits::read(reader);
        let process = ProcessConfig::read(reader);
        let attestation = attestation?;
        if let Some(Some(cluster)) = &cluster {
            cluster.check_attested(reader, attestation.is_some())?;
        }
        launch_token?;
        let (secrets, source) = secrets?;
        let passwords = passwords?;
        if source == SecretSource::Derived && passwords.cluster_key.is_some() {
            return reader.error(identity::DERIVED_SECRETS_WITH_CLUSTER_KEY);
        }
        let mut identity = identity?;
        if let (IdentitySource::Agent(request), Some(Some(_))) = (&mut identity, &cluster) {
            request.usage = CertificateUsage::Both;
        }
        let listen = listen?;
        Some(Self {
            passwordless_superuser: reader.simulator_mode()
                && attestation.is_none()
                && listen.ip().is_loopback(),
            listen,
            postgres: postgres?,
            mode: match &attestation {
                _ if reader.simulator_mode() => Mode::Simulator,
                Some(_) => Mode::Production,
                None => Mode::Unattested,
            },
            identity,
            require_alpn: require_alpn?,
            client_auth: client_auth?,
            scram_channel_binding: scram_channel_binding?,
            secrets,
            derive_secrets: source == SecretSource::Derived,
            secret_overlap: secret_overlap?.unwrap_or_default(),
            passwords,
            database: database?,
            roles: roles?,
            attestation_interval: attestation_interval?,
            attestation,
            superuser_logins: superuser_logins?,
            plaintext_cancel: plaintext_cancel?,
            proxy_protocol_from: proxy_protocol_from?,
            audit: audit?,
            control_socket: control_socket?,
            cluster: cluster?,
            manifest: manifest?,
            unattested: unattested?,
            process: process?,
            warnings: Vec::new(),
        })
    }
}
