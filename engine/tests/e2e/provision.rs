//! `teesql-sidecar provision`: what it makes of a Postgres, and what it tells.

mod drift;
mod password_secrecy;
mod privileges;
mod sql_script;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::fake_server::ClosedPort;
use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, run, run_successfully, spawn, wait,
};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD, SUPERUSER_PASSWORD};

pub(crate) fn add(suite: &mut Suite) {
    if !suite.is_last_driver() {
        return;
    }
    suite.add("provision::role_matrix", privileges::role_matrix);
    suite.add(
        "provision::check_on_a_fresh_cluster",
        drift::check_on_a_fresh_cluster,
    );
    suite.add("provision::twice_changes_nothing", twice_changes_nothing);
    suite.add("provision::drift_is_named_and_repaired", drift::drift);
    suite.add(
        "provision::routines_closed_on_purpose_stay_closed",
        privileges::closed_routines,
    );
    suite.add(
        "provision::no_password_is_seen",
        password_secrecy::no_password_is_seen,
    );
    suite.add(
        "provision::script_does_the_same",
        sql_script::script_does_the_same,
    );
    suite.add("provision::all_at_once", all_at_once);
    suite.add("provision::role_in_use", role_in_use);
    suite.add("provision::refusals", refusals);
    suite.add("provision::what_is_undone_is_told", what_is_undone);
    suite.add("provision::in_recovery", in_recovery);
}

const OWN: &str = "teesql";

/// What a command said, and its exit code.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(command: Command) -> Output {
    let output = run(command, TIMEOUT);
    Output {
        code: output.status.code(),
        out: lossy(&output.stdout),
        err: lossy(&output.stderr),
    }
}

fn provision(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.provision_command(OWN);
    command.args(arguments);
    said(command)
}

/// Runs it, insists on success, and gives what was repaired.
fn repair(cluster: &Cluster) -> BTreeSet<String> {
    lines(provision(cluster, &[]), 0, "repaired: ")
}

/// What `--check` finds; it may change nothing.
fn check(cluster: &Cluster) -> BTreeSet<String> {
    let before = picture(cluster);
    let found = lines(provision(cluster, &["--check"]), 1, "differs: ");
    assert_eq!(picture(cluster), before);
    found
}

fn lines(said: Output, code: i32, prefix: &str) -> BTreeSet<String> {
    assert_eq!((said.code, said.err.as_str()), (Some(code), ""), "{said:?}");
    let line = |line: &str| line.strip_prefix(prefix).map(str::to_owned);
    let lines = said
        .out
        .lines()
        .map(|text| line(text).unwrap_or_else(|| panic!("{text}")));
    lines.collect()
}

fn set<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.map(str::to_owned).into()
}

fn assert_all_well(cluster: &Cluster) {
    let well = Output {
        code: Some(0),
        out: "all is as it has to be\n".to_owned(),
        err: String::new(),
    };
    assert_eq!(provision(cluster, &["--check"]), well);
}

