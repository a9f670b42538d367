//! The current state of the roles and their privileges, read from the system catalogs.
//!
//! Privileges are read from the access lists instead of `has_…_privilege()`, which returns true for
//! everything if the role is a superuser by mistake. Each difference must be visible separately.

use tokio_postgres::{Row, Transaction};
use zeroize::Zeroizing;

use super::isolation::{OPEN_DATABASE, RESTRICTED_ROUTINES, automatic_limits_sql};
use super::replication::REWIND_ACCESS;
use super::{ManagedRole, ProvisionError};

/// The current user and database.
pub(super) const SESSION: &str = "\
SELECT current_user::text, coalesce(rolsuper, false), pg_catalog.current_database()::text,
       pg_catalog.pg_is_in_recovery()
  FROM (SELECT) AS nothing
  LEFT JOIN pg_catalog.pg_roles ON rolname = current_user";

/// A role may change its own password and store its own settings, with values of any length. So no more of
/// them is read than a SCRAM verifier and a line of the log need: a longer verifier is cut, and so does not match.
const ROLES: &str = "\
SELECT rolname::text, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication,
       rolbypassrls, coalesce(rolvaliduntil < 'infinity', false), left(rolpassword, 1024),
       ARRAY(SELECT DISTINCT pg_get_userbyid(roleid)::text FROM pg_auth_members
              WHERE member = pg_authid.oid ORDER BY 1),
       rolconnlimit,
       ARRAY(SELECT DISTINCT left(split_part(item, '=', 1), 63) || CASE WHEN datname IS NULL THEN '' ELSE format(' in database %I', datname) END
               FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase,
                    unnest(setconfig) AS item
              WHERE setrole = pg_authid.oid ORDER BY 1 LIMIT 100)
  FROM pg_authid WHERE rolname IN ('teesql_read', 'teesql_readwrite', 'replicator', 'rewind')";

/// Returns a row for each object with privileges. Privileges on single columns are separate: they may
/// be forbidden, but never satisfy a requirement.
///
/// Only routines that can do no more than their caller have a row (see [`HARMLESS_ROUTINE`]). For
/// these, a privilege of PUBLIC counts.
const OBJECTS: &str = "\
WITH managed_role AS (
  SELECT (SELECT oid FROM pg_roles WHERE rolname = 'teesql_read') AS reader,
         (SELECT oid FROM pg_roles WHERE rolname = 'teesql_readwrite') AS writer
), object (scope, name, acl, columns) AS (
  SELECT 'database', format('database %I', datname),
         coalesce(datacl, acldefault('d', datdba)), NULL::aclitem[]
    FROM pg_database WHERE datname = current_database()
  UNION ALL
  SELECT 'schema', 'schema public', coalesce(nspacl, acldefault('n', nspowner)), NULL
    FROM pg_namespace WHERE nspname = 'public'
  UNION ALL
  SELECT CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, c.oid::regclass::text,
         coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner)),
         (SELECT array_agg(item) FROM pg_attribute, unnest(attacl) AS item
           WHERE attrelid = c.oid AND attacl IS NOT NULL)
    FROM pg_class c
   WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  UNION ALL
  SELECT 'routine', p.oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), NULL
    FROM pg_proc p WHERE HARMLESS_ROUTINE
  UNION ALL
  SELECT future.scope, future.name, defaclacl, NULL
    FROM (VALUES
           ('postgres tables', 'future tables of postgres', 'postgres', 'r'),
           ('postgres sequences', 'future sequences of postgres', 'postgres', 'S'),
           ('readwrite tables', 'future tables of teesql_readwrite', 'teesql_readwrite', 'r'),
           ('readwrite sequences', 'future sequences of teesql_readwrite', 'teesql_readwrite', 'S')
         ) AS future (scope, name, creator, kind)
    LEFT JOIN pg_default_acl
           ON defaclrole = (SELECT oid FROM pg_roles WHERE rolname = future.creator)
          AND defaclnamespace = to_regnamespace('public')
          AND defaclobjtype::text = future.kind
)
SELECT scope, name,
       ARRAY(SELECT DISTINCT privilege_type FROM aclexplode(acl)
              WHERE grantee = reader OR scope = 'routine' AND grantee = 0 ORDER BY 1),
       ARRAY(SELECT DISTINCT privilege_type FROM aclexplode(acl)
              WHERE grantee = writer OR scope = 'routine' AND grantee = 0 ORDER BY 1),
       ARRAY(SELECT DISTINCT privilege_type FROM aclexplode(columns)
              WHERE grantee = reader ORDER BY 1),
       scope = 'schema' AND EXISTS (SELECT FROM aclexplode(acl)
              WHERE grantee = 0 AND privilege_type = 'CREATE')
  FROM object, managed_role
 ORDER BY scope, name COLLATE \"C\"";

