//! Tests of `teesql-sidecar provision`: the changes that it makes in Postgres, and its output.

mod drift;
mod password_secrecy;
mod privileges;
mod replication;
mod sql_script;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::fake_server::ClosedPort;
use crate::harness::fixture::Fixture;
use crate::harness::libpq::PSQL_BARE;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully, spawn, wait};
use crate::harness::suite::Suite;
use crate::harness::{Credentials, READ_PASSWORD, READWRITE_PASSWORD, SUPERUSER_PASSWORD, libpq};

pub(crate) fn add(suite: &mut Suite) {
    if !suite.adds_driver_independent() {
        return;
    }
    suite.add(
        "provision::privileges_of_the_roles",
        privileges::privileges_of_the_roles,
    );
    suite.add(
        "provision::check_on_a_fresh_cluster",
        drift::check_on_a_fresh_cluster,
    );
    suite.add(
        "provision::second_run_changes_nothing",
        second_run_changes_nothing,
    );
    suite.add(
        "provision::reports_and_repairs_drift",
        drift::reports_and_repairs_drift,
    );
    suite.add(
        "provision::restricted_routines_stay_restricted",
        privileges::restricted_routines,
    );
    suite.add(
        "provision::password_is_never_visible",
        password_secrecy::password_is_never_visible,
    );
    suite.add(
        "provision::sql_script_is_equivalent",
        sql_script::sql_script_is_equivalent,
    );
    suite.add("provision::concurrent_runs", concurrent_runs);
    suite.add("provision::keeps_open_sessions", keeps_open_sessions);
    suite.add("provision::reports_failures", reports_failures);
    suite.add("provision::change_reverted_by_trigger", reverted_by_trigger);
    suite.add("provision::refuses_standby", refuses_standby);
    suite.add(
        "provision::roles_of_a_cluster",
        replication::roles_of_a_cluster,
    );
    suite.add(
        "provision::provisions_when_it_leads",
        replication::provisions_when_it_leads,
    );
}

/// The database that is provisioned.
const DATABASE: &str = "teesql";

/// The exit code and the output of a command.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run_command(command: Command) -> Output {
    let output = run(command, TIMEOUT);
    Output {
        code: output.status.code(),
        out: lossy(&output.stdout),
        err: lossy(&output.stderr),
    }
}

fn provision(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.provision_command(DATABASE);
    command.args(arguments);
    run_command(command)
}

/// Runs `provision`, checks that it succeeds, and returns what it repaired.
fn repair(cluster: &Cluster) -> BTreeSet<String> {
    reported_lines(provision(cluster, &[]), 0, "repaired: ")
}

/// Runs `provision --check`, checks that it changes nothing, and returns the differences.
fn check(cluster: &Cluster) -> BTreeSet<String> {
    let before = state(cluster);
    let found = reported_lines(provision(cluster, &["--check"]), 1, "differs: ");
    assert_eq!(state(cluster), before);
    found
}

/// The lines of `output` without `prefix`, which each of them must have.
fn reported_lines(output: Output, code: i32, prefix: &str) -> BTreeSet<String> {
    assert_eq!(
        (output.code, output.err.as_str()),
        (Some(code), ""),
        "{output:?}"
    );
    let line = |line: &str| line.strip_prefix(prefix).map(str::to_owned);
    let lines = output
        .out
        .lines()
        .map(|text| line(text).unwrap_or_else(|| panic!("{text}")));
    lines.collect()
}

fn to_set<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.map(str::to_owned).into()
}

fn assert_no_differences(cluster: &Cluster) {
    let unchanged = Output {
        code: Some(0),
        out: "no differences\n".to_owned(),
        err: String::new(),
    };
    assert_eq!(provision(cluster, &["--check"]), unchanged);
}

