//! Writes the desired state as a psql script, for review, or for servers that the sidecar cannot
//! connect to. It must never contain a password.

use std::fmt::Write as _;

use postgres_protocol::escape::escape_literal;
use zeroize::Zeroizing;

use super::desired::Requirement;
use super::{DesiredState, LOCK, SETTINGS};

const HEAD: &str = "\
-- Sets up the roles of TeeSQL. Run it with psql as the superuser postgres.
-- It contains the verifiers of their passwords: keep it confidential.
\\set ON_ERROR_STOP on
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
";

pub(super) fn write(desired: &DesiredState) -> Zeroizing<String> {
    let mut script = Zeroizing::new(String::with_capacity(16 * 1024));
    script.push_str(HEAD);
    script.push_str(SETTINGS);
    script.push_str(&database_guard(&desired.database));
    script.push_str(LOCK);
    for requirement in Requirement::all(desired) {
        let sql = requirement.sql(desired);
        if !sql.is_empty() {
            let _ = write!(script, "\n-- {}\n", requirement.title());
            script.push_str(&sql);
        }
    }
    script.push_str("\nCOMMIT;\n");
    script
}

/// Stops the script in any other database, where it would grant privileges on the wrong schema. The
/// name is outside of the dollar quotes, because it may contain some itself.
fn database_guard(database: &str) -> String {
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