/// Returns the databases that clients must not enter, and what PUBLIC may do there.
const DATABASES: &str = "\
SELECT format('%I', datname),
       ARRAY(SELECT DISTINCT privilege_type FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))
              WHERE grantee = 0 ORDER BY 1)
  FROM pg_database d WHERE OPEN_DATABASE ORDER BY datname COLLATE \"C\"";

/// Returns the restricted built-in functions, and whether PUBLIC, `teesql_read` and `teesql_readwrite` may
/// call them.
const ROUTINES: &str = "\
SELECT p.oid::regprocedure::text, bool_or(grantee = 0),
       bool_or(coalesce(grantee = (SELECT oid FROM pg_roles WHERE rolname = 'teesql_read'), false)),
       bool_or(coalesce(grantee = (SELECT oid FROM pg_roles WHERE rolname = 'teesql_readwrite'), false))
  FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner)))
 WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN (RESTRICTED_ROUTINES)
 GROUP BY p.oid ORDER BY p.oid::regprocedure::text COLLATE \"C\"";

/// The condition for a routine that can do no more than its caller: it runs as the caller, is written
/// in a trusted language, and belongs to no extension. If the owner of any other routine has revoked
/// EXECUTE from PUBLIC, that must be assumed to be on purpose.
pub(super) const HARMLESS_ROUTINE: &str = "\
p.pronamespace = to_regnamespace('public') AND NOT p.prosecdef
     AND (SELECT lanpltrusted FROM pg_language WHERE oid = p.prolang)
     AND NOT EXISTS (SELECT FROM pg_depend
                      WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')";

/// A kind of object that privileges are granted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Database,
    Schema,
    Table,
    Sequence,
    Routine,
    /// The default privileges on objects that a role will create.
    DefaultPrivileges(Creator, ObjectKind),
}

/// A role that creates objects in `public`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creator {
    Superuser,
    ReadWrite,
}

/// A kind of object with default privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObjectKind {
    Tables,
    Sequences,
}

impl Scope {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "database" => Scope::Database,
            "schema" => Scope::Schema,
            "table" => Scope::Table,
            "sequence" => Scope::Sequence,
            "routine" => Scope::Routine,
            "postgres tables" => Scope::DefaultPrivileges(Creator::Superuser, ObjectKind::Tables),
            "postgres sequences" => {
                Scope::DefaultPrivileges(Creator::Superuser, ObjectKind::Sequences)
            }
            "readwrite tables" => Scope::DefaultPrivileges(Creator::ReadWrite, ObjectKind::Tables),
            "readwrite sequences" => {
                Scope::DefaultPrivileges(Creator::ReadWrite, ObjectKind::Sequences)
            }
            _ => return None,
        })
    }
}

/// The state of one role. The default is a role that does not exist.
#[derive(Clone, Default)]
pub(super) struct RoleState {
    pub(super) exists: bool,
    pub(super) can_login: bool,
    pub(super) superuser: bool,
    pub(super) createdb: bool,
    pub(super) createrole: bool,
    pub(super) replication: bool,
    pub(super) bypassrls: bool,
    /// The password has an expiry time.
    pub(super) expires: bool,
    /// `rolpassword`.
    pub(super) verifier: Option<Zeroizing<String>>,
    /// The roles that it is a member of.
    pub(super) memberships: Vec<String>,
    /// `rolconnlimit`; -1 is no limit.
    pub(super) connection_limit: i32,
    /// The names of its stored settings, with the database if they are for one.
    pub(super) settings: Vec<String>,
}

/// A database that clients must not enter.
#[derive(Clone)]
pub(super) struct OpenDatabase {
    pub(super) name: String,
    /// The privileges of PUBLIC.
    pub(super) public: Vec<String>,
}

/// A built-in function that `teesql_read` must not call, and who may call it.
#[derive(Clone)]
pub(super) struct RestrictedRoutine {
    pub(super) name: String,
    pub(super) public: bool,
    pub(super) reader: bool,
    pub(super) writer: bool,
}

/// An object and the privileges that each role was granted on it.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) scope: Scope,
    /// The name for messages, quoted where necessary.
    pub(super) name: String,
    pub(super) read: Vec<String>,
    pub(super) readwrite: Vec<String>,
    /// The privileges of `teesql_read` on single columns.
    pub(super) read_columns: Vec<String>,
    /// Whether PUBLIC has CREATE on it. Schemas only.
    pub(super) public_creates: bool,
}

/// The automatic connection limits of the roles.
#[derive(Clone, Copy, Default)]
pub(super) struct AutomaticLimits {
    pub(super) read: i32,
    pub(super) readwrite: i32,
    pub(super) replicator: i32,
    pub(super) rewind: i32,
}

impl AutomaticLimits {
    pub(super) fn of(self, role: ManagedRole) -> i32 {
        match role {
            ManagedRole::Read => self.read,
            ManagedRole::ReadWrite => self.readwrite,
            ManagedRole::Replicator => self.replicator,
            ManagedRole::Rewind => self.rewind,
        }
    }
}