/// A cluster without the roles, with an empty database.
fn unprovisioned_cluster(
    fixture: &Fixture,
    server: &crate::harness::cluster::Server,
    settings: &[&'static str],
) -> Cluster {
    let options = ClusterOptions {
        settings: settings.to_vec(),
        ..ClusterOptions::default()
    };
    let cluster = fixture.harness.private_cluster(server, &options);
    cluster.admin_sql(&format!("CREATE DATABASE {DATABASE}"));
    cluster
}

/// A psql that connects over TCP.
fn tcp_psql(cluster: &Cluster, credentials: Credentials<'_>) -> Command {
    let port = cluster.address().port();
    let mut psql = libpq::command("psql", "127.0.0.1", port, credentials, DATABASE);
    psql.env("PGCLIENTENCODING", "UTF8");
    psql
}

/// Runs `sql` in psql as `role`, which logs in over TCP with its password.
fn as_role(cluster: &Cluster, role: &str, sql: &str) -> Result<String, String> {
    let password = match role {
        "teesql_read" => READ_PASSWORD,
        _ => READWRITE_PASSWORD,
    };
    let mut psql = tcp_psql(cluster, (role, password));
    psql.args(PSQL_BARE).args(["-w", "-c", sql]);
    let output = run_command(psql);
    match output.code {
        Some(0) => Ok(output.out.trim_end().to_owned()),
        _ => Err(output.err),
    }
}

fn assert_allowed(cluster: &Cluster, role: &str, sql: &str, result: &str) {
    assert_eq!(
        as_role(cluster, role, sql).as_deref(),
        Ok(result),
        "{role}: {sql}"
    );
}

fn assert_denied(cluster: &Cluster, role: &str, sql: &str) {
    let error = as_role(cluster, role, sql).expect_err(sql);
    assert!(
        error.contains("permission denied"),
        "{role}: {sql}: {error}"
    );
}

/// Everything that provisioning may change, as text, without the password verifiers, whose salts
/// differ.
fn state(cluster: &Cluster) -> String {
    let sql = "\
SELECT to_jsonb(r) - 'oid' - 'rolpassword' FROM pg_roles r WHERE rolname LIKE 'teesql%' ORDER BY rolname;
SELECT roleid::regrole, member::regrole FROM pg_auth_members ORDER BY 1, 2;
WITH acl(what, item) AS (
  SELECT datname::text, unnest(datacl) FROM pg_database
  UNION ALL SELECT nspname::text, unnest(nspacl) FROM pg_namespace WHERE nspname = 'public'
  UNION ALL SELECT oid::regclass::text, unnest(relacl) FROM pg_class WHERE relnamespace = to_regnamespace('public')
  UNION ALL SELECT attrelid::regclass || '.' || attname, unnest(attacl) FROM pg_attribute WHERE attacl IS NOT NULL
  UNION ALL SELECT oid::regprocedure::text, unnest(proacl) FROM pg_proc WHERE pronamespace = to_regnamespace('public')
  UNION ALL SELECT defaclrole::regrole || ' ' || defaclobjtype::text || ' ' || defaclnamespace::regnamespace,
                   unnest(defaclacl) FROM pg_default_acl
)
SELECT what, item FROM acl ORDER BY what COLLATE \"C\", item::text COLLATE \"C\"";
    cluster.sql(DATABASE, sql)
}

fn verifiers(cluster: &Cluster) -> String {
    let sql = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'teesql%' ORDER BY 1";
    cluster.admin_sql(sql)
}

const READ: &str = "teesql_read";
const READWRITE: &str = "teesql_readwrite";

/// Objects of each kind that exist before provisioning.
const EXISTING_OBJECTS: &str = "\
CREATE TABLE old (id serial PRIMARY KEY, words text) ;
INSERT INTO old (words) VALUES ('before');
CREATE VIEW old_view AS SELECT * FROM old;
CREATE MATERIALIZED VIEW old_materialized AS SELECT * FROM old;
CREATE TABLE old_parted (id int) PARTITION BY RANGE (id);
CREATE TABLE old_part PARTITION OF old_parted DEFAULT;
CREATE FUNCTION old_function() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE \"Odd \"\"name\" (id int);
CREATE SCHEMA private;
CREATE TABLE private.hidden (id int)";

fn second_run_changes_nothing(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = unprovisioned_cluster(fixture, &server, &[]);
        cluster.sql(DATABASE, EXISTING_OBJECTS);
        repair(&cluster);
        let before = (state(&cluster), verifiers(&cluster));
        assert!(
            before.1.contains("teesql_read|SCRAM-SHA-256$4096:"),
            "{}",
            before.1
        );
        let unchanged = Output {
            code: Some(0),
            out: "nothing to do\n".to_owned(),
            err: String::new(),
        };
        assert_eq!(provision(&cluster, &[]), unchanged);
        assert_eq!((state(&cluster), verifiers(&cluster)), before);
        // A verifier of the same password that Postgres computed is accepted.
        cluster.admin_sql("ALTER ROLE teesql_readwrite PASSWORD 'schreib-nur-zu-4711'");
        assert_eq!(provision(&cluster, &[]), unchanged);
        let after = verifiers(&cluster);
        assert_eq!(after.lines().next(), before.1.lines().next());
        assert_ne!(after, before.1);
    }
}

