//! What has to be so: for each thing, how to tell that it is not, and the SQL
//! that makes it so whatever it was.
//!
//! `teesql_read` gets exactly what it is to have, since whoever holds the read
//! secret must never write; `teesql_readwrite` gets at least that.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use wire::scram::Verifier;
use zeroize::Zeroizing;

use super::state::{Creator, HARMLESS_ROUTINE, Made, RoleState, Scope, State};
use super::{Login, Wanted};

/// Names in one line; a database may have thousands of tables.
const NAMES: usize = 5;

/// One thing that has to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// The role exists.
    Exists(Login),
    /// It may log in, and is nothing special.
    Attributes(Login),
    /// It has the wanted password.
    Password(Login),
    /// It has no other role's privileges.
    Memberships(Login),
    /// There is a schema `public`.
    Schema,
    /// Not everybody may create in it: who creates there can put a function or
    /// an operator in other people's way. [CVE-2018-1058]
    NoPublicCreate,
    /// It has the privileges that it is to have.
    Privileges(Login, Scope),
}

impl Aim {
    /// All of them, in the order in which they can be reached.
    pub(super) fn all() -> Vec<Self> {
        use Login::{Read, ReadWrite};
        let mut aims: Vec<Self> = Login::ALL
            .into_iter()
            .flat_map(|login| {
                [
                    Aim::Exists(login),
                    Aim::Attributes(login),
                    Aim::Password(login),
                    Aim::Memberships(login),
                ]
            })
            .collect();
        aims.extend([Aim::Schema, Aim::NoPublicCreate]);
        let kinds = [Made::Tables, Made::Sequences];
        let superusers = kinds.map(|kind| Scope::Future(Creator::Superuser, kind));
        // What teesql_readwrite makes is its own.
        let writers = kinds.map(|kind| Scope::Future(Creator::ReadWrite, kind));
        let now = [
            Scope::Database,
            Scope::Schema,
            Scope::Table,
            Scope::Sequence,
            Scope::Routine,
        ];
        let read = now.into_iter().chain(superusers).chain(writers);
        aims.extend(read.map(|scope| Aim::Privileges(Read, scope)));
        let readwrite = now.into_iter().chain(superusers);
        aims.extend(readwrite.map(|scope| Aim::Privileges(ReadWrite, scope)));
        aims
    }

    /// What it is about, for a comment.
    pub(super) fn title(self) -> String {
        match self {
            Aim::Exists(login) => format!("{}: the role", login.name()),
            Aim::Attributes(login) => format!("{}: attributes", login.name()),
            Aim::Password(login) => format!("{}: password, as a verifier", login.name()),
            Aim::Memberships(login) => format!("{}: member of no other role", login.name()),
            Aim::Schema => "schema public".to_owned(),
            Aim::NoPublicCreate => "schema public: not everybody may create in it".to_owned(),
            Aim::Privileges(login, scope) => {
                let what = match scope {
                    Scope::Database => "the database",
                    Scope::Schema => "schema public",
                    Scope::Table => "tables and views",
                    Scope::Sequence => "sequences",
                    Scope::Routine => "routines that can do no more than their caller",
                    Scope::Future(Creator::Superuser, Made::Tables) => "tables of postgres to come",
                    Scope::Future(Creator::Superuser, Made::Sequences) => {
                        "sequences of postgres to come"
                    }
                    Scope::Future(Creator::ReadWrite, Made::Tables) => {
                        "tables of teesql_readwrite to come"
                    }
                    Scope::Future(Creator::ReadWrite, Made::Sequences) => {
                        "sequences of teesql_readwrite to come"
                    }
                };
                format!("{}: {what}", login.name())
            }
        }
    }

