//! A throw-away Postgres with pgbench's tables and the two roles.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::kind::Upstream;
use super::process::{Process, command, free_address, version};
use super::workspace::House;
use crate::client::Client;
use crate::endpoint::{Login, Member, Opening, Target};
use crate::error::{Error, Result, doing};
use crate::message::query;
use crate::runtime::{Runtime, within};

/// Scale of pgbench's tables.
pub const SCALE: u32 = 5;
/// Sessions that it takes: what is more goes to the fake one.
const MAX_CONNECTIONS: usize = 300;

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

/// The running server. Its Drop ends it.
pub struct Postgres {
    /// For proxies and direct clients.
    pub upstream: Upstream,
    /// Its version.
    pub version: String,
    _process: Process,
}

impl Postgres {
    /// Makes a cluster in the house's folder, starts it, fills it, and lets the
    /// sidecar's `provision` set the roles up.
    ///
    /// # Errors
    /// Postgres' or the sidecar's own words.
    pub fn start(house: &House) -> Result<Self> {
        let bin = programs()?;
        let data = house.path("data");
        make(house, &bin, &data)?;
        let address = free_address()?;
        let mut server = command(&bin.join("postgres"), &house.cores.others, true);
        server.arg("-D").arg(&data).arg("-k").arg(house.folder());
        server.args(["-p", &address.port().to_string()]);
        server.args(["-c", &format!("max_connections={MAX_CONNECTIONS}")]);
        server.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let log = house.path("postgres.log");
        let mut process = Process::start("postgres", server, log, Signal::SIGINT)?;
        process.until(|_| sql(address, &["SELECT 1"]).ok())?;
        fill(house, &bin, address)?;
        Ok(Self {
            upstream: Upstream {
                address,
                socket: Some(house.path(&format!(".s.PGSQL.{}", address.port()))),
            },
            version: version(&bin.join("postgres"), "--version"),
            _process: process,
        })
    }
}

fn make(house: &House, bin: &Path, data: &Path) -> Result<()> {
    let mut initdb = command(&bin.join("initdb"), &house.cores.others, true);
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
    succeed(
        "initdb",
        initdb.arg("-D").arg(data).current_dir(house.folder()),
    )?;
    fs::write(data.join("pg_hba.conf"), HBA).map_err(doing("pg_hba.conf"))
}

fn fill(house: &House, bin: &Path, address: SocketAddr) -> Result<()> {
    let mut pgbench = command(&bin.join("pgbench"), &house.cores.others, false);
    pgbench.args(["-i", "-q", "-h", "127.0.0.1", "-U", "postgres", "-s"]);
    pgbench.args([
        &SCALE.to_string(),
        "-p",
        &address.port().to_string(),
        "postgres",
    ]);
    succeed("pgbench", &mut pgbench)?;
    let mut provision = command(
        &house.program("teesql-sidecar")?,
        &house.cores.others,
        false,
    );
    super::sidecar::forget_environment(&mut provision);
    provision
        .arg("provision")
        .env("TEESQL_POSTGRES", address.to_string())
        .env("TEESQL_PG_PASSWORD_READ", &house.password)
        .env("TEESQL_PG_PASSWORD_READWRITE", &house.password);
    succeed("teesql-sidecar provision", &mut provision)?;
    let rest = ["CREATE DATABASE scram", "VACUUM ANALYZE", "CHECKPOINT"];
    sql(address, &rest)
}

fn succeed(name: &str, command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .map_err(doing(format!("cannot run {name}")))?;
    match output.status.success() {
        true => Ok(output),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::Peer(format!("{name}: {}", said.trim())))
        }
    }
}

/// As the superuser, one after the other.
fn sql(address: SocketAddr, statements: &[&str]) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let target = Target::loopback(address, Opening::Plain, None)?;
    let member = Member::new(&Login::new("postgres", "postgres", ""))?;
    Runtime::new()?.block_on(within(PATIENCE, "a statement", async {
        let mut client = Client::log_in(&target, &member).await?;
        for statement in statements {
            client.ask(&query(statement), 1).await?;
        }
        client.close().await
    }))
}

/// The newest of Debian's.
fn programs() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = folders
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .max();
    newest.ok_or_else(|| Error::Peer("no initdb: install Debian's package postgresql".to_owned()))
}
