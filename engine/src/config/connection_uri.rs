//! PostgreSQL connection URIs, parsed as libpq parses them.
//!
//! Parsers of URIs disagree: for libpq `?%68ostaddr=` is `hostaddr`, the user name may contain `?` and `#`, and `service`
//! names a file with another server. A URI that the forwarder only edited could lead a driver around the forwarder.
//! So the URI for the command is built anew from the parts that were understood, each percent-encoded: every parser
//! reads it in the same way (docs/adr/0023-connection-uri-built-anew.md).
//! [PostgreSQL's documentation, 32.1.1.2; `conninfo_uri_parse_options` in libpq]
//!
//! It contains a password: no error repeats a value, and parameters are named only if their name is a word.

mod parameters;
mod parser;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::values;
use crate::io::target::{HostOrder, MAX_TARGETS};
use parameters::Fate;

/// Everything except the unreserved characters. [RFC 3986, 2.3]
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// As [`RESERVED`], for a text that is percent-encoded already. Drivers disagree about whether `+` is a space.
const ENCODED: &AsciiSet = &RESERVED.remove(b'%').remove(b'+');

/// Schemes of URIs with which drivers and frameworks connect to Postgres, without `+driver`.
const SCHEMES: [&str; 7] = [
    "postgresql",
    "postgres",
    "pgsql",
    "psql",
    "postgis",
    "timescale",
    "timescalegis",
];

/// Schemes of other databases. A `DATABASE_URL` for one of them is not about TeeSQL.
const OTHER_DATABASES: [&str; 20] = [
    "mysql",
    "mysql2",
    "mariadb",
    "sqlite",
    "sqlite3",
    "spatialite",
    "file",
    "libsql",
    "mssql",
    "sqlserver",
    "oracle",
    "mongodb",
    "redis",
    "rediss",
    "clickhouse",
    "cassandra",
    "neo4j",
    "bolt",
    "snowflake",
    "bigquery",
];

/// The port of a sidecar.
const DEFAULT_PORT: u16 = 5433;

/// A part of the URI that is percent-encoded with this is read in the same way by every parser.
pub(crate) fn encode(value: &str) -> String {
    utf8_percent_encode(value, RESERVED).to_string()
}

/// The text of `DATABASE_URL`. Whether it can be used matters only where it is used.
#[derive(Clone)]
pub(crate) enum DatabaseUrl {
    Postgres(ConnectionUri),
    /// A URI for MySQL, SQLite …
    OtherDatabase,
    Unusable(UriError),
}

/// A connection URI for Postgres.
#[derive(Clone)]
pub(crate) struct ConnectionUri {
    /// Lower case, with `+driver` if it was given.
    scheme: String,
    user: String,
    password: String,
    database: String,
    /// Hosts and ports, each separated by commas.
    hosts: String,
    ports: String,
    /// All other parameters: the name, decoded, and the value as it was encoded.
    parameters: Vec<(String, String)>,
    /// A parameter about the server that occurs twice.
    repeated: Option<&'static str>,
}

/// Why a connection URI cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UriError {
    #[error("DATABASE_URL is not a URI: expected postgresql://user@host:5433/database")]
    NotUri,
    #[error("DATABASE_URL: a % is not followed by two hex digits (write a % itself as %25)")]
    PercentEncoding,
    #[error("DATABASE_URL: a part of it is not UTF-8, or contains a zero byte")]
    Text,
    #[error("DATABASE_URL: an IPv6 address must be in [ ], and followed by a port or by /")]
    Ipv6,
    #[error(
        "DATABASE_URL: a parameter must have one =, as in ?connect_timeout=5&application_name=app"
    )]
    Separator,
    #[error("DATABASE_URL names no host")]
    NoHost,
    #[error("DATABASE_URL names a Unix socket, where no sidecar listens: use --target")]
    UnixSocket,
    #[error(
        "DATABASE_URL: a host or port is not valid; special characters of a user name or password must be \
         percent-encoded (/ as %2F, @ as %40)"
    )]
    Host,
    #[error(
        "DATABASE_URL: the numbers of hosts and ports differ, or there are more than {MAX_TARGETS}"
    )]
    HostCount,
    #[error("DATABASE_URL: {0} is given more than once")]
    Repeated(&'static str),
    #[error(
        "DATABASE_URL: several hosts and target_session_attrs=standby or prefer-standby: the forwarder does not see which \
         server is a standby: name only standbys, and leave target_session_attrs out"
    )]
    SessionAttributes,
    #[error("DATABASE_URL: load_balance_hosts must be disable or random")]
    LoadBalanceHosts,
    #[error(
        "DATABASE_URL: {0}= is not supported, because it names a server that the forwarder does not see: remove it"
    )]
    Refused(&'static str),
    #[error(
        "DATABASE_URL: {0} is not a known parameter, so that it might name another server: set it in the program instead"
    )]
    Unknown(String),
    #[error("DATABASE_URL: require_auth= excludes SCRAM-SHA-256, by which drivers authenticate")]
    RequireAuth,
    #[error(
        "DATABASE_URL: the name of the database has a = or begins with postgresql://, so that PostgreSQL's tools would \
         take it for a connection string"
    )]
    Database,
}

