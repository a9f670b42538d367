//! Tests of the sidecar's integration into a CVM: certificate, passwords and quotes from a guest
//! agent, the HTTP server, simulator mode, and the command `dev`.
//!
//! With `TEESQL_TEST_LONG=1`, the rotation tests last a minute each.

mod admin_overload;
mod agent_certificate;
mod agent_failures;
mod attestation_report;
mod certificate_files;
mod certificate_rotation;
mod delayed_dependencies;
mod derived_passwords;
mod derived_secrets;
mod dev_command;
mod documented_sessions;
mod metrics;
mod postgres_restart;
mod secret_rotation;
mod simulator_mode;

use std::time::Duration;

use attest::agent::AgentAddresses;
use attest::mock::Agent;

use crate::harness::process::{TIMEOUT, block_on};
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    delayed_dependencies::add(suite);
    dev_command::add(suite);
    documented_sessions::add(suite);
    admin_overload::add(suite);
    agent_certificate::add(suite);
    agent_failures::add(suite);
    derived_passwords::add(suite);
    derived_secrets::add(suite);
    certificate_files::add(suite);
    attestation_report::add(suite);
    postgres_restart::add(suite);
    certificate_rotation::add(suite);
    secret_rotation::add(suite);
    metrics::add(suite);
    simulator_mode::add(suite);
}

/// Whether to run the long versions of the tests.
fn is_long_run() -> bool {
    std::env::var_os("TEESQL_TEST_LONG").is_some()
}

/// How long a test puts load on the sidecar: `default`, or a minute in the long version.
fn load_duration(default: Duration) -> Duration {
    if is_long_run() {
        Duration::from_secs(60)
    } else {
        default
    }
}

/// The key that the agent derives for `path`, in the form in which it is used as a password.
fn derived_key(agent: &Agent, path: &str) -> String {
    derived_key_for(agent, path, "")
}

fn derived_key_for(agent: &Agent, path: &str, purpose: &str) -> String {
    let addresses = AgentAddresses::only(agent.endpoint());
    let options = attest::agent::AgentOptions::default();
    let client = attest::agent::Agent::new(addresses, options).expect("a client");
    let key = block_on(TIMEOUT, client.key(path, purpose)).expect("a key");
    key.to_hex().to_string()
}