/// A cluster without the roles, with a database of our own.
fn fresh(
    fixture: &Fixture,
    server: &crate::harness::cluster::Server,
    settings: &[&'static str],
) -> Cluster {
    let options = ClusterOptions {
        settings: settings.to_vec(),
        ..ClusterOptions::default()
    };
    let cluster = fixture.harness.private_cluster(server, &options);
    cluster.admin_sql(&format!("CREATE DATABASE {OWN}"));
    cluster
}

/// Runs `sql` as `role`, logged in over TCP with its password, by libpq.
fn as_role(cluster: &Cluster, role: &str, sql: &str) -> Result<String, String> {
    let password = match role {
        "teesql_read" => READ_PASSWORD,
        _ => READWRITE_PASSWORD,
    };
    let mut psql = pdeathsig_command(Path::new("psql"), "KILL", None);
    psql.args([
        "-X",
        "-q",
        "-A",
        "-t",
        "-w",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
    ])
    .args([
        "-h",
        "127.0.0.1",
        "-p",
        &cluster.address().port().to_string(),
    ])
    .args(["-U", role, "-d", OWN])
    .env("PGPASSWORD", password)
    .env("PGCLIENTENCODING", "UTF8");
    let said = said(psql);
    match said.code {
        Some(0) => Ok(said.out.trim_end().to_owned()),
        _ => Err(said.err),
    }
}

fn may(cluster: &Cluster, role: &str, sql: &str, answer: &str) {
    assert_eq!(
        as_role(cluster, role, sql).as_deref(),
        Ok(answer),
        "{role}: {sql}"
    );
}

fn may_not(cluster: &Cluster, role: &str, sql: &str) {
    let error = as_role(cluster, role, sql).expect_err(sql);
    assert!(
        error.contains("permission denied"),
        "{role}: {sql}: {error}"
    );
}

/// All that provisioning may touch, in one text; without verifiers, whose salts differ.
fn picture(cluster: &Cluster) -> String {
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
    cluster.sql(OWN, sql)
}

fn verifiers(cluster: &Cluster) -> String {
    let sql = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'teesql%' ORDER BY 1";
    cluster.admin_sql(sql)
}

const READ: &str = "teesql_read";
const READWRITE: &str = "teesql_readwrite";

/// What is there before, of each kind.
const OLD: &str = "\
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

fn twice_changes_nothing(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = fresh(fixture, &server, &[]);
        cluster.sql(OWN, OLD);
        repair(&cluster);
        let before = (picture(&cluster), verifiers(&cluster));
        assert!(
            before.1.contains("teesql_read|SCRAM-SHA-256$4096:"),
            "{}",
            before.1
        );
        let again = Output {
            code: Some(0),
            out: "nothing to do\n".to_owned(),
            err: String::new(),
        };
        assert_eq!(provision(&cluster, &[]), again);
        assert_eq!((picture(&cluster), verifiers(&cluster)), before);
        // A verifier that Postgres made itself, of the same password, is as good.
        cluster.admin_sql("ALTER ROLE teesql_readwrite PASSWORD 'schreib-nur-zu-4711'");
        assert_eq!(provision(&cluster, &[]), again);
        let after = verifiers(&cluster);
        assert_eq!(after.lines().next(), before.1.lines().next());
        assert_ne!(after, before.1);
    }
}

fn all_at_once(fixture: &Fixture) {
    let cluster = fresh(fixture, &fixture.harness.installed, &[]);
    cluster.admin_sql("CREATE DATABASE second");
    let start = |database: &str| {
        let mut command = cluster.provision_command(database);
        command.stdout(Stdio::null());
        spawn(command).expect("setpriv starts")
    };
    let mut children: Vec<_> = [OWN, "second", OWN, "second", OWN, "second"]
        .map(start)
        .into();
    for child in &mut children {
        let status = wait(child, TIMEOUT).expect("it ends");
        assert!(status.success(), "{status}");
    }
    assert_all_well(&cluster);
    let mut check = cluster.provision_command("second");
    check.arg("--check");
    assert_eq!(said(check).code, Some(0));
}

fn role_in_use(fixture: &Fixture) {
    let cluster = fresh(fixture, &fixture.harness.installed, &[]);
    repair(&cluster);
    let mut psql = pdeathsig_command(Path::new("psql"), "KILL", None);
    psql.args([
        "-X",
        "-c",
        "SELECT pg_sleep(600)",
        "-h",
        "127.0.0.1",
        "-U",
        READ,
        "-d",
        OWN,
    ])
    .args(["-p", &cluster.address().port().to_string()])
    .env("PGPASSWORD", READ_PASSWORD)
    .env("PGCLIENTENCODING", "UTF8")
    .stdout(Stdio::null());
    let mut session = spawn(psql).expect("psql starts");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'teesql_read' \
         AND query LIKE 'SELECT pg_sleep%'";
    cluster.await_result(count, "1");
    cluster.admin_sql("ALTER ROLE teesql_read PASSWORD 'other' CREATEDB");
    let expected = set([
        "teesql_read: has CREATEDB",
        "teesql_read: has another password",
    ]);
    assert_eq!(repair(&cluster), expected);
    assert_eq!(cluster.admin_sql(count), "1");
    let _ = session.kill();
    let _ = session.wait();
}

