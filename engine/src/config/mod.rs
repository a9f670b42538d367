//! The sidecar's configuration: TOML file, environment and flags, in that
//! order of rising strength. Past this module only checked values travel, and
//! every mistake is reported at once, each with its place.

mod attestation;
mod forward;
mod identity;
mod layers;
pub mod log_format;
pub mod mode;
mod postgres;
mod process;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::time::Duration;

use attest::agent::Agent;
use attest::values::Fingerprint;

pub use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};
pub use attestation::{Attestation, Criteria};
pub use forward::{ClientIdentity, Forward, Listen, Verifier};
pub use identity::{Certificate, IdentitySource};
pub use layers::{Layers, with_flags};
pub use postgres::Postgres;
pub use process::Process;
pub use settings::Scope;

use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::config::mode::Mode;
use crate::io::stream::PgAddress;
use crate::tls::certificate_source::CertificateSource;
use identity::read_passwords;
use layers::Reader;

/// Everything that `serve` needs.
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Postgres listens.
    pub postgres: PgAddress,
    /// What is asked of clients, in a word.
    pub mode: Mode,
    /// Where the certificate comes from.
    pub identity: IdentitySource,
    /// Refuse clients that offer no ALPN protocol.
    pub require_alpn: bool,
    /// What clients present.
    pub secrets: ClusterSecrets,
    /// How long the cluster secrets before a change stay good.
    pub secret_overlap: Duration,
    /// What Postgres gets; taken out when it is used.
    pub passwords: PostgresPasswords,
    /// The database that the superuser logs in to.
    pub database: String,
    /// Whether the roles are set up at start.
    pub provision: bool,
    /// Least time between two quotes for `/attestation`.
    pub attestation_interval: Duration,
    /// What clients have to prove; `None` lets them in unattested.
    pub attestation: Option<Attestation>,
    /// Forward a CancelRequest that comes in plaintext.
    pub plaintext_cancel: bool,
    /// Peers whose PROXY protocol header is believed.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Threads, times, limits, the log.
    pub process: Process,
    /// Things that are allowed and weaken the product, for the log at start.
    pub warnings: Vec<String>,
}

/// All that is wrong, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Errors(pub Vec<String>);

impl Config {
    /// Checks every setting.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let mut reader = Reader::new(layers);
        let config = Self::read(&mut reader);
        let warnings = reader.warnings();
        match (reader.errors(), config) {
            (errors, Some(mut config)) if errors.is_empty() => {
                config.warnings = warnings;
                config.mode = match (reader.simulated(), &config.attestation) {
                    (true, _) => Mode::Simulator,
                    (false, Some(_)) => Mode::Production,
                    (false, None) => Mode::Unattested,
                };
                let own = config.own_warnings();
                config.warnings.extend(own);
                Ok(config)
            }
            (errors, _) => Err(Errors(errors)),
        }
    }

    fn own_warnings(&self) -> Vec<String> {
        let mut warnings = match &self.attestation {
            Some(attestation) => attestation.warnings(),
            None => vec![attestation::UNATTESTED.to_owned()],
        };
        if self.mode == Mode::Simulator {
            warnings.insert(0, identity::SIMULATED.to_owned());
        }
        warnings
    }

    /// Where the certificate comes from, ready to be asked.
    pub(crate) fn certificate_source(&self, agent: Agent) -> CertificateSource {
        match self.identity.clone() {
            IdentitySource::Files { cert, key } => CertificateSource::Files { cert, key },
            IdentitySource::Agent(subject) => CertificateSource::Agent { agent, subject },
        }
    }

    /// Whether the guest agent is to derive Postgres' passwords: where one of
    /// the roles' is missing, and where it gives the certificate, so that the
    /// superuser can log in.
    pub(crate) fn derives_passwords(&self) -> bool {
        let from_agent = matches!(self.identity, IdentitySource::Agent(_));
        self.passwords.need_agent() || from_agent && self.passwords.superuser.is_none()
    }

    /// The root of TDX quotes, where it is not Intel's.
    pub(crate) fn dangerous_root(&self) -> Option<Fingerprint> {
        let root = &self.attestation.as_ref()?.root;
        root.is_dangerous().then(|| root.fingerprint())
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        // Each is read before any is unwrapped, so that all are checked.
        let listen = reader.get("listen", values::listen);
        let postgres = reader.get("postgres", values::endpoint);
        let identity = IdentitySource::read(reader);
        let require_alpn = reader.get("require_alpn", values::boolean);
        let secrets = ClusterSecrets::read(reader);
        let secret_overlap = reader.get("secret_overlap", values::duration_or_off);
        let passwords = read_passwords(reader);
        let database = reader.get("pg_database", values::database);
        let provision = reader.get("provision", values::boolean);
        let attestation_interval = reader.get("attestation_interval", values::duration);
        let attestation = Attestation::read(reader);
        let plaintext_cancel = reader.get("plaintext_cancel", values::boolean);
        let proxy_protocol_from = reader.get("proxy_protocol_from", values::networks);
        let process = Process::read(reader);
        Some(Self {
            listen: listen?,
            postgres: postgres?,
            mode: Mode::Production,
            identity: identity?,
            require_alpn: require_alpn?,
            secrets: secrets?,
            secret_overlap: secret_overlap?.unwrap_or_default(),
            passwords: passwords?,
            database: database?,
            provision: provision?,
            attestation_interval: attestation_interval?,
            attestation: attestation?,
            plaintext_cancel: plaintext_cancel?,
            proxy_protocol_from: proxy_protocol_from?,
            process: process?,
            warnings: Vec::new(),
        })
    }
}
