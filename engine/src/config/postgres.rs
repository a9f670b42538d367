//! The configuration of the superuser's connection to Postgres, for `provision` and `password`. It
//! needs no certificate and no cluster secret.

use std::net::Ipv4Addr;

use attest::agent::AgentAddresses;

use super::identity::{read_guest_agent, read_passwords};
use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::{Errors, settings};
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::io::stream::PgAddress;
use crate::postgres::provision::ProvisionOptions;
use crate::postgres::server::{PostgresAuth, PostgresServer, default_uids};

/// The value of the setting `postgres`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PostgresLocation {
    /// On this port of 127.0.0.1, and on its Unix socket if there is one that lets the roles in.
    Auto { port: u16 },
    /// At this address.
    At(PgAddress),
}

/// Postgres, and the passwords of its roles.
pub struct PostgresConfig {
    /// Where it listens, and how it must prove that it is Postgres.
    pub server: PostgresServer,
    /// The database in which the roles get their privileges.
    pub database: String,
    /// What the roles get.
    pub provision: ProvisionOptions,
    /// Whether Postgres is that of a member of a cluster, so that the replication roles are set up too.
    pub replication: bool,
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
        let (config, mut warnings) = read_all(layers, Self::read)?;
        warnings.extend(server_warning(&config.server));
        Ok(Self { warnings, ..config })
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let server = read_server(reader);
        let database = reader.read(&settings::PG_DATABASE);
        let provision = read_provision_options(reader);
        let cluster = reader.read_optional(&settings::CLUSTER_NAME);
        let passwords = read_passwords(reader);
        let guest_agent = read_guest_agent(reader);
        Some(Self {
            server: server?,
            database: database?,
            provision: provision?,
            replication: cluster?.is_some(),
            passwords: passwords?,
            guest_agent: guest_agent?,
            warnings: Vec::new(),
        })
    }
}

/// The warning about a server that need not prove that it is Postgres.
pub(super) fn server_warning(server: &PostgresServer) -> Option<String> {
    match server.auth {
        PostgresAuth::Scram => None,
        PostgresAuth::Any => Some(ANY_AUTH.to_owned()),
    }
}

const ANY_AUTH: &str = "postgres_auth = any: a process that listens on Postgres' address can get \
     the passwords for Postgres and the clients' queries";

/// The address of Postgres, and how it must prove that it is Postgres.
pub(super) fn read_server(reader: &mut Reader<'_>) -> Option<PostgresServer> {
    let address = reader.read(&settings::POSTGRES);
    let auth = reader.read(&settings::POSTGRES_AUTH);
    let uids = reader.read(&settings::POSTGRES_UID);
    let (address, look_for_socket) = match address? {
        PostgresLocation::Auto { port } => {
            (PgAddress::Tcp((Ipv4Addr::LOCALHOST, port).into()), true)
        }
        PostgresLocation::At(address) => (address, false),
    };
    Some(PostgresServer {
        address,
        auth: auth?,
        uids: uids?.unwrap_or_else(default_uids),
        look_for_socket,
    })
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
