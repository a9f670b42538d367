//! End-to-end tests: the sidecar's and the forwarder's binaries between real clients and a real
//! Postgres on loopback, with each I/O driver and each TLS record layer.
//!
//! By default each trial runs once, on io_uring with our record layer (`io_uring::…`), and the
//! groups in which driver and layer meet, those of the data path, run on epoll with rustls' layer
//! as well (`epoll::…`). With `TEESQL_TEST_VARIANTS=all`, as in `.ci/run`, every trial runs with
//! both pairs, so that each driver and each layer runs everything, and the data path with the
//! other two pairs too (`io_uring_tls_rustls::…`, `epoll_tls_own::…`; `-- _tls_` selects these).
//!
//! Environment variables: `TEESQL_TEST_PG18` (PostgreSQL 18's bin folder), `TEESQL_TEST_PYTHON` (a
//! python with psycopg 3), `TEESQL_TEST_STRICT` (a trial that would be skipped fails),
//! `TEESQL_TEST_LONG` (rotation tests last a minute), `TEESQL_TEST_VARIANTS` (`all`, see above).
//! `scripts/test` sets the first two. Arguments are those of libtest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking with a message"
)]

mod attestation_gate;
mod audit;
mod bulk_transfer;
mod cancel;
mod cluster_role;
mod cvm_integration;
mod forwarder;
mod hardening;
mod harness;
mod invalid_openings;
mod key_update;
mod libpq_clients;
mod lifecycle;
mod limits;
mod links;
mod log_secrecy;
mod login;
mod login_refusal;
mod malformed_input;
mod occupancy;
mod policy;
mod postgres_auth;
mod postgres_state;
mod protocol_negotiation;
mod provision;
mod proxy_protocol;
mod psycopg;
mod roles;
mod scram;
mod secret_command;
mod sessions;
mod slow_peers;
mod startup_packets;
mod status_page;
mod tokio_postgres_driver;
mod upstream;
mod upstream_protocol_errors;

use std::env;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use crate::harness::Harness;
use crate::harness::settings::Variant;
use crate::harness::suite::Suite;

/// Trials that run at the same time. More than the cores of a small machine, because many trials
/// wait for a deadline.
const THREADS: usize = 5;

/// Adds the tests of one file.
type Group = fn(&mut Suite);

const GROUPS: &[Group] = &[
    attestation_gate::add,
    policy::add,
    audit::add,
    forwarder::add,
    login::add,
    login_refusal::add,
    scram::add,
    postgres_auth::add,
    protocol_negotiation::add,
    invalid_openings::add,
    malformed_input::add,
    slow_peers::add,
    startup_packets::add,
    upstream::add,
    upstream_protocol_errors::add,
    limits::add,
    links::add,
    occupancy::add,
    proxy_protocol::add,
    cancel::add,
    lifecycle::add,
    hardening::add,
    log_secrecy::add,
    libpq_clients::add,
    tokio_postgres_driver::add,
    psycopg::add,
    bulk_transfer::add,
    provision::add,
    roles::add,
    cluster_role::add,
    secret_command::add,
    sessions::add,
    status_page::add,
    postgres_state::add,
    cvm_integration::add,
    key_update::add,
];

/// The groups that run with more variants than the others: relay, COPY, large results, cancel,
/// KeyUpdate, the close and the drain.
const DATA_PATH: &[Group] = &[
    bulk_transfer::add,
    cancel::add,
    key_update::add,
    libpq_clients::add,
    lifecycle::add,
    tokio_postgres_driver::add,
];

/// One pass over groups of trials.
struct Run {
    variant: Variant,
    groups: &'static [Group],
    /// Whether to add the trials that depend neither on the driver nor on the record layer. One
    /// run of the suite does.
    driver_independent: bool,
}

fn runs(all_variants: bool, has_io_uring: bool) -> Vec<Run> {
    let [default, other] = Variant::BOTH;
    let run = |variant, groups, driver_independent| Run {
        variant,
        groups,
        driver_independent,
    };
    if all_variants {
        let crossed = Variant::CROSSED.map(|variant| run(variant, DATA_PATH, false));
        // Every machine has epoll.
        let both = [run(default, GROUPS, false), run(other, GROUPS, true)];
        both.into_iter().chain(crossed).collect()
    } else if has_io_uring {
        vec![run(default, GROUPS, true), run(other, DATA_PATH, false)]
    } else {
        vec![run(other, GROUPS, true)]
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let harness = match Harness::new() {
        Ok(harness) => Arc::new(harness),
        Err(error) => {
            eprintln!("the tests cannot start: {error}; scripts/setup installs what they need");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite::new(harness.clone());
    let all_variants = env::var("TEESQL_TEST_VARIANTS").is_ok_and(|value| value == "all");
    for run in runs(all_variants, suite.has_io_uring()) {
        suite.set_variant(run.variant, run.driver_independent);
        for add in run.groups {
            add(&mut suite);
        }
    }
    suite.print_skipped();
    let conclusion = libtest_mimic::run(&arguments, std::mem::take(&mut suite.trials));
    suite.print_skipped();
    drop(suite);
    drop(harness);
    if conclusion.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
