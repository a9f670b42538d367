//! What becomes of each parameter of a connection URI on its way to the command.

/// What the URI for the command does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It does not choose a server or a kind of encryption.
    Kept,
    /// It is about the server or TLS, which the forwarder replaces.
    Dropped,
    /// Its effect is not known here, and it may name a server.
    Refused(&'static str),
    Unknown,
}

/// About the server and its authentication by other means than SCRAM. All that begin with `ssl`, `gss` or `krb` are
/// dropped as well.
const DROPPED: [&str; 7] = [
    "channel_binding",
    "channelBinding",
    "hostaddr",
    "load_balance_hosts",
    "requiressl",
    "requirepeer",
    "uselibpqcompat",
];

/// Files with further settings.
const REFUSED: [&str; 2] = ["service", "servicefile"];

/// Parameters of libpq and of drivers, pools and frameworks by name, and settings of Postgres, which many drivers pass on.
const KEPT: [&str; 96] = [
    // libpq
    "application_name",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "replication",
    "require_auth",
    "scram_client_key",
    "scram_server_key",
    "target_session_attrs",
    "tcp_user_timeout",
    // settings of Postgres
    "bytea_output",
    "client_min_messages",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "lc_messages",
    "lock_timeout",
    "role",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "timezone",
    "transaction_timeout",
    "work_mem",
    // Prisma
    "connection_limit",
    "pgbouncer",
    "pool_timeout",
    "schema",
    "single_use_connections",
    "socket_timeout",
    "statement_cache_size",
    // pgx and its pool, lib/pq
    "binary_parameters",
    "default_query_exec_mode",
    "description_cache_capacity",
    "disable_prepared_binary_result",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conn_lifetime_jitter",
    "pool_max_conns",
    "pool_min_conns",
    "pool_min_idle_conns",
    "prefer_simple_protocol",
    "statement_cache_capacity",
    "statement_cache_mode",
    // sqlx, asyncpg, SQLAlchemy
    "async_fallback",
    "command_timeout",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepared_statement_cache_size",
    "prepare_threshold",
    "statement-cache-capacity",
    "timeout",
    // node-postgres, postgres.js
    "connectiontimeoutmillis",
    "encoding",
    "fetch_types",
    "idle_timeout",
    "idletimeoutmillis",
    "keepalive",
    "max",
    "max_lifetime",
    "max_pipeline",
    "min",
    "prepare",
    "query_timeout",
    // Rails, Django, Ecto
    "advisory_locks",
    "checkout_timeout",
    "conn_health_checks",
    "conn_max_age",
    "insert_returning",
    "min_messages",
    "pool",
    "pool_size",
    "prepared_statements",
    "queue_interval",
    "queue_target",
    "reaping_frequency",
    "schema_search_path",
    "statement_limit",
    "variables",
];

/// What becomes of the parameter `name`.
pub(super) fn fate(name: &str) -> Fate {
    if let Some(name) = REFUSED.into_iter().find(|refused| *refused == name) {
        return Fate::Refused(name);
    }
    let is_tls = ["ssl", "gss", "krb"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    if is_tls || DROPPED.contains(&name) {
        return Fate::Dropped;
    }
    // A setting of an extension, such as app.user; sqlx's options[search_path].
    let is_setting = is_word(name) && (name.contains('.') || name.starts_with("options["));
    if is_setting || KEPT.contains(&name.to_ascii_lowercase().as_str()) {
        return Fate::Kept;
    }
    Fate::Unknown
}

/// Stands for a name that may be a part of a password.
pub(super) const NO_NAME: &str = "a parameter";

/// A name for an error. What is not a word may be a part of a password.
pub(super) fn shown(name: &str) -> String {
    if is_word(name) && name.len() <= 40 {
        format!("{name}=")
    } else {
        NO_NAME.to_owned()
    }
}

fn is_word(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kept_parameter_is_about_the_server_or_tls() {
        let mut names = KEPT.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEPT.len());
        for name in names {
            assert_eq!(fate(name), Fate::Kept, "{name}");
            assert!(
                !DROPPED.contains(&name) && !REFUSED.contains(&name),
                "{name}"
            );
        }
        for name in [
            "host",
            "hostname",
            "Host",
            "path",
            "socket",
            "socket_dir",
            "dbname",
            "url",
            "",
        ] {
            assert_eq!(fate(name), Fate::Unknown, "{name}");
        }
        for name in [
            "sslmode",
            "ssl-mode",
            "sslcertmode",
            "gssencmode",
            "krbsrvname",
            "hostaddr",
        ] {
            assert_eq!(fate(name), Fate::Dropped, "{name}");
        }
        for name in ["app.user", "options[search_path]", "TimeZone"] {
            assert_eq!(fate(name), Fate::Kept, "{name}");
        }
        assert_eq!(fate("service"), Fate::Refused("service"));
    }

    #[test]
    fn shows_no_name_that_may_be_a_password() {
        assert_eq!(shown("socket_dir"), "socket_dir=");
        assert_eq!(shown("hunter 2"), "a parameter");
        assert_eq!(shown(&"a".repeat(64)), "a parameter");
    }
}
