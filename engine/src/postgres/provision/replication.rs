//! What the role `rewind` may do: exactly what pg_rewind calls on the leader. [PostgreSQL documentation, `pg_rewind`]
//!
//! `replicator` needs no grant: its attribute REPLICATION is all. Neither role ever becomes a superuser, and no client
//! can log in as one of them through the sidecar.

use super::desired::join_names;
use super::state::CurrentState;

/// What `rewind` lacks. The database `postgres` is the one that Patroni and pg_rewind connect to; if that is not the
/// provisioned one, PUBLIC cannot enter it.
pub(super) const REWIND_ACCESS: &str = "\
SELECT what FROM (
  SELECT 'EXECUTE on ' || p.oid::regprocedure, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc p WHERE oid IN (
         'pg_catalog.pg_ls_dir(text,boolean,boolean)'::regprocedure,
         'pg_catalog.pg_stat_file(text,boolean)'::regprocedure,
         'pg_catalog.pg_read_binary_file(text)'::regprocedure,
         'pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)'::regprocedure)
   UNION ALL
  SELECT 'CONNECT on database postgres', coalesce(datacl, acldefault('d', datdba))
    FROM pg_database WHERE datname = 'postgres'
) AS required (what, acl)
 WHERE NOT EXISTS (SELECT FROM aclexplode(acl)
                    WHERE grantee = (SELECT oid FROM pg_roles WHERE rolname = 'rewind')
                      AND privilege_type = split_part(what, ' ', 1))
 ORDER BY what COLLATE \"C\"";

pub(super) fn differences(state: &CurrentState) -> Vec<String> {
    let lacks = state.rewind_lacks.iter().map(String::as_str);
    let line = |names| format!("rewind: lacks {names}");
    join_names(lacks).map(line).into_iter().collect()
}

pub(super) fn grant_sql() -> String {
    "\
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean),
  pg_catalog.pg_stat_file(text, boolean), pg_catalog.pg_read_binary_file(text),
  pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO rewind;
DO $do$ BEGIN
  IF EXISTS (SELECT FROM pg_database WHERE datname = 'postgres') THEN
    GRANT CONNECT ON DATABASE postgres TO rewind;
  END IF;
END $do$;
"
    .to_owned()
}
