//! A running `teesql-forward`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Command;

use crate::harness::client::TcpClient;
use crate::harness::daemon::Daemon;
use crate::harness::message::{self, PROTOCOL_3_0};
use crate::harness::process::{TIMEOUT, run_for_both_outputs};
use crate::harness::settings::Settings;
use crate::harness::{Credentials, READER, libpq};

/// A running forwarder. It is killed when dropped.
pub(crate) struct Forwarder {
    daemon: Daemon,
    /// The line on its standard output.
    pub(crate) dsn: String,
}

impl Deref for Forwarder {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Forwarder {
    /// Starts it and waits for its DSN.
    pub(crate) fn start(settings: &Settings) -> Self {
        let command = settings.forwarder_command(&[]);
        let (daemon, dsn) = Daemon::spawn_with_first_line("teesql-forward", command);
        Self { daemon, dsn }
    }

    /// Host and port as libpq has them: the host is the folder of a Unix socket if it starts
    /// with `/`.
    pub(crate) fn host_and_port(&self) -> (String, u16) {
        let address = self.dsn.strip_prefix("postgresql://").expect("a DSN");
        let (authority, query) = address.split_once("/?").expect("a query");
        if let Some((host, port)) = authority.rsplit_once(':') {
            return (host.to_owned(), port.parse().expect("a port"));
        }
        let pairs: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        let host = pairs["host"].replace("%2F", "/");
        (host, pairs["port"].parse().expect("a port"))
    }

    /// Its TCP address.
    pub(crate) fn address(&self) -> SocketAddr {
        let (host, port) = self.host_and_port();
        format!("{host}:{port}").parse().expect("TCP")
    }

    /// A plaintext client that has sent a StartupMessage for `user`.
    pub(crate) fn open(&self, user: &str) -> TcpClient {
        let mut client = TcpClient::connect(self.address());
        client.send(&message::startup(PROTOCOL_3_0, &[("user", user)]));
        client
    }

    /// `program` with a connection to this forwarder in libpq's environment.
    pub(crate) fn client(&self, program: &str, credentials: Credentials<'_>) -> Command {
        let (host, port) = self.host_and_port();
        let mut command = libpq::command(program, &host, port, credentials, "via_scram");
        command.env("PGSSLMODE", "disable");
        command
    }

    /// Runs `select 1` in psql; both of its outputs.
    pub(crate) fn psql_select_1(&self, credentials: Credentials<'_>) -> String {
        let mut psql = self.client("psql", credentials);
        psql.args(["-X", "-A", "-t", "-c", "select 1"]);
        run_for_both_outputs(psql, TIMEOUT * 2)
    }

    /// Runs `select 1` as `teesql_read` and checks that it succeeds.
    pub(crate) fn assert_reader_connects(&self) {
        assert_eq!(self.psql_select_1(READER), "1\n");
    }
}
