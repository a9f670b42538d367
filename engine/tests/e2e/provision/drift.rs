//! Tests that each difference from the desired state is reported exactly and repaired.

use std::collections::BTreeSet;

use super::{
    DATABASE, EXISTING_OBJECTS, READ, READWRITE, assert_allowed, assert_no_differences, check,
    repair, to_set, unprovisioned_cluster,
};
use crate::harness::fixture::Fixture;

/// The differences of an unprovisioned cluster, without those of INSERT, UPDATE and DELETE on
/// tables.
const UNPROVISIONED: [&str; 30] = [
    "teesql_read: connection limit is none instead of 297",
    "teesql_readwrite: connection limit is none instead of 392",
    "PUBLIC has CONNECT on database operator, postgres, template1",
    "PUBLIC has TEMPORARY on database operator, postgres",
    "PUBLIC has EXECUTE on lo_creat(integer), lo_create(oid), lo_from_bytea(oid,bytea), \
     lo_put(oid,bigint,bytea), lo_truncate(integer,integer) and 7 more",
    "teesql_readwrite: lacks EXECUTE on lo_creat(integer), lo_create(oid), lo_from_bytea(oid,bytea), \
     lo_put(oid,bigint,bytea), lo_truncate(integer,integer) and 7 more",
    "teesql_read: the role does not exist",
    "teesql_read: may not log in",
    "teesql_read: has no password",
    "teesql_readwrite: the role does not exist",
    "teesql_readwrite: may not log in",
    "teesql_readwrite: has no password",
    "teesql_read: lacks CONNECT on database teesql",
    "teesql_read: lacks USAGE on schema public",
    "teesql_read: lacks SELECT on future tables of postgres",
    "teesql_read: lacks SELECT on future sequences of postgres",
    "teesql_read: lacks SELECT on future tables of teesql_readwrite",
    "teesql_read: lacks SELECT on future sequences of teesql_readwrite",
    "teesql_readwrite: lacks CONNECT on database teesql",
    "teesql_readwrite: lacks USAGE on schema public",
    "teesql_readwrite: lacks CREATE on schema public",
    "teesql_readwrite: lacks SELECT on future tables of postgres",
    "teesql_readwrite: lacks INSERT on future tables of postgres",
    "teesql_readwrite: lacks UPDATE on future tables of postgres",
    "teesql_readwrite: lacks DELETE on future tables of postgres",
    "teesql_readwrite: lacks SELECT on future sequences of postgres",
    "teesql_readwrite: lacks USAGE on future sequences of postgres",
    "teesql_read: lacks SELECT on public.a, public.b",
    "PUBLIC has CREATE on schema public",
    "teesql_readwrite: lacks SELECT on public.a, public.b",
];

pub(super) fn check_on_a_fresh_cluster(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = unprovisioned_cluster(fixture, &server, &[]);
        // As in a cluster that was upgraded from PostgreSQL 14 or older.
        cluster.sql(DATABASE, "GRANT CREATE ON SCHEMA public TO PUBLIC");
        cluster.sql(DATABASE, "CREATE TABLE a (); CREATE TABLE b ()");
        let mut expected = to_set(UNPROVISIONED);
        for privilege in ["INSERT", "UPDATE", "DELETE"] {
            expected.insert(format!(
                "teesql_readwrite: lacks {privilege} on public.a, public.b"
            ));
        }
        assert_eq!(check(&cluster), expected);
        assert_eq!(repair(&cluster), expected);
        assert_no_differences(&cluster);
    }
}

