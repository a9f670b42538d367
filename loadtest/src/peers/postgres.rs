//! A temporary Postgres server with pgbench's tables and the sidecar's two roles.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::kind::Upstream;
use super::process::{Process, command, free_address, version};
use super::workspace::Workspace;
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, Opening, PreparedLogin};
use crate::error::{Error, Result, io_context};
use crate::message::query;
use crate::process_usage::Pid;
use crate::runtime::{Runtime, with_timeout};

/// Scale factor of pgbench's tables.
pub const SCALE: u32 = 5;
/// Maximum sessions: 512 of a load, as many that PgBouncer keeps from an earlier one, and as many
/// that are still ending. Loads with more connections use the fake Postgres.
const MAX_CONNECTIONS: usize = 1_600;

const HBA: &str = "\
local all   all trust
host  scram all 127.0.0.1/32 scram-sha-256
host  all   all 127.0.0.1/32 trust
";

const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "autovacuum=off",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "password_encryption=scram-sha-256",
    "log_min_messages=warning",
];

/// The running server. Dropping it stops the server.
pub struct Postgres {
    /// Where proxies and direct clients connect.
    pub upstream: Upstream,
    /// Version of Postgres.
    pub version: String,
    process: Process,
}

impl Postgres {
    /// Creates a cluster in the workspace, starts it, loads pgbench's tables, and runs the
    /// sidecar's `provision` to create the roles.
    ///
    /// # Errors
    /// A program failed. The error has its output.
    pub fn start(workspace: &Workspace) -> Result<Self> {
        let bin = bin_directory()?;
        let data = workspace.path("data");
        init_cluster(workspace, &bin, &data)?;
        let address = free_address()?;
        let mut server = command(&bin.join("postgres"), &workspace.cores.others, true);
        server
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(workspace.folder());
        server.args(["-p", &address.port().to_string()]);
        server.args(["-c", &format!("max_connections={MAX_CONNECTIONS}")]);
        server.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let log = workspace.path("postgres.log");
        let mut process = Process::start("postgres", server, log, Signal::SIGINT)?;
        process.wait_for(|_| sql(address, &["SELECT 1"]).ok())?;
        load_data(workspace, &bin, address)?;
        Ok(Self {
            upstream: Upstream {
                address,
                socket: Some(workspace.path(&format!(".s.PGSQL.{}", address.port()))),
            },
            version: version(&bin.join("postgres"), "--version"),
            process,
        })
    }

    /// Process ID of the server's main process, of which all others are children.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }
}

fn init_cluster(workspace: &Workspace, bin: &Path, data: &Path) -> Result<()> {
    let mut initdb = command(&bin.join("initdb"), &workspace.cores.others, true);
    initdb.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    ]);
    run_to_success(
        "initdb",
        initdb.arg("-D").arg(data).current_dir(workspace.folder()),
    )?;
    fs::write(data.join("pg_hba.conf"), HBA).map_err(io_context("pg_hba.conf"))
}

fn load_data(workspace: &Workspace, bin: &Path, address: SocketAddr) -> Result<()> {
    let mut pgbench = command(&bin.join("pgbench"), &workspace.cores.others, false);
    pgbench.args(["-i", "-q", "-h", "127.0.0.1", "-U", "postgres", "-s"]);
    pgbench.args([
        &SCALE.to_string(),
        "-p",
        &address.port().to_string(),
        "postgres",
    ]);
    run_to_success("pgbench", &mut pgbench)?;
    let mut provision = command(
        &workspace.program("teesql-sidecar")?,
        &workspace.cores.others,
        false,
    );
    super::sidecar::clear_environment(&mut provision);
    provision
        .arg("provision")
        .env("TEESQL_POSTGRES", address.to_string())
        .env("TEESQL_POSTGRES_AUTH", "any")
        .env("TEESQL_PG_PASSWORD_READ", &workspace.password)
        .env("TEESQL_PG_PASSWORD_READWRITE", &workspace.password);
    run_to_success("teesql-sidecar provision", &mut provision)?;
    let rest = ["CREATE DATABASE scram", "VACUUM ANALYZE", "CHECKPOINT"];
    sql(address, &rest)
}

fn run_to_success(name: &str, command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .map_err(io_context(format!("cannot run {name}")))?;
    match output.status.success() {
        true => Ok(output),
        false => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(Error::Peer(format!("{name}: {}", stderr.trim())))
        }
    }
}

/// Runs the statements as superuser, in order.
fn sql(address: SocketAddr, statements: &[&str]) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let endpoint = Endpoint::loopback(address, Opening::Plain, None)?;
    let prepared = PreparedLogin::new(&Login::new("postgres", "postgres", ""))?;
    Runtime::new()?.block_on(with_timeout(TIMEOUT, "an SQL statement", async {
        let mut client = Client::log_in(&endpoint, &prepared).await?;
        for statement in statements {
            client.request(&query(statement), 1).await?;
        }
        client.close().await
    }))
}

/// The programs of the newest Postgres that Debian has installed.
fn bin_directory() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = folders
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .max();
    newest.ok_or_else(|| {
        Error::Peer("initdb not found: install Debian's package postgresql".to_owned())
    })
}