fn refusals(fixture: &Fixture) {
    let cluster = fresh(fixture, &fixture.harness.installed, &[]);
    let address = cluster.address().to_string();
    let over_tcp = |password: Option<&str>| {
        let mut command = cluster.provision_command(OWN);
        command.env("TEESQL_POSTGRES", &address);
        if let Some(password) = password {
            command.env("TEESQL_PG_PASSWORD_SUPERUSER", password);
        }
        command
    };
    let expect = |command: Command, code: i32, error: &str| {
        let refused = said(command);
        let text = format!("error: {error}\n");
        assert_eq!(
            (refused.code, refused.err),
            (Some(code), text),
            "{}",
            refused.out
        );
    };
    expect(
        over_tcp(Some("wrong")),
        77,
        "Postgres: password authentication failed for user \"postgres\" (SQLSTATE 28P01)",
    );
    expect(
        over_tcp(None),
        77,
        "cannot log in to Postgres as postgres: invalid configuration: password missing",
    );
    assert_eq!(said(over_tcp(Some(SUPERUSER_PASSWORD))).code, Some(0));

    expect(
        cluster.provision_command("nowhere"),
        64,
        "Postgres: database \"nowhere\" does not exist (SQLSTATE 3D000)",
    );
    // What is not set is asked of the guest agent, and here is none.
    let mut nothing = cluster.provision_command(OWN);
    nothing
        .env_remove("TEESQL_PG_PASSWORD_READ")
        .env("TEESQL_GUEST_AGENT", "/nonexistent/dstack.sock");
    let asked = said(nothing);
    assert_eq!(asked.code, Some(69));
    assert!(
        asked.err.contains("/nonexistent/dstack.sock"),
        "{}",
        asked.err
    );
    let mut both = cluster.provision_command(OWN);
    both.args(["--check", "--sql"]);
    assert_eq!(said(both).code, Some(64));

    let nobody = ClosedPort::reserve();
    let gone = nobody.address().to_string();
    let mut down = cluster.provision_command(OWN);
    down.env("TEESQL_POSTGRES", &gone);
    let error = format!("cannot connect to Postgres at {gone}: Connection refused (os error 111)");
    expect(down, 69, &error);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut hangs = cluster.provision_command(OWN);
    hangs.env(
        "TEESQL_POSTGRES",
        silent.local_addr().expect("bound").to_string(),
    );
    expect(hangs, 69, "Postgres does not answer within 2s");

    cluster.admin_sql("CREATE ROLE boss SUPERUSER LOGIN");
    let mut boss = cluster.psql(OWN);
    let sql = "ALTER ROLE postgres RENAME TO former; CREATE ROLE postgres LOGIN";
    boss.args(["-U", "boss", "-c", sql]);
    run_successfully(boss, TIMEOUT);
    expect(
        cluster.provision_command(OWN),
        77,
        "the role postgres is no superuser of this Postgres",
    );
}

fn in_recovery(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = fresh(fixture, &server, &["wal_level=replica", "hot_standby=on"]);
        repair(&cluster);
        cluster.admin_sql("ALTER ROLE teesql_read CREATEDB");
        cluster.restart_as_standby();
        let refused = provision(&cluster, &[]);
        assert_eq!(
            (refused.code, refused.err.as_str()),
            (
                Some(69),
                "error: Postgres is in recovery and takes no changes: provision its primary\n"
            )
        );
        assert_eq!(check(&cluster), set(["teesql_read: has CREATEDB"]));
    }
}

/// An event trigger that takes back what is granted: told so, and nothing is changed.
fn what_is_undone(fixture: &Fixture) {
    let cluster = fresh(fixture, &fixture.harness.installed, &[]);
    cluster.sql(OWN, OLD);
    repair(&cluster);
    cluster.sql(
        OWN,
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
    let before = picture(&cluster);
    let refused = provision(&cluster, &[]);
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (
            Some(69),
            "error: still not as it has to be, whatever was done: \
             teesql_read: lacks SELECT on public.old\n"
        )
    );
    assert_eq!(picture(&cluster), before);
}