/// Values of `target_session_attrs` that say which of several hosts is wanted, in a way that the driver behind the
/// forwarder cannot see to: it has one host. With the other values it checks the session that it gets, and a member
/// of a cluster carries those that write to the leader.
const STANDBY_ATTRIBUTES: [&str; 2] = ["standby", "prefer-standby"];

impl DatabaseUrl {
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.trim();
        match parser::parse(text) {
            Ok(uri) => Self::Postgres(uri),
            Err(UriError::NotUri) if is_other_database(text) => Self::OtherDatabase,
            Err(error) => Self::Unusable(error),
        }
    }
}

/// Whether `text` is a URI for a database other than Postgres.
pub(crate) fn is_other_database(text: &str) -> bool {
    let scheme = text.trim().split(':').next().unwrap_or_default();
    let kind = scheme.split('+').next().unwrap_or_default();
    text.contains(':') && OTHER_DATABASES.contains(&kind.to_ascii_lowercase().as_str())
}

/// Whether PostgreSQL's tools would take the name of a database for a connection string, which may name another server.
/// [vacuumdb, reindexdb, clusterdb: `PGDATABASE`, or else `PGUSER`]
pub(crate) fn is_connection_string(database: &str) -> bool {
    database.contains('=') || parser::scheme_of(database).is_some()
}

/// Whether `require_auth` admits SCRAM-SHA-256. [libpq: methods separated by commas, each after a `!` or none]
pub(crate) fn admits_scram(require_auth: &str) -> bool {
    let mut methods = require_auth.split(',').map(str::trim);
    if require_auth.contains('!') {
        methods.all(|method| method != "!scram-sha-256")
    } else {
        require_auth.is_empty() || methods.any(|method| method == "scram-sha-256")
    }
}

impl ConnectionUri {
    /// The hosts and ports to connect to, in this order. The default port is the sidecar's, 5433.
    ///
    /// # Errors
    /// There is none, or one that cannot be a sidecar.
    pub(crate) fn servers(&self) -> Result<Vec<(String, u16)>, UriError> {
        self.check_refused()?;
        if let Some((name, _)) = self.parameter("hostaddr") {
            return Err(UriError::Refused(name));
        }
        if let Some(name) = self.repeated {
            return Err(UriError::Repeated(name));
        }
        let hosts: Vec<&str> = self.hosts.split(',').collect();
        let ports: Vec<&str> = self.ports.split(',').collect();
        if hosts.len() > MAX_TARGETS || (ports.len() != 1 && ports.len() != hosts.len()) {
            return Err(UriError::HostCount);
        }
        let wanted = self.decoded("target_session_attrs")?;
        if hosts.len() > 1 && STANDBY_ATTRIBUTES.contains(&wanted.as_str()) {
            return Err(UriError::SessionAttributes);
        }
        let port_of = |index: usize| ports.get(index).or(ports.first()).copied();
        let servers = hosts.iter().enumerate();
        servers
            .map(|(index, host)| server(host, port_of(index).unwrap_or_default()))
            .collect()
    }

    /// The order in which the hosts are tried, if the URI says it.
    ///
    /// # Errors
    /// libpq does not know the value.
    pub(crate) fn host_order(&self) -> Result<Option<HostOrder>, UriError> {
        match self.decoded("load_balance_hosts")?.as_str() {
            "" => Ok(None),
            order => order
                .parse()
                .map(Some)
                .map_err(|_| UriError::LoadBalanceHosts),
        }
    }

