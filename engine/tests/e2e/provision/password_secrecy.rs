//! Tests that passwords and their verifiers appear in no log and in no view.

use std::process::{Command, Stdio};

use super::{DATABASE, repair, unprovisioned_cluster, verifiers};
use crate::harness::cluster::Cluster;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, spawn, wait};
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD};

/// Blocks provisioning before its first change until it appears in pg_stat_activity, and records
/// the queries in that view until provisioning is done.
const WATCH: &str = "\
CREATE TABLE seen (query text);
CREATE TABLE done ();
BEGIN;
LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE;
DO $$ BEGIN
  FOR i IN 1..6000 LOOP
    EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass);
    PERFORM pg_sleep(0.005);
  END LOOP;
END $$;
INSERT INTO seen SELECT application_name || ': ' || query FROM pg_stat_activity;
COMMIT;
DO $$ BEGIN
  FOR i IN 1..30000 LOOP
    PERFORM pg_stat_clear_snapshot();
    INSERT INTO seen SELECT application_name || ': ' || query FROM pg_stat_activity;
    EXIT WHEN EXISTS (SELECT FROM done);
    PERFORM pg_sleep(0.001);
  END LOOP;
END $$;";

pub(super) fn password_is_never_visible(fixture: &Fixture) {
    let log_everything = [
        "log_statement=all",
        "log_min_duration_statement=0",
        "log_duration=on",
        "log_min_error_statement=debug5",
        "log_min_messages=debug1",
        "shared_preload_libraries=pg_stat_statements",
        "pg_stat_statements.track=all",
    ];
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &log_everything);
    cluster.sql(DATABASE, "CREATE EXTENSION pg_stat_statements");
    let mut watcher = spawn(watch_command(fixture, &cluster)).expect("psql starts");
    cluster.await_result_in(
        DATABASE,
        "SELECT count(*) FROM pg_locks WHERE granted \
         AND relation = 'pg_authid'::regclass AND mode = 'ShareRowExclusiveLock'",
        "1",
    );
    repair(&cluster);
    cluster.sql(DATABASE, "INSERT INTO done DEFAULT VALUES");
    let watched = wait(&mut watcher, TIMEOUT).expect("the watcher exits");
    assert!(watched.success(), "{watched}");
    cluster.admin_sql("ALTER ROLE teesql_read PASSWORD 'control-93'");
    repair(&cluster);
    cluster.admin_sql("SELECT 'marker-4815'");

    let log = cluster.log();
    let seen = cluster.sql(DATABASE, "SELECT DISTINCT query FROM seen");
    let statements = cluster.sql(DATABASE, "SELECT query FROM pg_stat_statements");
    let verifiers = verifiers(&cluster);
    let keys = verifiers
        .lines()
        .map(|line| line.rsplit('$').next().expect("a verifier"));
    let secret: Vec<&str> = keys.chain([READ_PASSWORD, READWRITE_PASSWORD]).collect();
    assert_eq!(secret.len(), 4);
    for text in [&log, &seen, &statements] {
        for secret in &secret {
            assert!(!text.contains(secret), "{secret} is visible");
        }
    }
    // Each of the three would show a password that is not protected.
    assert!(log.contains("control-93") && log.contains("marker-4815"));
    assert!(seen.contains("teesql-sidecar: "), "{seen}");
    assert!(
        statements.contains("CREATE EXTENSION pg_stat_statements"),
        "{statements}"
    );
}

/// psql runs the statements of a file one by one, not in one transaction.
fn watch_command(fixture: &Fixture, cluster: &Cluster) -> Command {
    let file = fixture.harness.unique_path("watch.sql");
    std::fs::write(&file, WATCH).expect("a script");
    let mut psql = cluster.psql(DATABASE);
    psql.arg("-f").arg(file).stdout(Stdio::null());
    psql
}
