//! The roles of a cluster, `replicator` and `rewind`, whose passwords are derived from the cluster key.

use std::process::Command;

use wire::cluster_key::{ClusterKey, PasswordLabel};

use super::{DATABASE, Output, reported_lines, run_command, to_set};
use crate::harness::cluster::{Cluster, ClusterOptions, Server, unused_port};
use crate::harness::fake_patroni::{Behavior, FakePatroni};
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::libpq::PSQL_BARE;
use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, run, run_successfully};
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;

const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

fn password(label: PasswordLabel) -> String {
    let key: ClusterKey = KEY.parse().expect("a key");
    lossy(key.password(label).as_bytes())
}

/// A server that sends WAL, with an empty database.
fn sending_cluster(fixture: &Fixture, server: &Server) -> Cluster {
    let options = ClusterOptions {
        settings: vec!["wal_level=replica", "max_wal_senders=3", "hot_standby=on"],
        hba: Some(
            "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n",
        ),
        ..ClusterOptions::default()
    };
    let cluster = fixture.harness.private_cluster(server, &options);
    cluster.admin_sql(&format!("CREATE DATABASE {DATABASE}"));
    cluster
}

fn provision(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = cluster.provision_command(DATABASE);
    command
        .env("TEESQL_CLUSTER_NAME", "orders")
        .env("TEESQL_CLUSTER_KEY", KEY)
        .args(arguments);
    run_command(command)
}

/// A psql over TCP, where a password is required.
fn psql(cluster: &Cluster, role: &str, database: &str, label: PasswordLabel, sql: &str) -> Command {
    let mut psql = pdeathsig_command("psql", "KILL", None);
    let address = cluster.address();
    let dsn = format!(
        "host=127.0.0.1 port={} user={role} {database}",
        address.port()
    );
    psql.args(PSQL_BARE)
        .args(["-d", &dsn, "-c", sql])
        .env("PGPASSWORD", password(label));
    psql
}

/// Both roles can do what they are for, and no more.
pub(super) fn roles_of_a_cluster(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = sending_cluster(fixture, &server);
        let repaired = reported_lines(provision(&cluster, &[]), 0, "repaired: ");
        for line in [
            "replicator: the role does not exist",
            "replicator: lacks REPLICATION",
            "replicator: connection limit is none instead of 3",
            "rewind: connection limit is none instead of 16",
            "rewind: lacks CONNECT on database postgres, CONNECT on database teesql, \
             EXECUTE on pg_ls_dir(text,boolean,boolean), EXECUTE on pg_read_binary_file(text), \
             EXECUTE on pg_read_binary_file(text,bigint,bigint,boolean) and 1 more",
        ] {
            assert!(repaired.contains(line), "{line}: {repaired:#?}");
        }
        check_abilities(&cluster);
        cluster.admin_sql(
            "ALTER ROLE replicator SUPERUSER PASSWORD NULL; ALTER ROLE rewind REPLICATION; \
             GRANT teesql_readwrite TO rewind; ALTER ROLE rewind SET work_mem = '1MB'",
        );
        cluster.sql(
            DATABASE,
            "REVOKE EXECUTE ON FUNCTION pg_stat_file(text, boolean) FROM rewind",
        );
        let drift = to_set([
            "replicator: has no password",
            "replicator: is SUPERUSER",
            "rewind: has REPLICATION",
            "rewind: has a stored setting of work_mem",
            "rewind: is a member of teesql_readwrite",
            "rewind: lacks EXECUTE on pg_stat_file(text,boolean)",
        ]);
        let found = reported_lines(provision(&cluster, &["--check"]), 1, "differs: ");
        assert_eq!(found, drift);
        let found = reported_lines(provision(&cluster, &[]), 0, "repaired: ");
        assert_eq!(found, drift);
        check_abilities(&cluster);
        script_is_equivalent(fixture, &cluster);
    }
    prints_passwords();
}

fn check_abilities(cluster: &Cluster) {
    let system = psql(
        cluster,
        "replicator",
        "replication=true",
        PasswordLabel::Replicator,
        "IDENTIFY_SYSTEM",
    );
    assert!(run_successfully(system, TIMEOUT).contains("|1|"));
    let files = "SELECT length(pg_read_binary_file('PG_VERSION')) > 0, \
         length(pg_read_binary_file('PG_VERSION', 0, 2, true)), \
         (pg_stat_file('PG_VERSION', true)).size > 0, \
         EXISTS (SELECT FROM pg_ls_dir('.', true, false))";
    let rewind = |database: &str, sql| {
        let database = format!("dbname={database}");
        psql(cluster, "rewind", &database, PasswordLabel::Rewind, sql)
    };
    let found = run_successfully(rewind(DATABASE, files), TIMEOUT);
    assert_eq!(found.trim_end(), "t|2|t|t");
    let entered = run_successfully(rewind("postgres", "SELECT 1"), TIMEOUT);
    assert_eq!(entered.trim_end(), "1");
    for refused in [
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT * FROM pg_authid",
        "CREATE ROLE other",
        "SELECT pg_terminate_backend(1)",
    ] {
        let output = run(rewind(DATABASE, refused), TIMEOUT);
        assert!(!output.status.success(), "{refused}");
        let text = lossy(&output.stderr);
        assert!(text.contains("permission denied"), "{refused}: {text}");
    }
    let wrong = psql(
        cluster,
        "replicator",
        "replication=true",
        PasswordLabel::Rewind,
        "IDENTIFY_SYSTEM",
    );
    assert!(!run(wrong, TIMEOUT).status.success());
}

