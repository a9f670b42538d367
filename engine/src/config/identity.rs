//! The part of the configuration that says who the sidecar is: its certificate,
//! the guest agent, and the secrets that the agent derives or that are set.

use std::path::PathBuf;

use attest::agent::{AgentAddress, AgentAddresses};

use super::layers::{Layers, Reader};
use super::{Errors, values};
use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};

pub(super) const SIMULATED: &str = "simulator mode: no client is attested, and whoever is on this \
     machine is postgres without a password";

/// Where the sidecar's certificate comes from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's key.
        key: PathBuf,
    },
    /// The guest agent.
    Agent(CertificateRequest),
}

impl IdentitySource {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let cert = reader.optional("tls_cert", values::path);
        let key = reader.optional("tls_key", values::path);
        let name = reader.get("certificate_subject", values::subject);
        let alt_names = reader.get("certificate_alt_names", values::names);
        let validity = reader.get("certificate_validity", values::duration);
        match (cert?, key?) {
            (Some(cert), Some(key)) => Some(Self::Files { cert, key }),
            (None, None) => Some(Self::Agent(CertificateRequest {
                name: name?,
                alt_names: alt_names?,
                validity: validity?,
                usage: CertificateUsage::Server,
            })),
            (Some(_), None) => reader.missing_twin("tls_cert", "tls_key"),
            (None, Some(_)) => reader.missing_twin("tls_key", "tls_cert"),
        }
    }
}

/// All that is needed to ask for a certificate.
pub struct Certificate {
    /// Where it comes from.
    pub identity: IdentitySource,
    /// Where the guest agent is looked for.
    pub guest_agent: AgentAddresses,
}

impl Certificate {
    /// Checks the settings of [`Scope::Agent`](super::Scope::Agent), and no
    /// others.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let mut reader = Reader::new(layers);
        let identity = IdentitySource::read(&mut reader);
        let guest_agent = read_places(&mut reader);
        match (reader.errors(), identity, guest_agent) {
            (errors, Some(identity), Some(guest_agent)) if errors.is_empty() => Ok(Self {
                identity,
                guest_agent,
            }),
            (errors, _, _) => Err(Errors(errors)),
        }
    }
}

/// The simulator's, the configured one, or the usual ones.
pub(super) fn read_places(reader: &mut Reader<'_>) -> Option<AgentAddresses> {
    let simulator = reader.optional("simulator_endpoint", values::from_str::<AgentAddress>);
    let configured = reader.get("guest_agent", values::agent);
    let endpoint = simulator?.or(configured?);
    Some(endpoint.map_or_else(AgentAddresses::standard, AgentAddresses::only))
}

pub(super) fn read_passwords(reader: &mut Reader<'_>) -> Option<PostgresPasswords> {
    let read = reader.optional("pg_password_read", values::password);
    let readwrite = reader.optional("pg_password_readwrite", values::password);
    let superuser = reader.optional("pg_password_superuser", values::password);
    Some(PostgresPasswords {
        read: read?,
        readwrite: readwrite?,
        superuser: superuser?,
    })
}

impl ClusterSecrets {
    /// In simulator mode they may be missing: the roles are closed then.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut secret = |name| {
            if reader.simulated() {
                reader.optional(name, values::cluster_secret)
            } else {
                reader.get(name, values::cluster_secret).map(Some)
            }
        };
        let (read, readwrite) = (secret("read_secret"), secret("readwrite_secret"));
        Some(Self {
            read: read?,
            readwrite: readwrite?,
        })
    }
}
