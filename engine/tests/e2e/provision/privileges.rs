//! Tests of the privileges of both roles after provisioning, with psql logged in as each role.

use super::{
    DATABASE, EXISTING_OBJECTS, READ, READWRITE, as_role, assert_allowed, assert_denied,
    assert_no_differences, repair, unprovisioned_cluster,
};
use crate::harness::cluster::Cluster;
use crate::harness::fixture::Fixture;

pub(super) fn privileges_of_the_roles(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = unprovisioned_cluster(fixture, &server, &[]);
        cluster.sql(DATABASE, EXISTING_OBJECTS);
        assert!(!repair(&cluster).is_empty());
        assert_no_differences(&cluster);
        check_existing_objects(&cluster);
        check_new_objects(&cluster);
        assert_no_differences(&cluster);
    }
}

fn check_existing_objects(cluster: &Cluster) {
    for table in ["old", "old_view", "old_materialized"] {
        let sql = format!("SELECT words FROM {table}");
        assert_allowed(cluster, READ, &sql, "before");
    }
    for table in ["old_part", "old_parted", "\"Odd \"\"name\""] {
        let select = format!("SELECT count(*) >= 0 FROM {table}");
        assert_allowed(cluster, READ, &select, "t");
        let insert = format!("INSERT INTO {table} VALUES (1) RETURNING id");
        assert_allowed(cluster, READWRITE, &insert, "1");
    }
    for (role, sql, result) in ALLOWED {
        assert_allowed(cluster, role, sql, result);
    }
    for (role, statements) in DENIED {
        for sql in statements {
            assert_denied(cluster, role, sql);
        }
    }
}

/// Statements that a role may run in this order, with their results.
const ALLOWED: [(&str, &str, &str); 6] = [
    (READ, "SELECT last_value FROM old_id_seq", "1"),
    (READ, "SELECT old_function()", "1"),
    (READWRITE, "SELECT old_function()", "1"),
    (
        READWRITE,
        "INSERT INTO old (words) VALUES ('x') RETURNING id",
        "2",
    ),
    (
        READWRITE,
        "UPDATE old SET words = 'y' WHERE id = 2 RETURNING words",
        "y",
    ),
    (READWRITE, "DELETE FROM old WHERE id = 2 RETURNING id", "2"),
];

/// Statements that a role may not run.
const DENIED: [(&str, &[&str]); 2] = [
    (
        READ,
        &[
            "INSERT INTO old (words) VALUES ('x')",
            "UPDATE old SET words = 'x'",
            "DELETE FROM old",
            "TRUNCATE old",
            "SELECT nextval('old_id_seq')",
            "CREATE TABLE mine (id int)",
            "CREATE SCHEMA mine",
            "SELECT * FROM private.hidden",
            "SELECT rolpassword FROM pg_authid",
            "SELECT pg_read_file('/etc/hostname')",
        ],
    ),
    (
        READWRITE,
        &[
            "CREATE ROLE mine",
            "CREATE DATABASE mine",
            "CREATE SCHEMA mine",
            "SELECT * FROM private.hidden",
            "SELECT rolpassword FROM pg_authid",
            "SET ROLE postgres",
        ],
    ),
];

fn check_new_objects(cluster: &Cluster) {
    let new = |name: &str| {
        format!(
            "CREATE TABLE {name} (id serial, words text);
             INSERT INTO {name} (words) VALUES ('new');
             CREATE VIEW {name}_view AS SELECT * FROM {name};
             CREATE FUNCTION {name}_function() RETURNS int LANGUAGE sql AS 'SELECT 2'"
        )
    };
    as_role(cluster, READWRITE, &new("theirs")).expect("the role may create tables");
    cluster.sql(DATABASE, &new("ours"));
    for name in ["theirs", "ours"] {
        assert_allowed(cluster, READ, &format!("SELECT words FROM {name}"), "new");
        assert_allowed(
            cluster,
            READ,
            &format!("SELECT words FROM {name}_view"),
            "new",
        );
        assert_allowed(
            cluster,
            READ,
            &format!("SELECT last_value FROM {name}_id_seq"),
            "1",
        );
        assert_allowed(cluster, READ, &format!("SELECT {name}_function()"), "2");
        assert_denied(
            cluster,
            READ,
            &format!("INSERT INTO {name} (words) VALUES ('x')"),
        );
        assert_denied(cluster, READ, &format!("SELECT nextval('{name}_id_seq')"));
        let insert = format!("INSERT INTO {name} (words) VALUES ('x') RETURNING id");
        assert_allowed(cluster, READWRITE, &insert, "2");
    }
    assert_allowed(cluster, READWRITE, "DROP TABLE theirs CASCADE", "");
}

/// Provisioning does not grant EXECUTE on a routine that has more privileges than the roles if its
/// owner revoked EXECUTE from PUBLIC.
pub(super) fn restricted_routines(fixture: &Fixture) {
    let cluster = unprovisioned_cluster(fixture, &fixture.harness.installed, &[]);
    cluster.sql(
        DATABASE,
        "CREATE FUNCTION powerful() RETURNS text LANGUAGE sql SECURITY DEFINER
           AS 'SELECT current_user::text';
         CREATE FUNCTION native(text) RETURNS int LANGUAGE internal AS 'textlen';
         REVOKE EXECUTE ON FUNCTION powerful(), native(text) FROM PUBLIC;
         CREATE FUNCTION open_to_all() RETURNS text LANGUAGE sql SECURITY DEFINER
           AS 'SELECT current_user::text';",
    );
    repair(&cluster);
    for role in [READ, READWRITE] {
        assert_denied(&cluster, role, "SELECT powerful()");
        assert_denied(&cluster, role, "SELECT native('x')");
        assert_allowed(&cluster, role, "SELECT open_to_all()", "postgres");
    }
    // Default privileges do not grant EXECUTE on a new routine either.
    cluster.sql(
        DATABASE,
        "CREATE FUNCTION later() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
         REVOKE EXECUTE ON FUNCTION later() FROM PUBLIC",
    );
    assert_denied(&cluster, READ, "SELECT later()");
    assert_no_differences(&cluster);
}
