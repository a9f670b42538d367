//! Instructions for connecting to the cluster: text for people, environment variables for programs.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use tokio::process::Command;
use zeroize::Zeroizing;

use super::cluster::{CA, CLIENT_CERT, CLIENT_KEY, CONTROL_SOCKET, Cluster, TDX_ROOT, write};
use super::error::DevError;
use super::postgres::Postgres;
use crate::app::sidecar::Addresses;

/// libpq's variables that would select another server or password.
const NOT_INHERITED: [&str; 6] = [
    "PGHOSTADDR",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGSSLNEGOTIATION",
    "PGSSLCERTMODE",
    "PGPASSFILE",
];

/// The addresses of the cluster, and the variables to connect to it.
pub(super) struct Instructions {
    variables: Vec<(&'static str, Zeroizing<String>)>,
    file: PathBuf,
    server: SocketAddr,
    admin: Option<SocketAddr>,
    simulator_port: u16,
}

impl Instructions {
    pub(super) fn new(
        cluster: &Cluster,
        postgres: &Postgres,
        production: &Addresses,
        simulator: &Addresses,
    ) -> Self {
        let server = reachable(production.listen);
        let simulator_port = simulator.listen.port();
        let admin = production.admin.map(reachable);
        let mut variables = variables(cluster, server, simulator_port);
        let postgres = Zeroizing::new(postgres.address());
        variables.push(("TEESQL_DEV_POSTGRES", postgres));
        if let Some(admin) = admin {
            variables.push((
                "TEESQL_DEV_ADMIN",
                Zeroizing::new(format!("http://{admin}")),
            ));
        }
        Self {
            variables,
            file: cluster.file("env"),
            server,
            admin,
            simulator_port,
        }
    }

    /// Writes the variables to a file that a shell can source.
    pub(super) fn write(&self) -> Result<(), DevError> {
        let mut text = Zeroizing::new(format!("unset {}\n", NOT_INHERITED.join(" ")));
        for (name, value) in &self.variables {
            let _ = writeln!(text, "export {name}={}", shell_quoted(value));
        }
        write(&self.file, &text, 0o600)
    }

    /// A command with the variables in its environment.
    pub(super) fn command(&self, program: &OsStr, arguments: &[OsString]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        for (name, value) in &self.variables {
            command.env(name, value.as_str());
        }
        command
    }

    /// The text for people.
    pub(super) fn text(&self) -> String {
        let http = self.admin.map_or_else(String::new, |admin| {
            format!("\nHTTP, of which http://{admin}/ is the status page:\n\n  curl http://{admin}/ready\n  curl http://{admin}/attestation\n")
        });
        format!(
            "\nThe cluster runs under its own mock TDX root. Ctrl-C stops it and removes all its files.\n\n\
             Production mode, as an attested client. In another terminal:\n\n  \
             . {}\n  \
             psql                                                             # as teesql_readwrite\n  \
             PGPASSWORD=$TEESQL_DEV_READ_SECRET psql -U teesql_read\n  \
             PGPASSWORD=$TEESQL_DEV_SUPERUSER_PASSWORD psql -U postgres\n  \
             teesql-sidecar verify {}\n  \
             teesql-sidecar sessions                                          # who is connected\n\n\
             The same in one line:\n\n  {}\n\n\
             Simulator mode, as the superuser without a password, from this machine only:\n\n  \
             psql \"host=localhost port={} user=postgres sslmode=require dbname=postgres\"\n{http}",
            shell_quoted(&self.file.display().to_string()),
            self.server,
            self.psql_line(),
            self.simulator_port,
        )
    }

    fn psql_line(&self) -> String {
        let value = |name: &str| {
            let found = self.variables.iter().find(|(key, _)| *key == name);
            found.map_or("", |(_, value)| value.as_str())
        };
        format!(
            "PGPASSWORD={} psql \"host={} port={} dbname={} user={} sslmode={} sslrootcert={} sslcert={} sslkey={}\"",
            value("PGPASSWORD"),
            value("PGHOST"),
            value("PGPORT"),
            value("PGDATABASE"),
            value("PGUSER"),
            value("PGSSLMODE"),
            value("PGSSLROOTCERT"),
            value("PGSSLCERT"),
            value("PGSSLKEY"),
        )
    }
}

/// libpq's variables for an attested client as `teesql_readwrite`, `TEESQL_DEV_…` for everything else,
/// and the settings with which `teesql-sidecar verify` and forwarders accept the server.
fn variables(
    cluster: &Cluster,
    server: SocketAddr,
    simulator_port: u16,
) -> Vec<(&'static str, Zeroizing<String>)> {
    let text = |text: &dyn ToString| Zeroizing::new(text.to_string());
    let file = |name| Zeroizing::new(cluster.file(name).display().to_string());
    vec![
        ("PGHOST", text(&server.ip())),
        ("PGPORT", text(&server.port())),
        ("PGDATABASE", text(&"postgres")),
        ("PGUSER", text(&"teesql_readwrite")),
        ("PGPASSWORD", cluster.readwrite_secret.clone()),
        ("PGSSLMODE", text(&"verify-full")),
        ("PGSSLROOTCERT", file(CA)),
        ("PGSSLCERT", file(CLIENT_CERT)),
        ("PGSSLKEY", file(CLIENT_KEY)),
        ("TEESQL_DEV_READ_SECRET", cluster.read_secret.clone()),
        (
            "TEESQL_DEV_READWRITE_SECRET",
            cluster.readwrite_secret.clone(),
        ),
        (
            "TEESQL_DEV_SUPERUSER_PASSWORD",
            cluster.superuser_password.clone(),
        ),
        ("TEESQL_DEV_SIMULATOR_PORT", text(&simulator_port)),
        (
            "TEESQL_DEV_GUEST_AGENT",
            text(&cluster.agent_socket().display()),
        ),
        // For forwarders, of a process or inside a program.
        (
            "DATABASE_URL",
            Zeroizing::new(format!(
                "postgresql://teesql_readwrite:{}@{server}/postgres",
                *cluster.readwrite_secret
            )),
        ),
        (
            "TEESQL_GUEST_AGENT",
            text(&cluster.agent_socket().display()),
        ),
        ("TEESQL_CONTROL_SOCKET", file(CONTROL_SOCKET)),
        ("TEESQL_DANGEROUS_TDX_ROOT_CA", file(TDX_ROOT)),
        ("TEESQL_PCCS", text(&cluster.pccs.url())),
        ("TEESQL_ALLOWED_APP_ID", text(&cluster.app_id())),
        ("TEESQL_KMS_ROOT", file(CA)),
    ]
}

/// The address to connect to: loopback for a server that listens on all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Quotes a text as one word for a shell.
pub(super) fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_shell_word() {
        assert_eq!(shell_quoted("a b"), "'a b'");
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn an_unspecified_address_is_reachable_on_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:5433", "127.0.0.1:5433"),
            ("[::]:5433", "[::1]:5433"),
            ("127.0.0.2:1", "127.0.0.2:1"),
        ] {
            assert_eq!(
                reachable(listen.parse().unwrap()),
                expected.parse().unwrap()
            );
        }
    }
}
