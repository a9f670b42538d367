//! What the role `rewind` may do: exactly what pg_rewind calls on the leader. [PostgreSQL documentation, `pg_rewind`]
//!
//! `replicator` needs no grant: its attribute REPLICATION is all. Neither role ever becomes a superuser, and no client
//! can log in as one of them through the sidecar.
//!
//! The privileges on functions are those of the provisioned database, where pg_rewind and Patroni must connect to: each
//! database has its own catalog of functions.

use super::desired::join_names;
use super::state::CurrentState;

/// What `rewind` lacks. Patroni connects to the database `postgres` unless it is configured otherwise, and grants the
/// functions there when it bootstraps. If that is not the provisioned one, PUBLIC cannot enter it.
pub(super) const REWIND_ACCESS: &str = "\
SELECT what FROM (
  SELECT 'EXECUTE on ' || p.oid::regprocedure, coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc p WHERE oid IN (
         'pg_catalog.pg_ls_dir(text,boolean,boolean)'::regprocedure,
         'pg_catalog.pg_stat_file(text,boolean)'::regprocedure,
         'pg_catalog.pg_read_binary_file(text)'::regprocedure,
         'pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)'::regprocedure)
   UNION ALL
  SELECT format('CONNECT on database %I', datname), coalesce(datacl, acldefault('d', datdba))
    FROM pg_database WHERE datname IN (current_database(), 'postgres')
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
DO $do$ DECLARE name text; BEGIN
  FOR name IN SELECT datname FROM pg_database WHERE datname IN (current_database(), 'postgres') LOOP
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO rewind', name);
  END LOOP;
END $do$;
"
    .to_owned()
}