fn concurrent_runs(fixture: &Fixture) {
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &[]);
    cluster.admin_sql("CREATE DATABASE second");
    let start = |database: &str| {
        let mut command = cluster.provision_command(database);
        command.stdout(Stdio::null());
        spawn(command).expect("setpriv starts")
    };
    let mut children: Vec<_> = [DATABASE, "second", DATABASE, "second", DATABASE, "second"]
        .map(start)
        .into();
    for child in &mut children {
        let status = wait(child, TIMEOUT).expect("provision exits");
        assert!(status.success(), "{status}");
    }
    assert_no_differences(&cluster);
    let mut check = cluster.provision_command("second");
    check.arg("--check");
    assert_eq!(run_command(check).code, Some(0));
}

fn keeps_open_sessions(fixture: &Fixture) {
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &[]);
    repair(&cluster);
    let mut psql = tcp_psql(&cluster, (READ, READ_PASSWORD));
    psql.args(["-X", "-c", "SELECT pg_sleep(600)"])
        .stdout(Stdio::null());
    let mut session = spawn(psql).expect("psql starts");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'teesql_read' \
         AND query LIKE 'SELECT pg_sleep%'";
    cluster.await_result(count, "1");
    cluster.admin_sql("ALTER ROLE teesql_read PASSWORD 'other' CREATEDB");
    let expected = to_set([
        "teesql_read: has CREATEDB",
        "teesql_read: has another password",
    ]);
    assert_eq!(repair(&cluster), expected);
    assert_eq!(cluster.admin_sql(count), "1");
    let _ = session.kill();
    let _ = session.wait();
}

fn expect_failure(command: Command, code: i32, error: &str) {
    let output = run_command(command);
    let text = format!("error: {error}\n");
    assert_eq!(
        (output.code, output.err),
        (Some(code), text),
        "{}",
        output.out
    );
}

fn reports_failures(fixture: &Fixture) {
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &[]);
    reports_failed_logins(&cluster);
    reports_invalid_settings(&cluster);
    reports_failed_connections(&cluster);
    reports_role_that_is_no_superuser(&cluster);
}

fn reports_failed_logins(cluster: &Cluster) {
    let address = cluster.address().to_string();
    let over_tcp = |password: Option<&str>| {
        let mut command = cluster.provision_command(DATABASE);
        command.env("TEESQL_POSTGRES", &address);
        if let Some(password) = password {
            command.env("TEESQL_PG_PASSWORD_SUPERUSER", password);
        }
        command
    };
    expect_failure(
        over_tcp(Some("wrong")),
        77,
        "Postgres: password authentication failed for user \"postgres\" (SQLSTATE 28P01)",
    );
    expect_failure(
        over_tcp(None),
        77,
        "cannot log in to Postgres as postgres: invalid configuration: password missing",
    );
    assert_eq!(
        run_command(over_tcp(Some(SUPERUSER_PASSWORD))).code,
        Some(0)
    );
}

