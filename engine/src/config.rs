//! The sidecar's configuration: TOML file, environment and flags, in that
//! order of rising strength. Past this module only checked values travel, and
//! every mistake is reported at once, each with its place.

mod attestation;
mod layers;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

pub use attestation::Attestation;
pub use layers::{Layers, command};

use crate::driver::Choice;
use crate::log::Format;
use crate::net::Endpoint;
use crate::roles::Secrets;
use layers::Reader;

/// Everything that `serve` needs.
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Postgres listens.
    pub postgres: Endpoint,
    /// Threads that serve connections.
    pub shards: usize,
    /// Whether each shard is tied to a core of its own.
    pub pin: bool,
    /// io_uring or epoll.
    pub driver: Choice,
    /// PEM file with the certificate chain, leaf first.
    pub tls_cert: PathBuf,
    /// PEM file with the leaf's private key.
    pub tls_key: PathBuf,
    /// Refuse clients that offer no ALPN protocol.
    pub require_alpn: bool,
    /// What clients present and what Postgres gets.
    pub secrets: Secrets,
    /// What clients have to prove; `None` lets them in unattested.
    pub attestation: Option<Attestation>,
    /// From a change of policy or collateral to the end of the sessions that it
    /// refuses.
    pub revocation_grace: Duration,
    /// Forward a CancelRequest that comes in plaintext.
    pub plaintext_cancel: bool,
    /// Peers whose PROXY protocol header is believed.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// For everything before ReadyForQuery.
    pub login_timeout: Duration,
    /// For a session without a byte either way; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// Sessions at a time.
    pub max_connections: usize,
    /// How long sessions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Text or JSON lines.
    pub log_format: Format,
    /// What is logged.
    pub log: EnvFilter,
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
                config.warnings.extend(match &config.attestation {
                    Some(attestation) => attestation.warnings(),
                    None => vec![attestation::UNATTESTED.to_owned()],
                });
                Ok(config)
            }
            (errors, _) => Err(Errors(errors)),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        // Each is read before any is unwrapped, so that all are checked.
        let listen = reader.get("listen", values::listen);
        let postgres = reader.get("postgres", values::endpoint);
        let shards = reader.get("shards", values::shards);
        let pin = reader.get("pin", values::boolean);
        let driver = reader.get("driver", values::from_str);
        let tls_cert = reader.get("tls_cert", values::path);
        let tls_key = reader.get("tls_key", values::path);
        let require_alpn = reader.get("require_alpn", values::boolean);
        let read = reader.get("read_secret", values::cluster_secret);
        let readwrite = reader.get("readwrite_secret", values::cluster_secret);
        let pg_read = reader.get("pg_password_read", values::password);
        let pg_readwrite = reader.get("pg_password_readwrite", values::password);
        let pg_superuser = reader.optional("pg_password_superuser", values::password);
        let attestation = Attestation::read(reader);
        let revocation_grace = reader.get("revocation_grace", values::duration_or_off);
        let plaintext_cancel = reader.get("plaintext_cancel", values::boolean);
        let proxy_protocol_from = reader.get("proxy_protocol_from", values::networks);
        let login_timeout = reader.get("login_timeout", values::duration);
        let idle_timeout = reader.get("idle_timeout", values::duration_or_off);
        let max_connections = reader.get("max_connections", values::count);
        let drain_timeout = reader.get("drain_timeout", values::duration);
        let log_format = reader.get("log_format", values::from_str);
        let log = reader.get("log", values::log_filter);
        Some(Self {
            listen: listen?,
            postgres: postgres?,
            shards: shards?,
            pin: pin?,
            driver: driver?,
            tls_cert: tls_cert?,
            tls_key: tls_key?,
            require_alpn: require_alpn?,
            secrets: Secrets {
                read: read?,
                readwrite: readwrite?,
                pg_read: pg_read?,
                pg_readwrite: pg_readwrite?,
                pg_superuser: pg_superuser?,
            },
            attestation: attestation?,
            revocation_grace: revocation_grace?.unwrap_or_default(),
            plaintext_cancel: plaintext_cancel?,
            proxy_protocol_from: proxy_protocol_from?,
            login_timeout: login_timeout?,
            idle_timeout: idle_timeout?,
            max_connections: max_connections?,
            drain_timeout: drain_timeout?,
            log_format: log_format?,
            log: log?,
            warnings: Vec::new(),
        })
    }
}