/// The current state of everything that is provisioned.
#[derive(Clone, Default)]
pub(super) struct CurrentState {
    pub(super) read: RoleState,
    pub(super) readwrite: RoleState,
    pub(super) replicator: RoleState,
    pub(super) rewind: RoleState,
    pub(super) objects: Vec<Object>,
    pub(super) open_databases: Vec<OpenDatabase>,
    pub(super) restricted_routines: Vec<RestrictedRoutine>,
    /// What pg_rewind needs and `rewind` lacks.
    pub(super) rewind_lacks: Vec<String>,
    pub(super) automatic_limits: AutomaticLimits,
}

impl CurrentState {
    pub(super) fn role(&self, role: ManagedRole) -> &RoleState {
        match role {
            ManagedRole::Read => &self.read,
            ManagedRole::ReadWrite => &self.readwrite,
            ManagedRole::Replicator => &self.replicator,
            ManagedRole::Rewind => &self.rewind,
        }
    }

    pub(super) async fn read(transaction: &Transaction<'_>) -> Result<Self, ProvisionError> {
        let mut state = Self::default();
        for row in transaction.query(ROLES, &[]).await? {
            let role = RoleState::from_row(&row)?;
            match ManagedRole::from_name(row.try_get(0)?) {
                Some(ManagedRole::Read) => state.read = role,
                Some(ManagedRole::ReadWrite) => state.readwrite = role,
                Some(ManagedRole::Replicator) => state.replicator = role,
                Some(ManagedRole::Rewind) => state.rewind = role,
                None => {}
            }
        }
        for row in transaction.query(REWIND_ACCESS, &[]).await? {
            state.rewind_lacks.push(row.try_get(0)?);
        }
        let objects = OBJECTS.replace("HARMLESS_ROUTINE", HARMLESS_ROUTINE);
        for row in transaction.query(&objects, &[]).await? {
            state.objects.extend(Object::from_row(&row)?);
        }
        state.read_isolation(transaction).await?;
        Ok(state)
    }
}

impl CurrentState {
    /// Reads what keeps clients apart.
    async fn read_isolation(
        &mut self,
        transaction: &Transaction<'_>,
    ) -> Result<(), ProvisionError> {
        let databases = DATABASES.replace("OPEN_DATABASE", OPEN_DATABASE);
        for row in transaction.query(&databases, &[]).await? {
            self.open_databases.push(OpenDatabase {
                name: row.try_get(0)?,
                public: row.try_get(1)?,
            });
        }
        let routines = ROUTINES.replace("RESTRICTED_ROUTINES", RESTRICTED_ROUTINES);
        for row in transaction.query(&routines, &[]).await? {
            self.restricted_routines.push(RestrictedRoutine {
                name: row.try_get(0)?,
                public: row.try_get(1)?,
                reader: row.try_get(2)?,
                writer: row.try_get(3)?,
            });
        }
        let limits = transaction.query_one(&automatic_limits_sql(), &[]).await?;
        self.automatic_limits = AutomaticLimits {
            read: limits.try_get(0)?,
            readwrite: limits.try_get(1)?,
            replicator: limits.try_get(2)?,
            rewind: limits.try_get(3)?,
        };
        Ok(())
    }
}

impl RoleState {
    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            exists: true,
            can_login: row.try_get(1)?,
            superuser: row.try_get(2)?,
            createdb: row.try_get(3)?,
            createrole: row.try_get(4)?,
            replication: row.try_get(5)?,
            bypassrls: row.try_get(6)?,
            expires: row.try_get(7)?,
            verifier: row.try_get::<_, Option<String>>(8)?.map(Zeroizing::new),
            memberships: row.try_get(9)?,
            connection_limit: row.try_get(10)?,
            settings: row.try_get(11)?,
        })
    }
}

impl Object {
    fn from_row(row: &Row) -> Result<Option<Self>, tokio_postgres::Error> {
        let Some(scope) = Scope::parse(row.try_get(0)?) else {
            return Ok(None);
        };
        Ok(Some(Self {
            scope,
            name: row.try_get(1)?,
            read: row.try_get(2)?,
            readwrite: row.try_get(3)?,
            read_columns: row.try_get(4)?,
            public_creates: row.try_get(5)?,
        }))
    }

    /// The privileges of a role on the whole object.
    pub(super) fn privileges(&self, role: ManagedRole) -> &[String] {
        match role {
            ManagedRole::Read => &self.read,
            ManagedRole::ReadWrite => &self.readwrite,
            ManagedRole::Replicator | ManagedRole::Rewind => &[],
        }
    }

    /// The privileges of a role on the object, including those on single columns.
    pub(super) fn all_privileges(&self, role: ManagedRole) -> impl Iterator<Item = &String> {
        let columns: &[String] = match role {
            ManagedRole::Read => &self.read_columns,
            ManagedRole::ReadWrite | ManagedRole::Replicator | ManagedRole::Rewind => &[],
        };
        self.privileges(role).iter().chain(columns)
    }
}
