//! The configuration of the sidecar, the forwarder and the one-shot commands, from a TOML file, the
//! environment and flags. Later sources override earlier ones.
//!
//! `settings` declares every setting. [`Layers`] collects texts, and each configuration parses its
//! settings into checked values, so that the rest of the program never sees unchecked text. All
//! mistakes are reported together, each with its source. No error shows a secret.

mod attestation;
mod audit;
mod flags;
mod forward;
mod identity;
mod layers;
pub mod log_format;
pub mod mode;
mod postgres;
mod process;
mod reader;
#[cfg(test)]
mod reference;
mod settings;
mod spec;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::time::Duration;

use attest::values::Fingerprint;

pub use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};
pub use attestation::{Attestation, Criteria};
pub use audit::{AuditConfig, AuditTarget};
pub use flags::with_flags;
pub use forward::{ForwarderConfig, Listen, Verifier};
pub use identity::{CertificateConfig, IdentitySource};
pub use layers::Layers;
pub use postgres::PostgresConfig;
pub use process::ProcessConfig;
pub use spec::Scope;
pub(crate) use values::duration as parse_duration;

use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::config::mode::Mode;
use crate::io::stream::PgAddress;
use identity::read_passwords;
use reader::{Reader, read_all};

/// The configuration of the sidecar, for `serve`.
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Postgres listens.
    pub postgres: PgAddress,
    /// Production, unattested or simulator mode.
    pub mode: Mode,
    /// Where the certificate comes from.
    pub identity: IdentitySource,
    /// Refuse clients that offer no ALPN protocol.
    pub require_alpn: bool,
    /// The cluster secrets that clients present.
    pub secrets: ClusterSecrets,
    /// How long the previous cluster secrets stay valid after a change.
    pub secret_overlap: Duration,
    /// The configured passwords for Postgres. They are taken out when they are used.
    pub passwords: PostgresPasswords,
    /// The database that the superuser logs in to.
    pub database: String,
    /// Set up the roles in Postgres at start.
    pub provision: bool,
    /// Minimum time between two quotes for `/attestation`.
    pub attestation_interval: Duration,
    /// What clients have to prove. `None` accepts clients without attestation.
    pub attestation: Option<Attestation>,
    /// Forward CancelRequest messages that arrive without TLS.
    pub plaintext_cancel: bool,
    /// Peers whose PROXY protocol header is trusted.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// The audit log, if there is one.
    pub audit: Option<AuditConfig>,
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
        if self.mode == Mode::Simulator {
            warnings.insert(0, identity::SIMULATOR_MODE.to_owned());
        }
        warnings
    }

    /// Whether the guest agent must derive Postgres passwords: if that of a role is missing, or if
    /// the agent issues the certificate and that of the superuser is missing.
    pub(crate) fn derives_passwords(&self) -> bool {
        let from_agent = matches!(self.identity, IdentitySource::Agent(_));
        self.passwords.need_agent() || from_agent && self.passwords.superuser.is_none()
    }

    /// The fingerprint of the root of TDX quotes, if it is not Intel's.
    pub(crate) fn dangerous_root(&self) -> Option<Fingerprint> {
        let root = &self.attestation.as_ref()?.root;
        root.is_dangerous().then(|| root.fingerprint())
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let listen = reader.read(&settings::LISTEN);
        let postgres = reader.read(&settings::POSTGRES);
        let identity = IdentitySource::read_server(reader);
        let require_alpn = reader.read(&settings::REQUIRE_ALPN);
        let secrets = ClusterSecrets::read(reader);
        let secret_overlap = reader.read(&settings::SECRET_OVERLAP);
        let passwords = read_passwords(reader);
        let database = reader.read(&settings::PG_DATABASE);
        let provision = reader.read(&settings::PROVISION);
        let attestation_interval = reader.read(&settings::ATTESTATION_INTERVAL);
        let attestation = Attestation::read_if_required(reader);
        let plaintext_cancel = reader.read(&settings::PLAINTEXT_CANCEL);
        let proxy_protocol_from = reader.read(&settings::PROXY_PROTOCOL_FROM);
        let audit = AuditConfig::read(reader);
        let process = ProcessConfig::read(reader);
        let attestation = attestation?;
        Some(Self {
            listen: listen?,
            postgres: postgres?,
            mode: match &attestation {
                _ if reader.simulator_mode() => Mode::Simulator,
                Some(_) => Mode::Production,
                None => Mode::Unattested,
            },
            identity: identity?,
            require_alpn: require_alpn?,
            secrets: secrets?,
            secret_overlap: secret_overlap?.unwrap_or_default(),
            passwords: passwords?,
            database: database?,
            provision: provision?,
            attestation_interval: attestation_interval?,
            attestation,
            plaintext_cancel: plaintext_cancel?,
            proxy_protocol_from: proxy_protocol_from?,
            audit: audit?,
            process: process?,
            warnings: Vec::new(),
        })
    }
}
