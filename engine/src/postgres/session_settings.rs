//! The settings that a new session begins with, as parameters of the StartupMessage.
//!
//! A parameter of the StartupMessage outranks everything that is stored in Postgres for a role
//! (`ALTER ROLE … SET`), which any client of the role can change. The parameters that are added here set
//! what changes the meaning of SQL, its results, or the life of a session to the values of the server or
//! of the database. What a client sets itself is never changed.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use wire::startup::Startup;
use wire::startup_options::parse_settings;

use super::superuser::{Error, Superuser};
use crate::auth::role::Role;

/// The settings that nothing stored for a role decides, the most important ones first.
pub(crate) const GUARDED: [&str; 30] = [
    "search_path",
    "standard_conforming_strings",
    "default_transaction_read_only",
    "statement_timeout",
    "transaction_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "synchronous_commit",
    "exit_on_error",
    "row_security",
    "default_transaction_isolation",
    "default_transaction_deferrable",
    "backslash_quote",
    "transform_null_equals",
    "array_nulls",
    "bytea_output",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "extra_float_digits",
    "xmloption",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "default_text_search_config",
    "gin_fuzzy_search_limit",
    "default_tablespace",
    "default_table_access_method",
    "client_min_messages",
];

/// Names that are not settings, or would change who is logged in.
const FORBIDDEN: [&str; 6] = [
    "user",
    "database",
    "options",
    "replication",
    "role",
    "session_authorization",
];

/// Maximum length of the settings of one role in bytes.
const MAX_ROLE_SETTINGS: usize = 2_000;

/// Settings that an operator wants for a role, as names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleSettings(Vec<(String, String)>);

impl FromStr for RoleSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_ROLE_SETTINGS {
            return Err(format!("expected at most {MAX_ROLE_SETTINGS} bytes"));
        }
        let wrong = || "expected -c NAME=VALUE, once or more".to_owned();
        let settings = parse_settings(text.as_bytes()).ok_or_else(wrong)?;
        let mut checked: Vec<(String, String)> = Vec::new();
        for (name, value) in settings {
            let name = String::from_utf8(name).map_err(|_| wrong())?;
            let value = String::from_utf8(value).map_err(|_| wrong())?;
            if !is_setting_name(&name) || value.contains('\0') {
                return Err("expected names of letters, digits, underscores and dots".to_owned());
            }
            if FORBIDDEN
                .iter()
                .any(|forbidden| name.eq_ignore_ascii_case(forbidden))
            {
                return Err(format!("{name} is not a setting of a session"));
            }
            if checked
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(&name))
            {
                return Err(format!("{name} is set twice"));
            }
            checked.push((name, value));
        }
        Ok(Self(checked))
    }
}

fn is_setting_name(name: &str) -> bool {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
    let continues = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    name.starts_with(starts) && name.chars().all(continues)
}

/// What the configuration says about new sessions.
#[derive(Clone, Debug)]
pub struct SessionPolicy {
    /// Let the settings decide that are stored in Postgres for a role.
    pub allow_stored: bool,
    /// The settings of `teesql_read`.
    pub read: RoleSettings,
    /// The settings of `teesql_readwrite`.
    pub readwrite: RoleSettings,
    /// The search path of `postgres`. `None` leaves Postgres' own.
    pub operator_search_path: Option<String>,
    /// `client_connection_check_interval`. `None` leaves Postgres' own.
    pub client_check_interval: Option<Duration>,
}

/// The values of the [`GUARDED`] settings in one Postgres.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerSettings {
    /// Name and value, in the order of [`GUARDED`], without settings that this Postgres does not have.
    server: Vec<(&'static str, String)>,
    /// The values that differ in a database (`ALTER DATABASE … SET`).
    databases: HashMap<String, Vec<(&'static str, String)>>,
}

/// All settings as the superuser's new session has them. No operator is used, and names are qualified,
/// because the session still has Postgres' own search path.
const SETTINGS: &str = "SELECT name, reset_val, boot_val, source FROM pg_catalog.pg_settings";

/// The settings of the server's files, the effective one of each last.
const FILE_SETTINGS: &str =
    "SELECT name, setting FROM pg_file_settings WHERE applied AND name IS NOT NULL ORDER BY seqno";

/// The settings that are stored for all roles: of all databases, then of single ones.
const STORED_SETTINGS: &str = "\
SELECT coalesce(datname::text, ''), setdatabase = 0, item
  FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) AS item
 WHERE setrole = 0";