/// Statements, and the differences that they cause.
const DRIFTS: [(&str, &[&str]); 24] = [
    (
        "ALTER ROLE teesql_read SET standard_conforming_strings = off; \
         ALTER ROLE teesql_read IN DATABASE teesql SET work_mem = '1MB'",
        &[
            "teesql_read: has a stored setting of standard_conforming_strings, work_mem in database teesql",
        ],
    ),
    (
        "ALTER ROLE teesql_readwrite CONNECTION LIMIT 3",
        &["teesql_readwrite: connection limit is 3 instead of 392"],
    ),
    (
        "GRANT CONNECT, TEMPORARY ON DATABASE template1 TO PUBLIC",
        &[
            "PUBLIC has CONNECT on database template1",
            "PUBLIC has TEMPORARY on database template1",
        ],
    ),
    (
        "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC, teesql_read; \
         REVOKE EXECUTE ON FUNCTION lo_unlink(oid) FROM teesql_readwrite",
        &[
            "PUBLIC has EXECUTE on lo_create(oid)",
            "teesql_read: has EXECUTE on lo_create(oid)",
            "teesql_readwrite: lacks EXECUTE on lo_unlink(oid)",
        ],
    ),
    (
        "REVOKE SELECT ON old FROM teesql_read",
        &["teesql_read: lacks SELECT on public.old"],
    ),
    (
        "REVOKE UPDATE ON old_view, old FROM teesql_readwrite",
        &["teesql_readwrite: lacks UPDATE on public.old, public.old_view"],
    ),
    (
        "REVOKE USAGE ON SEQUENCE old_id_seq FROM teesql_readwrite",
        &["teesql_readwrite: lacks USAGE on public.old_id_seq"],
    ),
    (
        "REVOKE USAGE ON SCHEMA public FROM teesql_read",
        &["teesql_read: lacks USAGE on schema public"],
    ),
    (
        "REVOKE CONNECT ON DATABASE teesql FROM teesql_readwrite",
        &["teesql_readwrite: lacks CONNECT on database teesql"],
    ),
    (
        "ALTER ROLE teesql_read SUPERUSER",
        &["teesql_read: is SUPERUSER"],
    ),
    (
        "ALTER ROLE teesql_readwrite CREATEROLE CREATEDB NOLOGIN",
        &[
            "teesql_readwrite: has CREATEDB",
            "teesql_readwrite: has CREATEROLE",
            "teesql_readwrite: may not log in",
        ],
    ),
    (
        "ALTER ROLE teesql_read REPLICATION BYPASSRLS VALID UNTIL '2000-01-01'",
        &[
            "teesql_read: has BYPASSRLS",
            "teesql_read: has REPLICATION",
            "teesql_read: has a password that expires",
        ],
    ),
    (
        "ALTER ROLE teesql_read PASSWORD 'other'",
        &["teesql_read: has another password"],
    ),
    (
        "ALTER ROLE teesql_read PASSWORD NULL",
        &["teesql_read: has no password"],
    ),
    (
        "SET password_encryption = md5; ALTER ROLE teesql_readwrite PASSWORD 'schreib-nur-zu-4711'",
        &["teesql_readwrite: has a password that is not stored as SCRAM-SHA-256"],
    ),
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public \
         REVOKE SELECT ON TABLES FROM teesql_read",
        &["teesql_read: lacks SELECT on future tables of teesql_readwrite"],
    ),
    (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT INSERT ON TABLES TO teesql_read",
        &["teesql_read: has INSERT on future tables of postgres"],
    ),
    (
        "GRANT pg_read_all_data TO teesql_read",
        &["teesql_read: is a member of pg_read_all_data"],
    ),
    (
        "CREATE ROLE helper SUPERUSER; GRANT teesql_readwrite TO helper WITH ADMIN OPTION; \
         SET ROLE helper; GRANT pg_monitor TO teesql_read; GRANT teesql_readwrite TO teesql_read",
        &["teesql_read: is a member of pg_monitor, teesql_readwrite"],
    ),
    (
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        &["PUBLIC has CREATE on schema public"],
    ),
    (
        "GRANT UPDATE (words) ON old TO teesql_read",
        &["teesql_read: has UPDATE on public.old"],
    ),
    (
        "GRANT CREATE ON SCHEMA public TO teesql_read; GRANT CREATE ON DATABASE teesql TO teesql_readwrite",
        &[
            "teesql_read: has CREATE on schema public",
            "teesql_readwrite: has CREATE on database teesql",
        ],
    ),
    (
        "GRANT TRUNCATE ON old TO teesql_read WITH GRANT OPTION; SET ROLE teesql_read; \
         GRANT TRUNCATE ON old TO teesql_readwrite",
        &["teesql_read: has TRUNCATE on public.old"],
    ),
    (
        "REVOKE EXECUTE ON FUNCTION old_function() FROM PUBLIC",
        &[
            "teesql_read: lacks EXECUTE on public.old_function()",
            "teesql_readwrite: lacks EXECUTE on public.old_function()",
        ],
    ),
];

pub(super) fn reports_and_repairs_drift(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = unprovisioned_cluster(fixture, &server, &[]);
        cluster.sql(DATABASE, EXISTING_OBJECTS);
        repair(&cluster);
        for (sql, expected) in DRIFTS {
            cluster.sql(DATABASE, sql);
            let expected: BTreeSet<_> = expected.iter().map(|&line| line.to_owned()).collect();
            assert_eq!(check(&cluster), expected, "{sql}");
            assert_eq!(repair(&cluster), expected, "{sql}");
            assert_no_differences(&cluster);
        }
        assert_allowed(&cluster, READ, "SELECT current_user", READ);
        assert_allowed(&cluster, READWRITE, "SELECT current_user", READWRITE);
        cluster.sql(DATABASE, "DROP SCHEMA public CASCADE");
        assert_eq!(
            check(&cluster).first().unwrap(),
            "schema public does not exist"
        );
        assert!(repair(&cluster).contains("teesql_read: lacks USAGE on schema public"));
        assert_no_differences(&cluster);
    }
}
