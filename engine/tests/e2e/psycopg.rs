//! psycopg 3 with the libpq that its wheel brings (18): direct TLS, protocol
//! 3.2 and encrypted cancel, as Debian's own libpq does not have them yet.

use std::env;
use std::path::Path;

use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::suite::{Requirement, Suite};
use crate::harness::{PasswordEncryption, READ_SECRET, READWRITE_SECRET};
use crate::libpq_clients::client;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/clients/psycopg_suite.py"
);

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        let name = format!("psycopg::{}", server.label());
        suite.add_requiring(&[Requirement::Psycopg], &name, move |fixture| {
            let protocol = if server.protocol() > 0x0003_0000 {
                "3.2"
            } else {
                "3.0"
            };
            let python = env::var("TEESQL_TEST_PYTHON").expect("the trial needs it");
            let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
            let who = ("teesql_readwrite", READWRITE_SECRET);
            let mut script = client(fixture, &sidecar, &python, who, "via_scram");
            script
                .args([
                    "-B",
                    "-X",
                    "dev",
                    SCRIPT,
                    protocol,
                    &fixture.harness.unique_name("psycopg"),
                ])
                .env("TEESQL_TEST_READ_SECRET", READ_SECRET);
            assert!(Path::new(SCRIPT).exists(), "{SCRIPT} is missing");
            let said = run_successfully(script, TIMEOUT * 6);
            assert!(said.trim_end().ends_with("all checks passed"), "{said}");
        });
    }
}
