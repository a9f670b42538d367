//! Commands that connect with libpq: psql, pgbench, pg_dump, Python.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::harness::Credentials;
use crate::harness::cluster::Cluster;
use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, signal, spawn, wait};

/// Arguments with which psql stops at the first error and prints bare values: columns separated
/// by `|`, rows by newlines.
pub(crate) const PSQL_BARE: [&str; 6] = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"];

/// `program` with a connection in libpq's environment. The caller chooses the TLS mode.
pub(crate) fn command(
    program: &str,
    host: &str,
    port: u16,
    (role, secret): Credentials<'_>,
    database: &str,
) -> Command {
    let mut command = pdeathsig_command(program, "KILL", None);
    command
        .env("PGHOST", host)
        .env("PGPORT", port.to_string())
        .env("PGUSER", role)
        .env("PGPASSWORD", secret)
        .env("PGDATABASE", database)
        .env("PGGSSENCMODE", "disable");
    command
}

/// The same to localhost at `port`, with a server certificate that must be valid under `ca`.
pub(crate) fn verify_full_command(
    program: &str,
    port: u16,
    credentials: Credentials<'_>,
    database: &str,
    ca: &Path,
) -> Command {
    let mut command = command(program, "localhost", port, credentials, database);
    command
        .env("PGHOSTADDR", "127.0.0.1")
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", ca);
    command
}

/// Runs a query that sleeps in `psql`, presses Ctrl-C, and checks that the query was cancelled.
/// `marker` is a column name that no other query has.
pub(crate) fn assert_ctrl_c_cancels(cluster: &Cluster, mut psql: Command, marker: &str) {
    psql.args(["-X", "-c", &format!("select pg_sleep(3600) as {marker}")]);
    psql.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut psql = spawn(psql).expect("psql starts");
    let wait_event = format!(
        "select wait_event from pg_stat_activity where query like '%as {marker}' and usename = 'teesql_read'"
    );
    cluster.await_result(&wait_event, "PgSleep");
    signal(&psql, Signal::SIGINT);
    let status = wait(&mut psql, TIMEOUT).expect("psql exits");
    let stderr = lossy(&psql.wait_with_output().expect("psql has exited").stderr);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("ERROR:  canceling statement due to user request"),
        "{stderr}"
    );
}
