//! The configuration of the identity of this process: its certificate, the guest agent, the cluster
//! secrets and the passwords for Postgres.

use std::path::PathBuf;
use std::sync::Arc;

use attest::agent::{Agent, AgentAddresses};
use wire::secret::ClusterSecret;

use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::spec::Setting;
use super::{Errors, settings};
use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::derived_secrets::SecretSource;
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::tls::certificate::PemIdentity;
use crate::tls::certificate_source::{CertificateRequest, CertificateSource, CertificateUsage};

pub(super) const PASSWORD_AUTH: &str = "client_auth = password: clients send their secret to whatever \
     server they accept, so that a client that does not verify the server's TDX quote may give it away";

pub(super) const DERIVED_SECRETS_WITH_CLUSTER_KEY: &str = "cluster_secrets = derived, although cluster_key is set: \
     the guest agents of members with app ids of their own derive different secrets. Set read_secret and \
     readwrite_secret, the same on all members, or unset cluster_key if all members have one app id";

pub(super) const SIMULATOR_PASSWORDLESS: &str = "simulator mode: clients are not attested, and any client on \
     this machine can log in as postgres without a password";
pub(super) const SIMULATOR: &str = "simulator mode: clients are not attested";
pub(super) const SIMULATOR_ATTESTING: &str =
    "simulator mode: the sidecar's own certificate proves nothing";

/// Where the certificate of this process comes from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's key.
        key: PathBuf,
    },
    /// The guest agent. If it is not available and `allow_simulator` is set, a forwarder presents no
    /// certificate.
    Agent(CertificateRequest),
}

impl IdentitySource {
    /// Reads the settings of the sidecar's certificate.
    pub(super) fn read_server(reader: &mut Reader<'_>) -> Option<Self> {
        let alt_names = reader.read(&settings::CERTIFICATE_ALT_NAMES);
        let (cert, key) = (&settings::TLS_CERT, &settings::TLS_KEY);
        Self::read(reader, cert, key, CertificateUsage::Server, alt_names)
    }

    fn read(
        reader: &mut Reader<'_>,
        cert_setting: &'static Setting<PathBuf>,
        key_setting: &'static Setting<PathBuf>,
        usage: CertificateUsage,
        alt_names: Option<Vec<String>>,
    ) -> Option<Self> {
        let cert = reader.read_optional(cert_setting);
        let key = reader.read_optional(key_setting);
        let name = reader.read(&settings::CERTIFICATE_SUBJECT);
        let validity = reader.read(&settings::CERTIFICATE_VALIDITY);
        match (cert?, key?) {
            (Some(cert), Some(key)) => Some(Self::Files { cert, key }),
            (None, None) => Some(Self::Agent(CertificateRequest {
                name: name?,
                alt_names: alt_names?,
                validity: validity?,
                usage,
            })),
            (Some(_), None) => reader.missing_counterpart(cert_setting, key_setting),
            (None, Some(_)) => reader.missing_counterpart(key_setting, cert_setting),
        }
    }

    /// The source of the certificate. `agent` is used if the guest agent issues it.
    pub(crate) fn certificate_source(&self, agent: Agent) -> CertificateSource {
        match self.clone() {
            Self::Files { cert, key } => CertificateSource::Files { cert, key },
            Self::Agent(request) => CertificateSource::Agent { agent, request },
        }
    }
}

/// Where the client certificate of a forwarder comes from.
#[derive(Clone, Debug)]
pub enum ClientIdentity {
    /// None is presented: only the server is attested.
    None,
    /// PEM in memory, of a program that the forwarder is part of.
    Memory(Arc<PemIdentity>),
    /// Files, or the guest agent.
    Source(IdentitySource),
}

impl ClientIdentity {
    /// Reads the settings of the forwarder's client certificate.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let is_attested = reader.read(&settings::CLIENT_ATTESTATION);
        let (cert, key) = (&settings::CLIENT_CERT, &settings::CLIENT_KEY);
        let (usage, names) = (CertificateUsage::Client, Some(Vec::new()));
        let source = IdentitySource::read(reader, cert, key, usage, names);
        match (is_attested?, source?) {
            (false, IdentitySource::Files { .. }) => {
                reader.error("client_attestation = false, but client_cert is set: remove one")
            }
            (false, IdentitySource::Agent(_)) => Some(Self::None),
            (true, source) => Some(match reader.pem_identity() {
                Some(pem) => Self::Memory(pem),
                None => Self::Source(source),
            }),
        }
    }

    /// Whether the guest agent issues the certificate.
    pub(super) fn is_from_agent(&self) -> bool {
        matches!(self, Self::Source(IdentitySource::Agent(_)))
    }

    /// The source of the certificate, if there is one. `agent` is used if the guest agent issues it.
    pub(crate) fn certificate_source(&self, agent: Agent) -> Option<CertificateSource> {
        match self {
            Self::None => None,
            Self::Memory(pem) => Some(CertificateSource::Memory(Arc::clone(pem))),
            Self::Source(source) => Some(source.certificate_source(agent)),
        }
    }
}

