//! The desired state: for each requirement, a drift check and the SQL that converges it from any
//! starting point.
//!
//! `teesql_read` gets exactly the required privileges, because a client with the read secret must
//! never be able to write. `teesql_readwrite` gets at least the required ones. In a cluster,
//! `replication.rs` adds what `rewind` may do.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use wire::scram::Verifier;
use zeroize::Zeroizing;

use super::state::{Creator, CurrentState, HARMLESS_ROUTINE, ObjectKind, RoleState, Scope};
use super::{DesiredState, ManagedRole};
use super::{isolation, replication};

/// Names in one line. A database may have thousands of tables.
const MAX_NAMES: usize = 5;

/// The values of [`Requirement::kind`].
pub(crate) const KINDS: [&str; 10] = [
    "role",
    "attributes",
    "password",
    "memberships",
    "settings",
    "connection_limit",
    "schema",
    "privileges",
    "other_databases",
    "routines",
];

/// One requirement of the desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    /// The role exists.
    Exists(ManagedRole),
    /// The role can log in and has no special attributes.
    Attributes(ManagedRole),
    /// The role has the desired password.
    Password(ManagedRole),
    /// The role is a member of no other role.
    Memberships(ManagedRole),
    /// The role has no stored settings, neither for all databases nor for one.
    Settings(ManagedRole),
    /// The role has the desired connection limit.
    ConnectionLimit(ManagedRole),
    /// The schema `public` exists.
    Schema,
    /// PUBLIC cannot create objects in the schema. Otherwise any user could shadow functions and
    /// operators that other users call. [CVE-2018-1058]
    NoPublicCreate,
    /// The role has the required privileges.
    Privileges(ManagedRole, Scope),
    /// PUBLIC cannot enter databases that are not provisioned.
    OtherDatabases,
    /// `teesql_read` cannot call the built-in functions that write large objects or reach other sessions.
    Routines,
    /// `rewind` can do what pg_rewind needs.
    RewindAccess,
}

impl Requirement {
    /// All requirements, in an order in which they can be established.
    pub(super) fn all(desired: &DesiredState) -> Vec<Self> {
        use ManagedRole::{Read, ReadWrite};
        let mut requirements: Vec<Self> = Vec::new();
        requirements.extend(ManagedRole::CLIENTS.into_iter().flat_map(Self::of_role));
        requirements.extend([Requirement::Schema, Requirement::NoPublicCreate]);
        let kinds = [ObjectKind::Tables, ObjectKind::Sequences];
        let superusers = kinds.map(|kind| Scope::DefaultPrivileges(Creator::Superuser, kind));
        // teesql_readwrite owns the objects that it creates, and needs no privileges on them.
        let writers = kinds.map(|kind| Scope::DefaultPrivileges(Creator::ReadWrite, kind));
        let now = [
            Scope::Database,
            Scope::Schema,
            Scope::Table,
            Scope::Sequence,
            Scope::Routine,
        ];
        let read = now.into_iter().chain(superusers).chain(writers);
        requirements.extend(read.map(|scope| Requirement::Privileges(Read, scope)));
        let readwrite = now.into_iter().chain(superusers);
        requirements.extend(readwrite.map(|scope| Requirement::Privileges(ReadWrite, scope)));
        requirements.extend([Requirement::OtherDatabases, Requirement::Routines]);
        if desired.replication.is_some() {
            requirements.extend(ManagedRole::REPLICATION.into_iter().flat_map(Self::of_role));
            // After `OtherDatabases`, which closes a database that rewind enters.
            requirements.push(Requirement::RewindAccess);
        }
        requirements
    }

    /// What is required of each role.
    fn of_role(role: ManagedRole) -> [Self; 6] {
        [
            Requirement::Exists(role),
            Requirement::Attributes(role),
            Requirement::Password(role),
            Requirement::Memberships(role),
            Requirement::Settings(role),
            Requirement::ConnectionLimit(role),
        ]
    }

