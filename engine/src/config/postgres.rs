//! The configuration of the superuser's connection to Postgres, for `provision` and `password`. It
//! needs no certificate and no cluster secret.

use attest::agent::AgentAddresses;

use super::identity::{read_guest_agent, read_passwords};
use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::{Errors, settings};
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::io::stream::PgAddress;
use crate::postgres::provision::ProvisionOptions;

/// Postgres, and the passwords of its roles.
pub struct PostgresConfig {
    /// Where it listens.
    pub address: PgAddress,
    /// The database in which the roles get their privileges.
    pub database: String,
    /// What the roles get.
    pub provision: ProvisionOptions,
    /// The configured passwords.
    pub passwords: PostgresPasswords,
    /// The addresses of the guest agent, which derives the other passwords.
    pub guest_agent: AgentAddresses,
    /// Unknown settings in the environment.
    pub warnings: Vec<String>,
}

impl PostgresConfig {
    /// Parses and checks the settings of [`Scope::Postgres`](super::Scope::Postgres).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (config, warnings) = read_all(layers, Self::read)?;
        Ok(Self { warnings, ..config })
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let address = reader.read(&settings::POSTGRES);
        let database = reader.read(&settings::PG_DATABASE);
        let provision = read_provision_options(reader);
        let passwords = read_passwords(reader);
        let guest_agent = read_guest_agent(reader);
        Some(Self {
            address: address?,
            database: database?,
            provision: provision?,
            passwords: passwords?,
            guest_agent: guest_agent?,
            warnings: Vec::new(),
        })
    }
}

pub(super) fn read_provision_options(reader: &mut Reader<'_>) -> Option<ProvisionOptions> {
    let read_connections = reader.read(&settings::PG_CONNECTIONS_READ);
    let readwrite_connections = reader.read(&settings::PG_CONNECTIONS_READWRITE);
    let allow_other_databases = reader.read(&settings::ALLOW_OTHER_DATABASES);
    Some(ProvisionOptions {
        read_connections: read_connections?,
        readwrite_connections: readwrite_connections?,
        allow_other_databases: allow_other_databases?,
    })
}
