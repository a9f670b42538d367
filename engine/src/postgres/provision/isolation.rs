//! Requirements that keep the clients of a shared role apart, and keep clients out of what is not theirs:
//! stored role settings, connection limits, other databases, and built-in functions.
//!
//! All clients with the same cluster secret log in as the same role. A role may change its own settings
//! (`ALTER ROLE … SET`), signal its own sessions and read their queries, and PUBLIC may connect to every
//! database. Without these requirements one client could therefore stop or mislead all others.

use super::desired::join_names;
use super::state::CurrentState;
use super::{ConnectionLimit, DesiredState, ManagedRole};

/// Built-in functions that PUBLIC may call, and `teesql_read` must not: those that write large objects, which
/// need no table, those that signal sessions of the same role, and those that show their queries.
///
/// `lo_import` and `lo_export` are not listed: only superusers may call them. [PostgreSQL
/// `system_functions.sql`]
pub(super) const RESTRICTED_ROUTINES: &str = "\
'lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lo_truncate', 'lo_truncate64', 'lo_unlink', \
'lowrite', 'pg_cancel_backend', 'pg_stat_get_activity', 'pg_stat_get_backend_activity', \
'pg_terminate_backend'";

/// The number of sessions that remain for clients and operators: all but those that Postgres reserves.
macro_rules! slots {
    () => {
        "(current_setting('max_connections')::int \
          - current_setting('superuser_reserved_connections')::int \
          - coalesce(current_setting('reserved_connections', true)::int, 0))"
    };
}

/// The automatic limit of `teesql_readwrite`: a tenth of the sessions, at most five, remains for operators.
const AUTO_READWRITE: &str = concat!(
    "greatest(",
    slots!(),
    " - least(5, ",
    slots!(),
    " / 10), 1)"
);

/// The automatic limit of `teesql_read`: three quarters of the sessions, so that readers cannot lock
/// writers out.
const AUTO_READ: &str = concat!("greatest(", slots!(), " * 3 / 4, 1)");

/// The automatic limit of `replicator`: what Postgres allows. [PostgreSQL documentation, `max_wal_senders`]
const AUTO_REPLICATOR: &str = "greatest(current_setting('max_wal_senders')::int, 1)";

/// The limit of `rewind`: two sessions of each of up to eight members that rejoin at the same time. Patroni asks the
/// leader for its timeline with one, and pg_rewind reads with the other.
const AUTO_REWIND: &str = "16";

/// The expression of a role's automatic limit.
fn automatic_limit(role: ManagedRole) -> &'static str {
    match role {
        ManagedRole::Read => AUTO_READ,
        ManagedRole::ReadWrite => AUTO_READWRITE,
        ManagedRole::Replicator => AUTO_REPLICATOR,
        ManagedRole::Rewind => AUTO_REWIND,
    }
}

/// Reads the automatic limits, as [`AutomaticLimits`](super::state::AutomaticLimits) has them.
pub(super) fn automatic_limits_sql() -> String {
    format!("SELECT {AUTO_READ}, {AUTO_READWRITE}, {AUTO_REPLICATOR}, {AUTO_REWIND}")
}

/// The roles' stored settings. The values are not shown: a custom setting may hold a secret.
pub(super) fn setting_differences(role: ManagedRole, state: &CurrentState) -> Vec<String> {
    let settings = state.role(role).settings.iter().map(String::as_str);
    let names = join_names(settings);
    let line = |names| format!("{}: has a stored setting of {names}", role.name());
    names.map(line).into_iter().collect()
}

pub(super) fn reset_settings_sql(role: ManagedRole) -> String {
    let name = role.name();
    format!(
        "ALTER ROLE {name} RESET ALL;
DO $do$ DECLARE name text; BEGIN
  FOR name IN
    SELECT datname FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
     WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = '{name}')
  LOOP
    EXECUTE format('ALTER ROLE {name} IN DATABASE %I RESET ALL', name);
  END LOOP;
END $do$;
"
    )
}