    /// The kind of requirement, for the metric of repairs: a closed list, [`KINDS`].
    pub(super) fn kind(self) -> &'static str {
        match self {
            Requirement::Exists(_) => "role",
            Requirement::Attributes(_) => "attributes",
            Requirement::Password(_) => "password",
            Requirement::Memberships(_) => "memberships",
            Requirement::Settings(_) => "settings",
            Requirement::ConnectionLimit(_) => "connection_limit",
            Requirement::Schema | Requirement::NoPublicCreate => "schema",
            Requirement::Privileges(..) | Requirement::RewindAccess => "privileges",
            Requirement::OtherDatabases => "other_databases",
            Requirement::Routines => "routines",
        }
    }

    /// A title for a comment in a script.
    pub(super) fn title(self) -> String {
        match self {
            Requirement::Exists(role) => format!("{}: the role", role.name()),
            Requirement::Attributes(role) => format!("{}: attributes", role.name()),
            Requirement::Password(role) => format!("{}: password, as a verifier", role.name()),
            Requirement::Memberships(role) => format!("{}: member of no other role", role.name()),
            Requirement::Settings(role) => format!("{}: no stored settings", role.name()),
            Requirement::ConnectionLimit(role) => format!("{}: connection limit", role.name()),
            Requirement::OtherDatabases => "databases that are not provisioned".to_owned(),
            Requirement::Routines => "built-in functions that PUBLIC must not call".to_owned(),
            Requirement::RewindAccess => "rewind: what pg_rewind needs".to_owned(),
            Requirement::Schema => "schema public".to_owned(),
            Requirement::NoPublicCreate => "schema public: no CREATE for PUBLIC".to_owned(),
            Requirement::Privileges(role, scope) => {
                let what = match scope {
                    Scope::Database => "the database",
                    Scope::Schema => "schema public",
                    Scope::Table => "tables and views",
                    Scope::Sequence => "sequences",
                    Scope::Routine => "routines that can do no more than their caller",
                    Scope::DefaultPrivileges(Creator::Superuser, ObjectKind::Tables) => {
                        "future tables of postgres"
                    }
                    Scope::DefaultPrivileges(Creator::Superuser, ObjectKind::Sequences) => {
                        "future sequences of postgres"
                    }
                    Scope::DefaultPrivileges(Creator::ReadWrite, ObjectKind::Tables) => {
                        "future tables of teesql_readwrite"
                    }
                    Scope::DefaultPrivileges(Creator::ReadWrite, ObjectKind::Sequences) => {
                        "future sequences of teesql_readwrite"
                    }
                };
                format!("{}: {what}", role.name())
            }
        }
    }

    /// The differences between `state` and this requirement, one line each.
    pub(super) fn differences(self, state: &CurrentState, desired: &DesiredState) -> Vec<String> {
        let line = |role: ManagedRole, difference: Option<&str>| {
            let line = difference.map(|difference| format!("{}: {difference}", role.name()));
            line.into_iter().collect()
        };
        match self {
            Requirement::Exists(role) => {
                let missing = !state.role(role).exists;
                line(role, missing.then_some("the role does not exist"))
            }
            Requirement::Attributes(role) => attribute_differences(role, state.role(role)),
            Requirement::Password(role) => {
                line(role, password_difference(role, state.role(role), desired))
            }
            Requirement::Memberships(role) => {
                let roles = &state.role(role).memberships;
                let member = |roles| format!("{}: is a member of {roles}", role.name());
                join_names(roles.iter().map(String::as_str))
                    .map(member)
                    .into_iter()
                    .collect()
            }
            Requirement::Settings(role) => isolation::setting_differences(role, state),
            Requirement::ConnectionLimit(role) => {
                let difference = isolation::limit_difference(role, state, desired);
                line(role, difference.as_deref())
            }
            Requirement::OtherDatabases if desired.options.allow_other_databases => Vec::new(),
            Requirement::OtherDatabases => isolation::database_differences(state),
            Requirement::Routines => isolation::routine_differences(state),
            Requirement::RewindAccess => replication::differences(state),
            Requirement::Schema => {
                let is_schema = |object: &super::state::Object| object.scope == Scope::Schema;
                let missing = !state.objects.iter().any(is_schema);
                missing
                    .then(|| "schema public does not exist".to_owned())
                    .into_iter()
                    .collect()
            }
            Requirement::NoPublicCreate => {
                let open = state.objects.iter().any(|object| object.public_creates);
                open.then(|| "PUBLIC has CREATE on schema public".to_owned())
                    .into_iter()
                    .collect()
            }
            Requirement::Privileges(role, scope) => privilege_differences(role, scope, state),
        }
    }

    /// The SQL that establishes this requirement from any starting point. It ends with a newline and
    /// contains no password.
    pub(super) fn sql(self, desired: &DesiredState) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Requirement::Exists(role) => create_role_sql(role),
            Requirement::Attributes(role) => format!(
                "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {} \
                 NOBYPASSRLS VALID UNTIL 'infinity';\n",
                role.name(),
                if role == ManagedRole::Replicator {
                    "REPLICATION"
                } else {
                    "NOREPLICATION"
                },
            ),
            Requirement::Password(role) => desired.verifier(role).map_or_else(String::new, |v| {
                let verifier = Zeroizing::new(escape_literal(&v.to_text()));
                format!("ALTER ROLE {} PASSWORD {};\n", role.name(), *verifier)
            }),
            Requirement::Memberships(role) => revoke_memberships_sql(role),
            Requirement::Settings(role) => isolation::reset_settings_sql(role),
            Requirement::ConnectionLimit(role) => isolation::limit_sql(role, desired),
            Requirement::OtherDatabases if desired.options.allow_other_databases => String::new(),
            Requirement::OtherDatabases => isolation::close_databases_sql(),
            Requirement::Routines => isolation::restrict_routines_sql(),
            Requirement::RewindAccess => replication::grant_sql(),
            Requirement::Schema => "CREATE SCHEMA IF NOT EXISTS public;\n".to_owned(),
            Requirement::NoPublicCreate => {
                "REVOKE CREATE ON SCHEMA public FROM PUBLIC;\n".to_owned()
            }
            Requirement::Privileges(role, scope) => grant_sql(role, scope, desired),
        })
    }
}

