//! Everything as a script, for those who want to read it first, or to run it
//! where the sidecar cannot reach.

use std::fmt::Write as _;

use postgres_protocol::escape::escape_literal;
use zeroize::Zeroizing;

use super::desired::Aim;
use super::{LOCK, SETTINGS, Wanted};

const HEAD: &str = "\
-- Sets up teesql_read and teesql_readwrite: run it by psql, as the superuser postgres.
-- It holds the verifiers of their passwords: keep it to yourself.
\\set ON_ERROR_STOP on
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
";

pub(super) fn write(wanted: &Wanted) -> Zeroizing<String> {
    let mut script = Zeroizing::new(String::with_capacity(16 * 1024));
    script.push_str(HEAD);
    script.push_str(SETTINGS);
    script.push_str(&guard(&wanted.database));
    script.push_str(LOCK);
    for aim in Aim::all() {
        let _ = write!(script, "\n-- {}\n", aim.title());
        script.push_str(&aim.sql(wanted));
    }
    script.push_str("\nCOMMIT;\n");
    script
}

/// Grants on one database must not go with those in another one's schema. The
/// name stays outside of the dollar quotes, since it might hold some.
fn guard(database: &str) -> String {
    let database = escape_literal(database);
    format!(
        "SET LOCAL teesql.database = {database};
DO $do$ BEGIN
  IF current_database() <> current_setting('teesql.database') THEN
    RAISE EXCEPTION 'this script is for the database %', current_setting('teesql.database');
  END IF;
END $do$;
"
    )
}
