//! What `--sql` prints does by psql what the command does itself.

use super::{OLD, OWN, assert_all_well, fresh, picture, repair, said};
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::suite::Fixture;
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD};

pub(super) fn script_does_the_same(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let (ours, theirs) = (fresh(fixture, &server, &[]), fresh(fixture, &server, &[]));
        for cluster in [&ours, &theirs] {
            cluster.sql(OWN, OLD);
            cluster.sql(OWN, "GRANT CREATE ON SCHEMA public TO PUBLIC");
        }
        repair(&ours);
        let mut command = theirs.provision_command(OWN);
        // It connects to nothing.
        command.arg("--sql").env("TEESQL_POSTGRES", "127.0.0.1:1");
        let script = said(command);
        assert_eq!((script.code, script.err.as_str()), (Some(0), ""));
        for password in [READ_PASSWORD, READWRITE_PASSWORD] {
            assert!(!script.out.contains(password));
        }
        let file = fixture.harness.unique_path("provision.sql");
        std::fs::write(&file, &script.out).expect("a script");
        for _ in 0..2 {
            let mut psql = theirs.psql(OWN);
            psql.arg("-f").arg(&file);
            assert_eq!(run_successfully(psql, TIMEOUT), "");
            assert_eq!(picture(&theirs), picture(&ours));
            assert_all_well(&theirs);
        }
        theirs.sql(
            OWN,
            "GRANT pg_read_all_data TO teesql_read; ALTER ROLE teesql_read SUPERUSER",
        );
        let mut psql = theirs.psql(OWN);
        psql.arg("-f").arg(&file);
        run_successfully(psql, TIMEOUT);
        assert_eq!(picture(&theirs), picture(&ours));
        let mut psql = theirs.psql("operator");
        psql.arg("-f").arg(&file);
        let said = said(psql);
        assert_eq!(said.code, Some(3));
        assert!(
            said.err.contains("this script is for the database teesql"),
            "{said:?}"
        );
    }
}