    /// How one can tell that it is not so, a line each; empty if it is so.
    pub(super) fn differences(self, state: &State, wanted: &Wanted) -> Vec<String> {
        let of = |login: Login, found: Option<&str>| {
            let line = found.map(|found| format!("{}: {found}", login.name()));
            line.into_iter().collect()
        };
        match self {
            Aim::Exists(login) => {
                let missing = !state.role(login).exists;
                of(login, missing.then_some("the role does not exist"))
            }
            Aim::Attributes(login) => attributes(login, state.role(login)),
            Aim::Password(login) => of(login, password(state.role(login), wanted, login)),
            Aim::Memberships(login) => {
                let roles = &state.role(login).memberships;
                let member = |roles| format!("{}: is a member of {roles}", login.name());
                names(roles.iter().map(String::as_str))
                    .map(member)
                    .into_iter()
                    .collect()
            }
            Aim::Schema => {
                let is_schema = |object: &super::state::Object| object.scope == Scope::Schema;
                let missing = !state.objects.iter().any(is_schema);
                missing
                    .then(|| "schema public does not exist".to_owned())
                    .into_iter()
                    .collect()
            }
            Aim::NoPublicCreate => {
                let open = state.objects.iter().any(|object| object.public_creates);
                open.then(|| "everybody has CREATE on schema public".to_owned())
                    .into_iter()
                    .collect()
            }
            Aim::Privileges(login, scope) => privileges(login, scope, state),
        }
    }

    /// Makes it so, whatever it was. Ends with a line end, and holds no password.
    pub(super) fn sql(self, wanted: &Wanted) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Aim::Exists(login) => create(login),
            Aim::Attributes(login) => format!(
                "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION \
                 NOBYPASSRLS VALID UNTIL 'infinity';\n",
                login.name()
            ),
            Aim::Password(login) => {
                let verifier = wanted.verifier(login).to_text();
                let verifier = Zeroizing::new(escape_literal(&verifier));
                format!("ALTER ROLE {} PASSWORD {};\n", login.name(), *verifier)
            }
            Aim::Memberships(login) => leave_roles(login),
            Aim::Schema => "CREATE SCHEMA IF NOT EXISTS public;\n".to_owned(),
            Aim::NoPublicCreate => "REVOKE CREATE ON SCHEMA public FROM PUBLIC;\n".to_owned(),
            Aim::Privileges(login, scope) => grant(login, scope, wanted),
        })
    }
}

fn attributes(login: Login, role: &RoleState) -> Vec<String> {
    [
        (!role.login, "may not log in"),
        (role.superuser, "is SUPERUSER"),
        (role.createdb, "has CREATEDB"),
        (role.createrole, "has CREATEROLE"),
        (role.replication, "has REPLICATION"),
        (role.bypassrls, "has BYPASSRLS"),
        (role.expires, "has a password that expires"),
    ]
    .into_iter()
    .filter(|(differs, _)| *differs)
    .map(|(_, what)| format!("{}: {what}", login.name()))
    .collect()
}

fn password(role: &RoleState, wanted: &Wanted, login: Login) -> Option<&'static str> {
    let Some(stored) = &role.verifier else {
        return Some("has no password");
    };
    match Verifier::parse(stored) {
        None => Some("has a password that is not kept as SCRAM-SHA-256"),
        Some(verifier) if verifier.matches(wanted.password(login)) => None,
        Some(_) => Some("has another password"),
    }
}

fn privileges(login: Login, scope: Scope, state: &State) -> Vec<String> {
    let objects = || state.objects.iter().filter(|object| object.scope == scope);
    let missing = wanted_on(login, scope).iter().filter_map(|privilege| {
        let lacking = objects().filter(|o| !o.held(login).iter().any(|held| held == privilege));
        let names = names(lacking.map(|object| object.name.as_str()))?;
        Some(format!("{}: lacks {privilege} on {names}", login.name()))
    });
    let mut excess: Vec<&String> = objects()
        .flat_map(|object| object.held_anywhere(login))
        .filter(|privilege| is_too_much(login, scope, privilege))
        .collect();
    excess.sort_unstable();
    excess.dedup();
    let excess = excess.into_iter().filter_map(|privilege| {
        let having = objects().filter(|o| o.held_anywhere(login).any(|held| held == privilege));
        let names = names(having.map(|object| object.name.as_str()))?;
        Some(format!("{}: has {privilege} on {names}", login.name()))
    });
    missing.chain(excess).collect()
}