fn attribute_differences(role: ManagedRole, current: &RoleState) -> Vec<String> {
    let replicates = role == ManagedRole::Replicator;
    [
        (!current.can_login, "may not log in"),
        (current.superuser, "is SUPERUSER"),
        (current.createdb, "has CREATEDB"),
        (current.createrole, "has CREATEROLE"),
        (current.replication && !replicates, "has REPLICATION"),
        (!current.replication && replicates, "lacks REPLICATION"),
        (current.bypassrls, "has BYPASSRLS"),
        (current.expires, "has a password that expires"),
    ]
    .into_iter()
    .filter(|(differs, _)| *differs)
    .map(|(_, what)| format!("{}: {what}", role.name()))
    .collect()
}

fn password_difference(
    role: ManagedRole,
    current: &RoleState,
    desired: &DesiredState,
) -> Option<&'static str> {
    let Some(stored) = &current.verifier else {
        return Some("has no password");
    };
    match Verifier::parse(stored) {
        None => Some("has a password that is not stored as SCRAM-SHA-256"),
        Some(verifier)
            if desired
                .salted_password(role)
                .is_none_or(|(password, _)| verifier.matches(password)) =>
        {
            None
        }
        Some(_) => Some("has another password"),
    }
}

fn privilege_differences(role: ManagedRole, scope: Scope, state: &CurrentState) -> Vec<String> {
    let objects = || state.objects.iter().filter(|object| object.scope == scope);
    let missing = required_privileges(role, scope)
        .iter()
        .filter_map(|privilege| {
            let lacking =
                objects().filter(|o| !o.privileges(role).iter().any(|held| held == privilege));
            let names = join_names(lacking.map(|object| object.name.as_str()))?;
            Some(format!("{}: lacks {privilege} on {names}", role.name()))
        });
    let mut excess: Vec<&String> = objects()
        .flat_map(|object| object.all_privileges(role))
        .filter(|privilege| is_forbidden(role, scope, privilege))
        .collect();
    excess.sort_unstable();
    excess.dedup();
    let excess = excess.into_iter().filter_map(|privilege| {
        let having = objects().filter(|o| o.all_privileges(role).any(|held| held == privilege));
        let names = join_names(having.map(|object| object.name.as_str()))?;
        Some(format!("{}: has {privilege} on {names}", role.name()))
    });
    missing.chain(excess).collect()
}

/// The privileges that a role must have on an object.
fn required_privileges(role: ManagedRole, scope: Scope) -> &'static [&'static str] {
    match (scope, role) {
        // They read files and WAL, and no objects.
        (_, ManagedRole::Replicator | ManagedRole::Rewind) => &[],
        (Scope::Database, _) => &["CONNECT"],
        (Scope::Schema, ManagedRole::Read) => &["USAGE"],
        (Scope::Schema, ManagedRole::ReadWrite) => &["USAGE", "CREATE"],
        (Scope::Table | Scope::DefaultPrivileges(_, ObjectKind::Tables), ManagedRole::Read) => {
            &["SELECT"]
        }
        (
            Scope::Table | Scope::DefaultPrivileges(_, ObjectKind::Tables),
            ManagedRole::ReadWrite,
        ) => &["SELECT", "INSERT", "UPDATE", "DELETE"],
        (
            Scope::Sequence | Scope::DefaultPrivileges(_, ObjectKind::Sequences),
            ManagedRole::Read,
        ) => &["SELECT"],
        (
            Scope::Sequence | Scope::DefaultPrivileges(_, ObjectKind::Sequences),
            ManagedRole::ReadWrite,
        ) => &["SELECT", "USAGE"],
        (Scope::Routine, _) => &["EXECUTE"],
    }
}