pub(super) fn limit_difference(
    role: ManagedRole,
    state: &CurrentState,
    desired: &DesiredState,
) -> Option<String> {
    let expected = match desired.connection_limit(role) {
        ConnectionLimit::Unlimited => -1,
        ConnectionLimit::At(limit) => i32::try_from(limit).unwrap_or(i32::MAX),
        ConnectionLimit::Auto => state.automatic_limits.of(role),
    };
    let text = |limit: i32| match limit {
        -1 => "none".to_owned(),
        limit => limit.to_string(),
    };
    let role = state.role(role);
    let current = if role.exists {
        role.connection_limit
    } else {
        -1
    };
    (current != expected).then(|| {
        format!(
            "connection limit is {} instead of {}",
            text(current),
            text(expected)
        )
    })
}

pub(super) fn limit_sql(role: ManagedRole, desired: &DesiredState) -> String {
    let name = role.name();
    let expression = match desired.connection_limit(role) {
        ConnectionLimit::Unlimited => "-1".to_owned(),
        ConnectionLimit::At(limit) => limit.to_string(),
        ConnectionLimit::Auto => automatic_limit(role).to_owned(),
    };
    format!(
        "DO $do$ BEGIN
  EXECUTE format('ALTER ROLE {name} CONNECTION LIMIT %s', {expression});
END $do$;
"
    )
}

pub(super) fn database_differences(state: &CurrentState) -> Vec<String> {
    let line = |privilege: &str| {
        let open = state.open_databases.iter();
        let open = open.filter(|database| database.public.iter().any(|held| held == privilege));
        let names = join_names(open.map(|database| database.name.as_str()))?;
        Some(format!("PUBLIC has {privilege} on database {names}"))
    };
    ["CONNECT", "TEMPORARY"]
        .into_iter()
        .filter_map(line)
        .collect()
}

pub(super) fn close_databases_sql() -> String {
    format!(
        "DO $do$ DECLARE name text; BEGIN
  FOR name IN SELECT datname FROM pg_database d WHERE {OPEN_DATABASE} LOOP
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', name);
  END LOOP;
END $do$;
"
    )
}

/// The condition for a database `d` that clients must not enter, and may: PUBLIC has privileges on it, and
/// neither role has a privilege, as it would if the database had been provisioned.
pub(super) const OPEN_DATABASE: &str = "\
datallowconn AND datname <> current_database()
     AND EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))
                  WHERE grantee = 0 AND privilege_type IN ('CONNECT', 'TEMPORARY'))
     AND NOT EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))
                      WHERE privilege_type = 'CONNECT' AND grantee IN
                            (SELECT oid FROM pg_roles WHERE rolname IN ('teesql_read', 'teesql_readwrite')))";

pub(super) fn routine_differences(state: &CurrentState) -> Vec<String> {
    let line = |who: &str, differs: fn(&super::state::RestrictedRoutine) -> bool| {
        let routines = state.restricted_routines.iter().filter(|r| differs(r));
        let names = join_names(routines.map(|routine| routine.name.as_str()))?;
        Some(format!("{who} EXECUTE on {names}"))
    };
    [
        line("PUBLIC has", |routine| routine.public),
        line("teesql_read: has", |routine| routine.reader),
        line("teesql_readwrite: lacks", |routine| !routine.writer),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The predefined roles for operators get what PUBLIC loses.
pub(super) fn restrict_routines_sql() -> String {
    format!(
        "DO $do$ DECLARE routine text; predefined text; BEGIN
  FOR routine, predefined IN
    SELECT p.oid::regprocedure, CASE WHEN proname LIKE 'pg_stat%' THEN ', pg_read_all_stats'
                                     WHEN proname LIKE 'pg%' THEN ', pg_signal_backend' ELSE '' END
      FROM pg_proc p
     WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN ({RESTRICTED_ROUTINES})
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, teesql_read CASCADE', routine);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO teesql_readwrite%s', routine, predefined);
  END LOOP;
END $do$;
"
    )
}