/// The privileges that a role is to have.
fn wanted_on(login: Login, scope: Scope) -> &'static [&'static str] {
    match (scope, login) {
        (Scope::Database, _) => &["CONNECT"],
        (Scope::Schema, Login::Read) => &["USAGE"],
        (Scope::Schema, Login::ReadWrite) => &["USAGE", "CREATE"],
        (Scope::Table | Scope::Future(_, Made::Tables), Login::Read) => &["SELECT"],
        (Scope::Table | Scope::Future(_, Made::Tables), Login::ReadWrite) => {
            &["SELECT", "INSERT", "UPDATE", "DELETE"]
        }
        (Scope::Sequence | Scope::Future(_, Made::Sequences), Login::Read) => &["SELECT"],
        (Scope::Sequence | Scope::Future(_, Made::Sequences), Login::ReadWrite) => {
            &["SELECT", "USAGE"]
        }
        (Scope::Routine, _) => &["EXECUTE"],
    }
}

/// Privileges that a role must not have.
fn is_too_much(login: Login, scope: Scope, privilege: &str) -> bool {
    match scope {
        // Schemas of its own, and extensions.
        Scope::Database => privilege == "CREATE",
        Scope::Schema => login == Login::Read && privilege == "CREATE",
        Scope::Table | Scope::Sequence | Scope::Future(..) => {
            login == Login::Read && !wanted_on(login, scope).contains(&privilege)
        }
        Scope::Routine => false,
    }
}

fn grant(login: Login, scope: Scope, wanted: &Wanted) -> String {
    let (prefix, on) = match scope {
        Scope::Database => (
            "",
            format!("DATABASE {}", escape_identifier(&wanted.database)),
        ),
        Scope::Schema => ("", "SCHEMA public".to_owned()),
        Scope::Table => ("", "ALL TABLES IN SCHEMA public".to_owned()),
        Scope::Sequence => ("", "ALL SEQUENCES IN SCHEMA public".to_owned()),
        Scope::Routine => return grant_routines(login),
        Scope::Future(creator, made) => {
            let prefix = match creator {
                Creator::Superuser => {
                    "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public "
                }
                Creator::ReadWrite => {
                    "ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public "
                }
            };
            let made = match made {
                Made::Tables => "TABLES",
                Made::Sequences => "SEQUENCES",
            };
            (prefix, made.to_owned())
        }
    };
    let name = login.name();
    // CASCADE: what it has passed on goes too.
    let revoke = match (scope, login) {
        (Scope::Database, _) | (Scope::Schema, Login::Read) => {
            format!("REVOKE CREATE ON {on} FROM {name} CASCADE;\n")
        }
        (Scope::Table | Scope::Sequence | Scope::Future(..), Login::Read) => {
            format!("{prefix}REVOKE ALL ON {on} FROM {name} CASCADE;\n")
        }
        _ => String::new(),
    };
    let privileges = wanted_on(login, scope).join(", ");
    format!("{revoke}{prefix}GRANT {privileges} ON {on} TO {name};\n")
}

fn create(login: Login) -> String {
    let name = login.name();
    format!(
        "DO $do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
    CREATE ROLE {name};
  END IF;
END $do$;
"
    )
}

/// From PostgreSQL 16 on a membership is the grantor's, and without a word about
/// that only one's own is revoked.
fn leave_roles(login: Login) -> String {
    let name = login.name();
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

fn grant_routines(login: Login) -> String {
    let name = login.name();
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

/// `a, b and 7 more`; `None` for none.
fn names<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<String> {
    let shown: Vec<&str> = names.by_ref().take(NAMES).collect();
    if shown.is_empty() {
        return None;
    }
    let shown = shown.join(", ");
    Some(match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    })
}