impl ServerSettings {
    /// Reads the values. `session` must have been opened by [`Superuser::connect_plain`]; it has the
    /// usual settings of a superuser's session afterwards.
    ///
    /// # Errors
    /// A query fails.
    pub(crate) async fn read(session: &Superuser) -> Result<Self, Error> {
        let client = session.client();
        let rows = client.query(SETTINGS, &[]).await?;
        session.apply_settings().await?;
        let mut stored: Vec<(Option<String>, &'static str, String)> = Vec::new();
        for row in client.query(STORED_SETTINGS, &[]).await? {
            let (database, global): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
            let item: String = row.try_get(2)?;
            let Some((name, value)) = item.split_once('=') else {
                continue;
            };
            if let Some(name) = guarded(name) {
                stored.push(((!global).then_some(database), name, value.to_owned()));
            }
        }
        let mut values = HashMap::new();
        let mut masked = Vec::new();
        for row in rows {
            let name: String = row.try_get(0)?;
            let Some(name) = guarded(&name) else { continue };
            let (reset, boot): (Option<String>, Option<String>) =
                (row.try_get(1)?, row.try_get(2)?);
            let source: String = row.try_get(3)?;
            if is_masked(&source) {
                masked.push(name);
                values.insert(name, boot);
            } else {
                values.insert(name, reset);
            }
        }
        if !masked.is_empty() {
            for row in client.query(FILE_SETTINGS, &[]).await? {
                let name: String = row.try_get(0)?;
                if let Some(name) = guarded(&name).filter(|name| masked.contains(name)) {
                    values.insert(name, row.try_get(1)?);
                }
            }
            let globals = stored
                .iter()
                .filter(|(database, name, _)| database.is_none() && masked.contains(name));
            values.extend(globals.map(|(_, name, value)| (*name, Some(value.clone()))));
        }
        let mut settings = Self::default();
        for name in GUARDED {
            if let Some(Some(value)) = values.remove(name) {
                settings.server.push((name, value));
            }
        }
        for (database, name, value) in stored {
            if let Some(database) = database {
                let of_database = settings.databases.entry(database).or_default();
                of_database.push((name, value));
            }
        }
        Ok(settings)
    }

    /// The values in `database`.
    fn in_database(&self, database: &str) -> impl Iterator<Item = (&'static str, &str)> {
        let of_database = self.databases.get(database).map_or(&[][..], Vec::as_slice);
        let values = self.server.iter().map(move |(name, value)| {
            let stored = of_database.iter().find(|(stored, _)| stored == name);
            (*name, stored.map_or(value.as_str(), |(_, value)| value))
        });
        values.filter(|(name, value)| is_valid_everywhere(name, value))
    }
}

/// Whether a value does not name an object that a database may lack. Postgres ignores such a value in its
/// files and in what is stored for a database, but refuses a session whose StartupMessage has it.
/// [PostgreSQL `guc.c`, set_config_option; `tablespace.c`, `tableamapi.c` and `ts_cache.c`, check hooks]
fn is_valid_everywhere(name: &str, value: &str) -> bool {
    match name {
        "default_tablespace" => value.is_empty(),
        "default_table_access_method" => value == "heap",
        "default_text_search_config" => value.starts_with("pg_catalog."),
        _ => true,
    }
}

/// Whether a value is not the server's, because something that is stored for the superuser or for its
/// database took precedence. [PostgreSQL `guc_tables.c`, GucSource_Names]
fn is_masked(source: &str) -> bool {
    matches!(
        source,
        "database" | "user" | "database user" | "client" | "session" | "interactive"
    )
}

fn guarded(name: &str) -> Option<&'static str> {
    GUARDED
        .into_iter()
        .find(|guarded| guarded.eq_ignore_ascii_case(name))
}

/// The settings of new sessions, shared by all threads.
pub(crate) struct SessionSettings {
    policy: SessionPolicy,
    /// `None` until they have been read for the first time.
    server: ArcSwapOption<ServerSettings>,
}