/// The certificate, and the guest agent that may issue it.
pub struct CertificateConfig {
    /// Where the certificate comes from.
    pub identity: IdentitySource,
    /// The addresses of the guest agent.
    pub guest_agent: AgentAddresses,
}

impl CertificateConfig {
    /// Parses and checks the settings of [`Scope::Agent`](super::Scope::Agent).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        read_all(layers, Self::read).map(|(certificate, _)| certificate)
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let identity = IdentitySource::read_server(reader);
        let guest_agent = read_guest_agent(reader);
        Some(Self {
            identity: identity?,
            guest_agent: guest_agent?,
        })
    }
}

/// The simulator's address, the configured one, or dstack's standard ones.
pub(super) fn read_guest_agent(reader: &mut Reader<'_>) -> Option<AgentAddresses> {
    let simulator = reader.read_optional(&settings::SIMULATOR_ENDPOINT);
    let configured = reader.read(&settings::GUEST_AGENT);
    let address = simulator?.or(configured?);
    Some(address.map_or_else(AgentAddresses::standard, AgentAddresses::only))
}

/// The addresses of the guest agent, for a command that needs nothing else.
pub struct AgentConfig {
    /// The addresses.
    pub guest_agent: AgentAddresses,
    /// Unknown settings in the environment.
    pub warnings: Vec<String>,
}

impl AgentConfig {
    /// Parses and checks the settings of [`Scope::Secret`](super::Scope::Secret).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (guest_agent, warnings) = read_all(layers, read_guest_agent)?;
        Ok(Self {
            guest_agent,
            warnings,
        })
    }
}

pub(super) fn read_passwords(reader: &mut Reader<'_>) -> Option<PostgresPasswords> {
    let read = reader.read_optional(&settings::PG_PASSWORD_READ);
    let readwrite = reader.read_optional(&settings::PG_PASSWORD_READWRITE);
    let superuser = reader.read_optional(&settings::PG_PASSWORD_SUPERUSER);
    let cluster_key = reader.read_optional(&settings::CLUSTER_KEY);
    Some(PostgresPasswords {
        read: read?,
        readwrite: readwrite?,
        superuser: superuser?,
        cluster_key: cluster_key?,
    })
}

impl ClusterSecrets {
    /// Without secrets if the guest agent derives them. They are optional in simulator mode: logins to a role without a
    /// secret are refused.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<(Self, SecretSource)> {
        let source = reader.read(&settings::CLUSTER_SECRETS);
        let derived = source == Some(SecretSource::Derived);
        let mut secret = |setting: &'static Setting<ClusterSecret>| {
            if !derived && !reader.simulator_mode() {
                return reader.read(setting).map(Some);
            }
            match reader.read_optional(setting)? {
                Some(_) if derived => reader.error(format!(
                    "{}: set, although cluster_secrets = derived, which takes it from the guest agent",
                    setting.spec.key
                )),
                secret => Some(secret),
            }
        };
        let read = secret(&settings::READ_SECRET);
        let readwrite = secret(&settings::READWRITE_SECRET);
        let (read, readwrite) = (read?, readwrite?);
        Some((Self { read, readwrite }, source?))
    }
}

/// Refuses settings without the launch token that the deployment requires.
pub(super) fn check_launch_token(reader: &mut Reader<'_>) -> Option<()> {
    let required = reader.read_optional(&settings::LAUNCH_TOKEN_SHA256)?;
    let Some(required) = required else {
        // A token that is compared with nothing protects nothing.
        return match reader.read_optional(&settings::LAUNCH_TOKEN)? {
            None => Some(()),
            Some(_) => {
                reader.missing_counterpart(&settings::LAUNCH_TOKEN, &settings::LAUNCH_TOKEN_SHA256)
            }
        };
    };
    let token = reader.read(&settings::LAUNCH_TOKEN)?;
    if required.matches(&token) {
        return Some(());
    }
    reader.error(
        "launch_token: its SHA-256 is not launch_token_sha256, so that these settings may have been chosen by the host: \
         set the token of this deployment, or deploy again with the output of: printf %s \"$TOKEN\" | sha256sum",
    )
}
