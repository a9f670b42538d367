//! What is so: the two roles and who may do what, as Postgres' catalogs have it.
//!
//! Privileges are read from the access lists and not asked for with
//! `has_…_privilege`, which says yes to everything for a role that has become
//! superuser by mistake: each difference is to be seen by itself.

use tokio_postgres::{Row, Transaction};
use zeroize::Zeroizing;

use super::{Login, ProvisionError};

/// Who asks, and where.
pub(super) const SESSION: &str = "\
SELECT current_user::text, coalesce(rolsuper, false), pg_catalog.current_database()::text,
       pg_catalog.pg_is_in_recovery()
  FROM (SELECT) AS nothing
  LEFT JOIN pg_catalog.pg_roles ON rolname = current_user";

const ROLES: &str = "\
SELECT rolname::text, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication,
       rolbypassrls, coalesce(rolvaliduntil < 'infinity', false), rolpassword,
       ARRAY(SELECT DISTINCT pg_get_userbyid(roleid)::text FROM pg_auth_members
              WHERE member = pg_authid.oid ORDER BY 1)
  FROM pg_authid WHERE rolname IN ('teesql_read', 'teesql_readwrite')";

/// A row for each thing that privileges are held on. Those of a column are
/// apart: they may be too much, and are never enough.
///
/// A routine has a row if it can do no more than its caller: see
/// [`HARMLESS_ROUTINE`]; PUBLIC's privilege counts there.
const OBJECTS: &str = "\
WITH login AS (
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
  SELECT made.scope, made.name, defaclacl, NULL
    FROM (VALUES
           ('postgres tables', 'tables that postgres will make', 'postgres', 'r'),
           ('postgres sequences', 'sequences that postgres will make', 'postgres', 'S'),
           ('readwrite tables', 'tables that teesql_readwrite will make', 'teesql_readwrite', 'r'),
           ('readwrite sequences', 'sequences that teesql_readwrite will make', 'teesql_readwrite', 'S')
         ) AS made (scope, name, creator, kind)
    LEFT JOIN pg_default_acl
           ON defaclrole = (SELECT oid FROM pg_roles WHERE rolname = made.creator)
          AND defaclnamespace = to_regnamespace('public')
          AND defaclobjtype::text = made.kind
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
  FROM object, login
 ORDER BY scope, name COLLATE \"C\"";

/// A routine that can do no more than its caller: it runs as the caller, is
/// written in a trusted language, and belongs to no extension. Of any other one
/// whose owner took EXECUTE from PUBLIC it has to be assumed that this was meant.
pub(super) const HARMLESS_ROUTINE: &str = "\
p.pronamespace = to_regnamespace('public') AND NOT p.prosecdef
     AND (SELECT lanpltrusted FROM pg_language WHERE oid = p.prolang)
     AND NOT EXISTS (SELECT FROM pg_depend
                      WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')";

/// What privileges are held on, or will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Database,
    Schema,
    Table,
    Sequence,
    Routine,
    /// What a role will make.
    Future(Creator, Made),
}

/// Who makes things in `public`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creator {
    Superuser,
    ReadWrite,
}

/// What has default privileges here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
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
            "postgres tables" => Scope::Future(Creator::Superuser, Made::Tables),
            "postgres sequences" => Scope::Future(Creator::Superuser, Made::Sequences),
            "readwrite tables" => Scope::Future(Creator::ReadWrite, Made::Tables),
            "readwrite sequences" => Scope::Future(Creator::ReadWrite, Made::Sequences),
            _ => return None,
        })
    }
}

/// One of the two roles; the default is one that does not exist.
#[derive(Clone, Default)]
pub(super) struct RoleState {
    pub(super) exists: bool,
    pub(super) login: bool,
    pub(super) superuser: bool,
    pub(super) createdb: bool,
    pub(super) createrole: bool,
    pub(super) replication: bool,
    pub(super) bypassrls: bool,
    /// Its password is valid until some time only.
    pub(super) expires: bool,
    /// `rolpassword`.
    pub(super) verifier: Option<Zeroizing<String>>,
    /// Roles whose privileges it has too.
    pub(super) memberships: Vec<String>,
}

/// One thing and the privileges on it that each role was given.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) scope: Scope,
    /// As a person reads it, quoted where it has to be.
    pub(super) name: String,
    pub(super) read: Vec<String>,
    pub(super) readwrite: Vec<String>,
    /// What `teesql_read` was given on single columns.
    pub(super) read_columns: Vec<String>,
    /// The schema only: everybody may create in it.
    pub(super) public_creates: bool,
}

/// All that matters here.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) read: RoleState,
    pub(super) readwrite: RoleState,
    pub(super) objects: Vec<Object>,
}

impl State {
    pub(super) fn role(&self, login: Login) -> &RoleState {
        match login {
            Login::Read => &self.read,
            Login::ReadWrite => &self.readwrite,
        }
    }

    pub(super) async fn read(transaction: &Transaction<'_>) -> Result<Self, ProvisionError> {
        let mut state = Self::default();
        for row in transaction.query(ROLES, &[]).await? {
            let name: String = row.try_get(0)?;
            let role = RoleState::from_row(&row)?;
            match Login::ALL.into_iter().find(|login| login.name() == name) {
                Some(Login::Read) => state.read = role,
                Some(Login::ReadWrite) => state.readwrite = role,
                None => {}
            }
        }
        let objects = OBJECTS.replace("HARMLESS_ROUTINE", HARMLESS_ROUTINE);
        for row in transaction.query(&objects, &[]).await? {
            state.objects.extend(Object::from_row(&row)?);
        }
        Ok(state)
    }
}

impl RoleState {
    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            exists: true,
            login: row.try_get(1)?,
            superuser: row.try_get(2)?,
            createdb: row.try_get(3)?,
            createrole: row.try_get(4)?,
            replication: row.try_get(5)?,
            bypassrls: row.try_get(6)?,
            expires: row.try_get(7)?,
            verifier: row.try_get::<_, Option<String>>(8)?.map(Zeroizing::new),
            memberships: row.try_get(9)?,
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

    pub(super) fn held(&self, login: Login) -> &[String] {
        match login {
            Login::Read => &self.read,
            Login::ReadWrite => &self.readwrite,
        }
    }

    /// Including those on single columns.
    pub(super) fn held_anywhere(&self, login: Login) -> impl Iterator<Item = &String> {
        let columns: &[String] = match login {
            Login::Read => &self.read_columns,
            Login::ReadWrite => &[],
        };
        self.held(login).iter().chain(columns)
    }
}