    /// The URI with the forwarder as the server: an address, or the folder of a Unix socket.
    ///
    /// # Errors
    /// A part of the URI could lead around the forwarder, or cannot be fulfilled by it.
    pub(crate) fn through_forwarder(&self, host: &str, port: u16) -> Result<String, UriError> {
        self.check_refused()?;
        let database = match self.database.as_str() {
            "" => self.user.as_str(),
            database => database,
        };
        if is_connection_string(database) {
            return Err(UriError::Database);
        }
        let mut query = Vec::new();
        for (name, value) in &self.parameters {
            match parameters::fate(name) {
                Fate::Kept => {}
                Fate::Dropped | Fate::Refused(_) => continue,
                Fate::Unknown => return Err(UriError::Unknown(self.shown(name))),
            }
            if name == "require_auth" && !admits_scram(&parser::decode(value)?) {
                return Err(UriError::RequireAuth);
            }
            query.push(format!(
                "{}={}",
                encode(name),
                utf8_percent_encode(value, ENCODED)
            ));
        }
        let is_path = host.starts_with('/');
        if is_path {
            query.push(format!("host={}", encode(host)));
        }
        query.extend(self.disabled_tls().map(str::to_owned));
        let login = match (self.user.as_str(), self.password.as_str()) {
            ("", "") => String::new(),
            (user, "") => format!("{}@", encode(user)),
            (user, password) => format!("{}:{}@", encode(user), encode(password)),
        };
        let host = match host {
            _ if is_path => "localhost".to_owned(),
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let database = encode(&self.database);
        let query = query.join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        let scheme = &self.scheme;
        Ok(format!(
            "{scheme}://{login}{host}:{port}/{database}{mark}{query}"
        ))
    }

    /// The name of a parameter for an error. A `@` after the authority suggests that the password has a `/` and a `?`, so that
    /// the name is a part of it.
    fn shown(&self, name: &str) -> String {
        let mut all = self.parameters.iter();
        if all.any(|(name, value)| name.contains('@') || value.contains('@')) {
            return parameters::NO_NAME.to_owned();
        }
        parameters::shown(name)
    }

    /// What turns TLS off. SQLAlchemy passes parameters to the driver that the scheme names, which may not have `sslmode`.
    fn disabled_tls(&self) -> Option<&'static str> {
        match self.scheme.split_once('+').map(|(_, driver)| driver) {
            Some("asyncpg") => Some("ssl=disable"),
            Some("pg8000") => None,
            _ => Some("sslmode=disable"),
        }
    }

    /// Role, password and database as libpq's variables. An empty one is left out.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("PGUSER", self.user.as_str()),
            ("PGPASSWORD", self.password.as_str()),
            ("PGDATABASE", self.database.as_str()),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty())
    }

    /// Refuses parameters that would bring in settings from elsewhere.
    fn check_refused(&self) -> Result<(), UriError> {
        let refused = |(name, _): &(String, String)| match parameters::fate(name) {
            Fate::Refused(name) => Some(name),
            Fate::Kept | Fate::Dropped | Fate::Unknown => None,
        };
        match self.parameters.iter().find_map(refused) {
            Some(name) => Err(UriError::Refused(name)),
            None => Ok(()),
        }
    }

    /// The value of a parameter, decoded. Empty if there is none.
    fn decoded(&self, wanted: &'static str) -> Result<String, UriError> {
        match self.parameter(wanted) {
            Some((_, value)) => parser::decode(value),
            None => Ok(String::new()),
        }
    }

    fn parameter(&self, wanted: &'static str) -> Option<(&'static str, &str)> {
        let mut all = self.parameters.iter();
        let (_, value) = all.find(|(name, value)| name == wanted && !value.is_empty())?;
        Some((wanted, value))
    }
}

/// A host as libpq has it, or `host:port` as SQLAlchemy has it.
fn server(host: &str, port: &str) -> Result<(String, u16), UriError> {
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    if host.starts_with(['/', '@']) {
        return Err(UriError::UnixSocket);
    }
    let is_ipv6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    let text = match (host.contains(':') && !is_ipv6, port) {
        (true, "") => host.to_owned(),
        (true, _) => return Err(UriError::Host),
        (false, "") if is_ipv6 => format!("[{host}]:{DEFAULT_PORT}"),
        (false, "") => format!("{host}:{DEFAULT_PORT}"),
        (false, port) if is_ipv6 => format!("[{host}]:{port}"),
        (false, port) => format!("{host}:{port}"),
    };
    values::target(&text).map_err(|_| UriError::Host)
}

#[cfg(test)]
mod tests;
