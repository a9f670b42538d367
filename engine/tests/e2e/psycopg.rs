//! Tests of psycopg 3 with the libpq 18 that it includes: direct TLS, protocol 3.2 and encrypted
//! cancel, which Debian's libpq does not support yet.

use std::env;
use std::path::Path;

use crate::harness::message::PROTOCOL_3_0;
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::suite::{Requirement, Suite};
use crate::harness::{PasswordEncryption, READ_SECRET, WRITER};
use crate::libpq_clients::client;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/clients/psycopg_suite.py"
);

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        let name = format!("psycopg::{}", server.label());
        suite.add_requiring(&[Requirement::Psycopg], &name, move |fixture| {
            let protocol = if server.protocol() > PROTOCOL_3_0 {
                "3.2"
            } else {
                "3.0"
            };
            let python = env::var("TEESQL_TEST_PYTHON").expect("the test requires it");
            let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
            let mut script = client(fixture, &sidecar, &python, WRITER, "via_scram");
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
            let output = run_successfully(script, TIMEOUT * 6);
            assert!(output.trim_end().ends_with("all checks passed"), "{output}");
        });
    }
}
