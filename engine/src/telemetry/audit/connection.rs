//! What the audit log has to know about one connection, beyond what the shard knows anyway.

use attest::values::Fingerprint;

/// Bytes of a database's name. PostgreSQL cuts names at NAMEDATALEN - 1 = 63 bytes.
const MAX_DATABASE: usize = 63;

/// The part of a connection's state that is kept for the audit log only.
#[derive(Debug, Default)]
pub(crate) struct ConnectionAudit {
    /// The client's leaf certificate, if the gate did not accept it.
    pub(super) certificate: Option<Fingerprint>,
    pub(super) database: Option<Box<str>>,
    /// Whether the gate has let the client in.
    pub(super) admitted: bool,
}

impl ConnectionAudit {
    /// Notes the certificate of a client that is not attested.
    pub(crate) fn set_certificate(&mut self, certificate: Option<Fingerprint>) {
        self.certificate = certificate;
    }

    /// Notes the database that a client asks for, cut as Postgres does.
    pub(crate) fn set_database(&mut self, name: &[u8]) {
        let cut = name.get(..MAX_DATABASE).unwrap_or(name);
        self.database = Some(String::from_utf8_lossy(cut).into());
    }
}
