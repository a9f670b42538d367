//! Tests that the script that `--sql` prints has the same effect in psql as the command.

use super::{
    DATABASE, EXISTING_OBJECTS, assert_no_differences, repair, run_command, state,
    unprovisioned_cluster,
};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD};

pub(super) fn sql_script_is_equivalent(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let (by_command, by_script) = (
            unprovisioned_cluster(fixture, &server, &[]),
            unprovisioned_cluster(fixture, &server, &[]),
        );
        for cluster in [&by_command, &by_script] {
            cluster.sql(DATABASE, EXISTING_OBJECTS);
            cluster.sql(DATABASE, "GRANT CREATE ON SCHEMA public TO PUBLIC");
        }
        repair(&by_command);
        let mut command = by_script.provision_command(DATABASE);
        // `--sql` does not connect.
        command.arg("--sql").env("TEESQL_POSTGRES", "127.0.0.1:1");
        let script = run_command(command);
        assert_eq!((script.code, script.err.as_str()), (Some(0), ""));
        for password in [READ_PASSWORD, READWRITE_PASSWORD] {
            assert!(!script.out.contains(password));
        }
        let file = fixture.harness.unique_path("provision.sql");
        std::fs::write(&file, &script.out).expect("a script");
        for _ in 0..2 {
            let mut psql = by_script.psql(DATABASE);
            psql.arg("-f").arg(&file);
            assert_eq!(run_successfully(psql, TIMEOUT), "");
            assert_eq!(state(&by_script), state(&by_command));
            assert_no_differences(&by_script);
        }
        by_script.sql(
            DATABASE,
            "GRANT pg_read_all_data TO teesql_read; ALTER ROLE teesql_read SUPERUSER",
        );
        let mut psql = by_script.psql(DATABASE);
        psql.arg("-f").arg(&file);
        run_successfully(psql, TIMEOUT);
        assert_eq!(state(&by_script), state(&by_command));
        let mut psql = by_script.psql("operator");
        psql.arg("-f").arg(&file);
        let output = run_command(psql);
        assert_eq!(output.code, Some(3));
        assert!(
            output
                .err
                .contains("this script is for the database teesql"),
            "{output:?}"
        );
    }
}