fn reports_invalid_settings(cluster: &Cluster) {
    expect_failure(
        cluster.provision_command("nowhere"),
        64,
        "Postgres: database \"nowhere\" does not exist (SQLSTATE 3D000)",
    );
    // A password that is not set comes from the guest agent, which does not run here.
    let mut nothing = cluster.provision_command(DATABASE);
    nothing
        .env_remove("TEESQL_PG_PASSWORD_READ")
        .env("TEESQL_GUEST_AGENT", "/nonexistent/dstack.sock");
    let output = run_command(nothing);
    assert_eq!(output.code, Some(69));
    assert!(
        output.err.contains("/nonexistent/dstack.sock"),
        "{}",
        output.err
    );
    let mut both = cluster.provision_command(DATABASE);
    both.args(["--check", "--sql"]);
    assert_eq!(run_command(both).code, Some(64));
}

fn reports_failed_connections(cluster: &Cluster) {
    let closed = ClosedPort::reserve();
    let refused_address = closed.address().to_string();
    let mut down = cluster.provision_command(DATABASE);
    down.env("TEESQL_POSTGRES", &refused_address);
    let error = format!(
        "cannot connect to Postgres at {refused_address}: Connection refused (os error 111)"
    );
    expect_failure(down, 69, &error);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut hangs = cluster.provision_command(DATABASE);
    hangs.env(
        "TEESQL_POSTGRES",
        silent.local_addr().expect("bound").to_string(),
    );
    expect_failure(hangs, 69, "Postgres does not answer within 2s");
}

fn reports_role_that_is_no_superuser(cluster: &Cluster) {
    cluster.admin_sql("CREATE ROLE other_superuser SUPERUSER LOGIN");
    let mut psql = cluster.psql(DATABASE);
    let sql = "ALTER ROLE postgres RENAME TO renamed_superuser; CREATE ROLE postgres LOGIN";
    psql.args(["-U", "other_superuser", "-c", sql]);
    run_successfully(psql, TIMEOUT);
    expect_failure(
        cluster.provision_command(DATABASE),
        77,
        "the role postgres is not a superuser of this Postgres",
    );
}

fn refuses_standby(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster =
            unprovisioned_cluster(fixture, &server, &["wal_level=replica", "hot_standby=on"]);
        repair(&cluster);
        cluster.admin_sql("ALTER ROLE teesql_read CREATEDB");
        cluster.restart_as_standby();
        let refused = provision(&cluster, &[]);
        assert_eq!(
            (refused.code, refused.err.as_str()),
            (
                Some(69),
                "error: Postgres is in recovery and read-only: provision its primary\n"
            )
        );
        assert_eq!(check(&cluster), to_set(["teesql_read: has CREATEDB"]));
    }
}

/// An event trigger revokes what is granted: provisioning fails and changes nothing.
fn reverted_by_trigger(fixture: &Fixture) {
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &[]);
    cluster.sql(DATABASE, EXISTING_OBJECTS);
    repair(&cluster);
    cluster.sql(
        DATABASE,
        "CREATE FUNCTION private.undo() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF current_setting('undo.busy', true) IS DISTINCT FROM 'yes' THEN
             PERFORM set_config('undo.busy', 'yes', true);
             REVOKE SELECT ON public.old FROM teesql_read;
             PERFORM set_config('undo.busy', 'no', true);
           END IF;
         END $$;
         REVOKE SELECT ON old FROM teesql_read; ALTER ROLE teesql_read CREATEDB;
         CREATE EVENT TRIGGER undo ON ddl_command_end WHEN TAG IN ('GRANT')
           EXECUTE FUNCTION private.undo()",
    );
    let before = state(&cluster);
    let refused = provision(&cluster, &[]);
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (
            Some(69),
            "error: differences remain after the repair: \
             teesql_read: lacks SELECT on public.old\n"
        )
    );
    assert_eq!(state(&cluster), before);
}