impl SessionSettings {
    pub(crate) fn new(policy: SessionPolicy) -> Arc<Self> {
        Arc::new(Self {
            policy,
            server: ArcSwapOption::empty(),
        })
    }

    /// Whether the values of the server have been read.
    pub(crate) fn knows_server(&self) -> bool {
        self.server.load().is_some()
    }

    /// Replaces the values of the server.
    pub(crate) fn set_server(&self, settings: ServerSettings) {
        if self.server.load().as_deref() != Some(&settings) {
            self.server.store(Some(Arc::new(settings)));
        }
    }

    /// Adds the parameters for a session of `role` that the client has not set itself. A client that fills
    /// its packet gets fewer: it harms only itself.
    pub(crate) fn add_to(&self, startup: &mut Startup, role: Option<Role>) {
        let mut taken = startup.setting_names();
        let database = startup.database().into_owned();
        let mut add = |name: &str, value: &str| {
            let name_bytes = name.as_bytes();
            if !taken
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name_bytes))
            {
                startup.add_parameter(name, value);
                taken.push(name_bytes.to_owned());
            }
        };
        let settings = match role {
            Some(Role::Read) => &self.policy.read,
            Some(Role::ReadWrite) => &self.policy.readwrite,
            Some(Role::Superuser) | None => &RoleSettings(Vec::new()),
        };
        for (name, value) in &settings.0 {
            add(name, value);
        }
        if let Some(interval) = self.policy.client_check_interval {
            let interval = interval.as_millis().clamp(1, 2_147_483_647).to_string();
            add("client_connection_check_interval", &interval);
        }
        match (role, &self.policy.operator_search_path) {
            (Some(Role::Superuser), Some(path)) => return add("search_path", path),
            (Some(Role::Superuser), None) | (None, _) => return,
            (Some(Role::Read), _) => add("default_transaction_read_only", "on"),
            (Some(Role::ReadWrite), _) => {}
        }
        if self.policy.allow_stored {
            return;
        }
        match self.server.load().as_deref() {
            Some(server) => {
                for (name, value) in server.in_database(&database) {
                    add(name, value);
                }
            }
            None => add("standard_conforming_strings", "on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::frontend::{AwaitStartup, StartupStep};

    use super::*;

    fn policy() -> SessionPolicy {
        SessionPolicy {
            allow_stored: false,
            read: RoleSettings::default(),
            readwrite: "-c lock_timeout=7s --search-path=app".parse().unwrap(),
            operator_search_path: Some("pg_catalog".to_owned()),
            client_check_interval: Some(Duration::from_secs(2)),
        }
    }

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        let mut packet = vec![0, 0, 0, 0, 0, 3, 0, 0];
        for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
            packet.extend_from_slice(text.as_bytes());
            packet.push(0);
        }
        packet.push(0);
        let length = u32::try_from(packet.len()).unwrap();
        packet[..4].copy_from_slice(&length.to_be_bytes());
        match AwaitStartup::new().advance(&packet) {
            StartupStep::Startup { message, .. } => message.to_owned(),
            _ => panic!("a StartupMessage"),
        }
    }

    /// The parameters that are added to those of a client.
    fn added(policy: SessionPolicy, client: &[(&str, &str)]) -> Vec<String> {
        let settings = SessionSettings::new(policy);
        settings.set_server(ServerSettings {
            server: vec![
                ("search_path", "public".to_owned()),
                ("lock_timeout", "0".to_owned()),
                ("DateStyle", "ISO, MDY".to_owned()),
            ],
            databases: [("d".to_owned(), vec![("DateStyle", "German".to_owned())])].into(),
        });
        let mut startup = startup(client);
        let role = Role::from_name(startup.role());
        settings.add_to(&mut startup, role);
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        let all = startup.parameters();
        all.skip(client.len())
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect()
    }

    #[test]
    fn sets_the_values_of_server_and_database() {
        let read = [("user", "teesql_read"), ("database", "d")];
        assert_eq!(
            added(policy(), &read),
            [
                "client_connection_check_interval=2000",
                "default_transaction_read_only=on",
                "search_path=public",
                "lock_timeout=0",
                "DateStyle=German",
            ]
        );
        let readwrite = [("user", "teesql_readwrite"), ("database", "other")];
        assert_eq!(
            added(policy(), &readwrite),
            [
                "lock_timeout=7s",
                "search_path=app",
                "client_connection_check_interval=2000",
                "DateStyle=ISO, MDY",
            ]
        );
    }

    #[test]
    fn what_the_client_sets_is_its_own() {
        let read = [
            ("user", "teesql_read"),
            ("datestyle", "SQL"),
            (
                "options",
                "-c Search_Path=x --lock-timeout=1 -c client_connection_check_interval=0",
            ),
            ("default_transaction_read_only", "off"),
        ];
        assert_eq!(added(policy(), &read), [""; 0]);
    }

    /// Postgres would refuse every session with such a parameter.
    #[test]
    fn a_value_that_names_an_object_is_not_sent() {
        let stored = |name: &'static str, value: &str| vec![(name, value.to_owned())];
        let settings = ServerSettings {
            server: vec![
                (
                    "default_text_search_config",
                    "pg_catalog.english".to_owned(),
                ),
                ("default_tablespace", "fast".to_owned()),
                ("default_table_access_method", "heap".to_owned()),
                ("lock_timeout", "0".to_owned()),
            ],
            databases: [
                ("a".to_owned(), stored("default_text_search_config", "mine")),
                ("b".to_owned(), stored("default_tablespace", "")),
                (
                    "c".to_owned(),
                    stored("default_table_access_method", "columnar"),
                ),
            ]
            .into(),
        };
        let names = |database| {
            let names = settings.in_database(database).map(|(name, _)| name);
            names.collect::<Vec<_>>()
        };
        let (search, tablespace, method, timeout) = (
            "default_text_search_config",
            "default_tablespace",
            "default_table_access_method",
            "lock_timeout",
        );
        assert_eq!(names("a"), [method, timeout]);
        assert_eq!(names("b"), [search, tablespace, method, timeout]);
        assert_eq!(names("c"), [search, timeout]);
        assert_eq!(names("d"), [search, method, timeout]);
    }

    #[test]
    fn operators_get_a_safe_search_path() {
        let operator = [("user", "postgres")];
        let expected = [
            "client_connection_check_interval=2000",
            "search_path=pg_catalog",
        ];
        assert_eq!(added(policy(), &operator), expected);
        let chosen = [("user", "postgres"), ("search_path", "public")];
        assert_eq!(added(policy(), &chosen), expected[..1]);
        let off = SessionPolicy {
            operator_search_path: None,
            client_check_interval: None,
            ..policy()
        };
        assert_eq!(added(off, &operator), [""; 0]);
    }

    #[test]
    fn stored_settings_decide_only_if_allowed() {
        let allowed = SessionPolicy {
            allow_stored: true,
            ..policy()
        };
        let readwrite = [("user", "teesql_readwrite"), ("database", "d")];
        let found = added(allowed, &readwrite);
        assert!(
            !found.iter().any(|setting| setting.starts_with("DateStyle")),
            "{found:?}"
        );
    }

    #[test]
    fn role_settings_are_validated() {
        let error = |text: &str| text.parse::<RoleSettings>().unwrap_err();
        for wrong in ["statement_timeout=1", "-c a", "-d 5", "-c a=1 b"] {
            assert_eq!(
                error(wrong),
                "expected -c NAME=VALUE, once or more",
                "{wrong}"
            );
        }
        assert_eq!(
            error("-c a;b=1"),
            "expected names of letters, digits, underscores and dots"
        );
        assert_eq!(
            error("-c Role=postgres"),
            "Role is not a setting of a session"
        );
        assert_eq!(error("-c a=1 -c A=2"), "A is set twice");
        assert_eq!(error(&"x".repeat(2_001)), "expected at most 2000 bytes");
        let settings = r"-c search_path=a,\ b --x.y=z"
            .parse::<RoleSettings>()
            .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = vec![pair("search_path", "a, b"), pair("x.y", "z")];
        assert_eq!(settings, RoleSettings(expected));
    }
}
