//! How to use the cluster, for people and for programs: the words, and the
//! variables of the environment.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use tokio::process::Command;
use zeroize::Zeroizing;

use super::DevError;
use super::cluster::{CA, CLIENT_CERT, CLIENT_KEY, Cluster, TDX_ROOT, write};
use super::postgres::Postgres;
use crate::app::sidecar::Addresses;

/// What libpq would take for the server instead of ours.
const IN_THE_WAY: [&str; 4] = ["PGHOSTADDR", "PGSERVICE", "PGSSLNEGOTIATION", "PGPASSFILE"];

/// All that is known of it.
pub(super) struct Guide {
    variables: Vec<(&'static str, Zeroizing<String>)>,
    file: PathBuf,
    server: SocketAddr,
    admin: Option<SocketAddr>,
    simulator_port: u16,
}

impl Guide {
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
        let behind = Zeroizing::new(postgres.address());
        variables.push(("TEESQL_DEV_POSTGRES", behind));
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

    /// The variables as a file for a shell.
    pub(super) fn write(&self) -> Result<(), DevError> {
        let mut text = Zeroizing::new(format!("unset {}\n", IN_THE_WAY.join(" ")));
        for (name, value) in &self.variables {
            let _ = writeln!(text, "export {name}={}", quoted(value));
        }
        write(&self.file, &text, 0o600)
    }

    /// A command with the variables in its environment.
    pub(super) fn command(&self, program: &OsStr, arguments: &[OsString]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        for name in IN_THE_WAY {
            command.env_remove(name);
        }
        for (name, value) in &self.variables {
            command.env(name, value.as_str());
        }
        command
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let inside = self.admin.map_or_else(String::new, |admin| {
            format!("\nInside:\n\n  curl http://{admin}/ready\n  curl http://{admin}/attestation\n")
        });
        format!(
            "\nA cluster of its own, under a TDX root of its own; Ctrl-C ends it and removes everything.\n\n\
             Mode B, an attested client. In another terminal:\n\n  \
             . {}\n  \
             psql                                                             # as teesql_readwrite\n  \
             PGPASSWORD=$TEESQL_DEV_READ_SECRET psql -U teesql_read\n  \
             PGPASSWORD=$TEESQL_DEV_SUPERUSER_PASSWORD psql -U postgres\n  \
             teesql-sidecar verify {}\n\n\
             The same in a line:\n\n  {}\n\n\
             Mode D, simulator, this machine only, superuser:\n\n  \
             psql \"host=localhost port={} user=postgres sslmode=require dbname=postgres\"\n{inside}",
            quoted(&self.file.display().to_string()),
            self.server,
            self.line(),
            self.simulator_port,
        )
    }

    fn line(&self) -> String {
        let value = |name: &str| {
            let found = self.variables.iter().find(|(known, _)| *known == name);
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

/// libpq's for an attested client as `teesql_readwrite`; our own for the rest;
/// and the settings with which `teesql-sidecar verify` judges the server.
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
        ("TEESQL_DEV_GUEST_AGENT", text(&cluster.agent.endpoint())),
        ("TEESQL_DANGEROUS_TDX_ROOT_CA", file(TDX_ROOT)),
        ("TEESQL_PCCS", text(&cluster.pccs.url())),
    ]
}

/// Who listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn everywhere_is_reached_on_loopback() {
        for (listens, reached) in [
            ("0.0.0.0:5433", "127.0.0.1:5433"),
            ("[::]:5433", "[::1]:5433"),
            ("127.0.0.2:1", "127.0.0.2:1"),
        ] {
            assert_eq!(
                reachable(listens.parse().unwrap()),
                reached.parse().unwrap()
            );
        }
    }
}
