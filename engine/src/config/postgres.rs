//! The part of the configuration that says how to reach Postgres as its
//! superuser, and what the two roles log in with there. It is all that
//! `provision` needs: no certificate, no cluster secret.

use attest::agent::AgentAddresses;

use super::identity::{read_passwords, read_places};
use super::layers::{Layers, Reader};
use super::{Errors, values};
use crate::auth::postgres_passwords::PostgresPasswords;
use crate::io::stream::PgAddress;

/// Postgres, and who logs in to it with what.
pub struct Postgres {
    /// Where it listens.
    pub endpoint: PgAddress,
    /// The database that the roles get their privileges in.
    pub database: String,
    /// All three passwords, as far as they are configured.
    pub passwords: PostgresPasswords,
    /// Who derives the others.
    pub guest_agent: AgentAddresses,
    /// Names in the environment that mean nothing.
    pub warnings: Vec<String>,
}

impl Postgres {
    /// Checks the settings of [`Scope::Postgres`](super::Scope::Postgres), and
    /// no others.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let mut reader = Reader::new(layers);
        let postgres = Self::read(&mut reader);
        let warnings = reader.warnings();
        match (reader.errors(), postgres) {
            (errors, Some(postgres)) if errors.is_empty() => Ok(Self {
                warnings,
                ..postgres
            }),
            (errors, _) => Err(Errors(errors)),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let endpoint = reader.get("postgres", values::endpoint);
        let database = reader.get("pg_database", values::database);
        let passwords = read_passwords(reader);
        let guest_agent = read_places(reader);
        Some(Self {
            endpoint: endpoint?,
            database: database?,
            passwords: passwords?,
            guest_agent: guest_agent?,
            warnings: Vec::new(),
        })
    }
}