/// Whether a role must not have this privilege.
fn is_forbidden(role: ManagedRole, scope: Scope, privilege: &str) -> bool {
    match scope {
        // CREATE on a database allows new schemas and extensions.
        Scope::Database => privilege == "CREATE",
        Scope::Schema => role == ManagedRole::Read && privilege == "CREATE",
        Scope::Table | Scope::Sequence | Scope::DefaultPrivileges(..) => {
            role == ManagedRole::Read && !required_privileges(role, scope).contains(&privilege)
        }
        Scope::Routine => false,
    }
}

fn grant_sql(role: ManagedRole, scope: Scope, desired: &DesiredState) -> String {
    let (prefix, on) = match scope {
        Scope::Database => (
            "",
            format!("DATABASE {}", escape_identifier(&desired.database)),
        ),
        Scope::Schema => ("", "SCHEMA public".to_owned()),
        Scope::Table => ("", "ALL TABLES IN SCHEMA public".to_owned()),
        Scope::Sequence => ("", "ALL SEQUENCES IN SCHEMA public".to_owned()),
        Scope::Routine => return grant_routines_sql(role),
        Scope::DefaultPrivileges(creator, kind) => {
            let prefix = match creator {
                Creator::Superuser => {
                    "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public "
                }
                Creator::ReadWrite => {
                    "ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public "
                }
            };
            let kind = match kind {
                ObjectKind::Tables => "TABLES",
                ObjectKind::Sequences => "SEQUENCES",
            };
            (prefix, kind.to_owned())
        }
    };
    let name = role.name();
    // CASCADE also revokes what the role has granted to others.
    let revoke = match (scope, role) {
        (Scope::Database, _) | (Scope::Schema, ManagedRole::Read) => {
            format!("REVOKE CREATE ON {on} FROM {name} CASCADE;\n")
        }
        (Scope::Table | Scope::Sequence | Scope::DefaultPrivileges(..), ManagedRole::Read) => {
            format!("{prefix}REVOKE ALL ON {on} FROM {name} CASCADE;\n")
        }
        _ => String::new(),
    };
    let privileges = required_privileges(role, scope).join(", ");
    format!("{revoke}{prefix}GRANT {privileges} ON {on} TO {name};\n")
}

fn create_role_sql(role: ManagedRole) -> String {
    let name = role.name();
    format!(
        "DO $do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
    CREATE ROLE {name};
  END IF;
END $do$;
"
    )
}

/// Revokes every membership. Since PostgreSQL 16 a membership belongs to its grantor, and REVOKE
/// without GRANTED BY only revokes those that the current user has granted.
fn revoke_memberships_sql(role: ManagedRole) -> String {
    let name = role.name();
    format!(
        "DO $do$ DECLARE revoke text; BEGIN
  FOR revoke IN
    SELECT format('REVOKE %I FROM {name}', pg_get_userbyid(roleid))
           || CASE WHEN current_setting('server_version_num')::int >= 160000
                   THEN format(' GRANTED BY %I', pg_get_userbyid(grantor)) ELSE '' END
      FROM pg_auth_members WHERE member = (SELECT oid FROM pg_roles WHERE rolname = '{name}')
  LOOP
    EXECUTE revoke;
  END LOOP;
END $do$;
"
    )
}

fn grant_routines_sql(role: ManagedRole) -> String {
    let name = role.name();
    format!(
        "DO $do$ DECLARE routine text; BEGIN
  FOR routine IN
    SELECT p.oid::regprocedure FROM pg_proc p
     WHERE {HARMLESS_ROUTINE}
     AND NOT EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
                      WHERE grantee IN (0, (SELECT oid FROM pg_roles WHERE rolname = '{name}')))
  LOOP
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO {name}', routine);
  END LOOP;
END $do$;
"
    )
}

/// Joins names to `a, b and 7 more`. `None` without names.
pub(super) fn join_names<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<String> {
    let shown: Vec<&str> = names.by_ref().take(MAX_NAMES).collect();
    if shown.is_empty() {
        return None;
    }
    let shown = shown.join(", ");
    Some(match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    })
}
