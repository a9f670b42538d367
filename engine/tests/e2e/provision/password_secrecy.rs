//! Passwords and their verifiers are in no log and in no view.

use std::process::{Command, Stdio};

use super::{OWN, fresh, repair, verifiers};
use crate::harness::cluster::Cluster;
use crate::harness::process::{TIMEOUT, poll_until, spawn, wait};
use crate::harness::suite::Fixture;
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD};

/// Holds provisioning up before its first change until it has been seen in the list of
/// sessions, and notes what is in that list until the roles are there.
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

pub(super) fn no_password_is_seen(fixture: &Fixture) {
    let everything = [
        "log_statement=all",
        "log_min_duration_statement=0",
        "log_duration=on",
        "log_min_error_statement=debug5",
        "log_min_messages=debug1",
        "shared_preload_libraries=pg_stat_statements",
        "pg_stat_statements.track=all",
    ];
    let cluster = fresh(fixture, &fixture.harness.installed, &everything);
    cluster.sql(OWN, "CREATE EXTENSION pg_stat_statements");
    let mut watcher = spawn(watch_by_file(fixture, &cluster)).expect("psql starts");
    cluster_awaits(
        &cluster,
        "SELECT count(*) FROM pg_locks WHERE granted \
         AND relation = 'pg_authid'::regclass AND mode = 'ShareRowExclusiveLock'",
        "1",
    );
    repair(&cluster);
    cluster.sql(OWN, "INSERT INTO done DEFAULT VALUES");
    let watched = wait(&mut watcher, TIMEOUT).expect("the watcher ends");
    assert!(watched.success(), "{watched}");
    cluster.admin_sql("ALTER ROLE teesql_read PASSWORD 'control-93'");
    repair(&cluster);
    cluster.admin_sql("SELECT 'marker-4815'");

    let log = cluster.log();
    let seen = cluster.sql(OWN, "SELECT DISTINCT query FROM seen");
    let statements = cluster.sql(OWN, "SELECT query FROM pg_stat_statements");
    let verifiers = verifiers(&cluster);
    let keys = verifiers
        .lines()
        .map(|line| line.rsplit('$').next().expect("a verifier"));
    let secret: Vec<&str> = keys.chain([READ_PASSWORD, READWRITE_PASSWORD]).collect();
    assert_eq!(secret.len(), 4);
    for text in [&log, &seen, &statements] {
        for secret in &secret {
            assert!(!text.contains(secret), "{secret} is seen");
        }
    }
    // All three would have shown one.
    assert!(log.contains("control-93") && log.contains("marker-4815"));
    assert!(seen.contains("teesql-sidecar: "), "{seen}");
    assert!(
        statements.contains("CREATE EXTENSION pg_stat_statements"),
        "{statements}"
    );
}

/// The statements one by one, not as one transaction.
fn watch_by_file(fixture: &Fixture, cluster: &Cluster) -> Command {
    let file = fixture.harness.unique_path("watch.sql");
    std::fs::write(&file, WATCH).expect("a script");
    let mut psql = cluster.psql(OWN);
    psql.arg("-f").arg(file).stdout(Stdio::null());
    psql
}

fn cluster_awaits(cluster: &Cluster, sql: &str, wanted: &str) {
    let mut last = String::new();
    poll_until(TIMEOUT, || {
        last = cluster.sql(OWN, sql);
        (last == wanted).then_some(())
    })
    .unwrap_or_else(|| panic!("{sql}: still {last:?}"));
}