/// The script sets the same up, in a database that was never provisioned.
fn script_is_equivalent(fixture: &Fixture, cluster: &Cluster) {
    cluster.sql(
        "postgres",
        "REVOKE CONNECT ON DATABASE postgres FROM rewind; ALTER ROLE replicator NOREPLICATION",
    );
    let script = provision(cluster, &["--sql"]);
    assert_eq!((script.code, script.err.as_str()), (Some(0), ""));
    assert!(!script.out.contains(&password(PasswordLabel::Replicator)));
    let file = fixture.harness.unique_path("replication.sql");
    std::fs::write(&file, &script.out).expect("a script");
    let mut psql = cluster.psql(DATABASE);
    psql.arg("-f").arg(&file);
    assert_eq!(run_successfully(psql, TIMEOUT), "");
    let check = provision(cluster, &["--check"]);
    assert_eq!(
        (check.code, check.out.as_str()),
        (Some(0), "no differences\n")
    );
}

/// A configured password takes precedence over the cluster key.
fn prints_passwords() {
    let print = |role, environment: &[(&str, &str)]| {
        run_command(sidecar_command(&["password", role], environment)).out
    };
    let key = ("TEESQL_CLUSTER_KEY", KEY);
    for (role, label) in [
        ("superuser", PasswordLabel::Superuser),
        ("postgres", PasswordLabel::Superuser),
        ("teesql_read", PasswordLabel::Read),
        ("teesql_readwrite", PasswordLabel::ReadWrite),
        ("replicator", PasswordLabel::Replicator),
        ("rewind", PasswordLabel::Rewind),
        ("backup", PasswordLabel::BackupEncryption),
    ] {
        assert_eq!(print(role, &[key]), password(label) + "\n", "{role}");
    }
    let configured = [key, ("TEESQL_PG_PASSWORD_READ", "reader's")];
    assert_eq!(print("teesql_read", &configured), "reader's\n");
}

fn serving(fixture: &Fixture, cluster: &Cluster, patroni: &FakePatroni) -> Settings {
    fixture
        .settings_for(&cluster.address().to_string())
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_PG_DATABASE", DATABASE)
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_CLUSTER_NAME", "orders")
        .set("TEESQL_CLUSTER_MEMBER", "a")
        .set("TEESQL_CLUSTER_MEMBERS", "a=127.0.0.1:5433")
        .set(
            "TEESQL_CLUSTER_SERVICES",
            &format!("postgres=5432:{}", unused_port()),
        )
        .set("TEESQL_CLUSTER_KEY", KEY)
        .set("TEESQL_CLUSTER_PATRONI", &patroni.url())
}

/// A member's sidecar serves before its Postgres is up, is ready on a standby, and provisions once that leads, even if it
/// compares the roles only once. A Postgres that is not in recovery does not lead before Patroni says so: while Patroni
/// founds a cluster, it fails if a role exists that it is about to create.
pub(super) fn provisions_when_it_leads(fixture: &Fixture) {
    let cluster = sending_cluster(fixture, &fixture.harness.installed);
    cluster.restart_as_standby();
    cluster.stop(nix::sys::signal::Signal::SIGINT);
    let patroni = FakePatroni::start("a", Behavior::Leader(None));
    let settings = serving(fixture, &cluster, &patroni).set("TEESQL_PROVISION_INTERVAL", "off");
    let sidecar = Sidecar::start(&settings);
    let admin = sidecar.admin_address();
    http::await_unready(admin, "roles", "not set up yet");
    cluster.start();
    http::await_ready(admin);
    let roles = "SELECT count(*) FROM pg_roles WHERE rolname IN \
         ('teesql_read', 'teesql_readwrite', 'replicator', 'rewind')";
    assert_eq!(cluster.admin_sql(roles), "0", "a standby is read-only");
    cluster.admin_sql("SELECT pg_promote()");
    http::await_unready(admin, "cluster", "fenced");
    http::await_unready(admin, "roles", "does not lead");
    assert_eq!(
        cluster.admin_sql(roles),
        "0",
        "Patroni has not founded the cluster"
    );
    patroni.set(Behavior::Leader(Some("a")));
    cluster.await_result(roles, "4");
    http::await_ready(admin);
    for (role, label) in [
        ("replicator", PasswordLabel::Replicator),
        ("rewind", PasswordLabel::Rewind),
    ] {
        let error = fixture
            .client(sidecar.address())
            .login(role, DATABASE, &password(label))
            .expect_err("not a role of clients");
        assert_eq!(error.code, "28P01", "{role}");
    }
}
