//! The sidecar from outside: its own binary between real clients and a real
//! Postgres, everything on loopback, all of it with each I/O driver.
//!
//! Environment: `TEESQL_TEST_PG18` (PostgreSQL 18's bin folder), `TEESQL_TEST_PYTHON`
//! (a python with psycopg 3), `TEESQL_TEST_STRICT` (a trial that would be skipped
//! fails), `TEESQL_TEST_LONG` (trials of rotation last a minute). `scripts/test` provides
//! the first two. Arguments are those of libtest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

mod attestation_gate;
mod bulk_transfer;
mod cancel;
mod cvm_integration;
mod forwarder;
mod harness;
mod invalid_openings;
mod libpq_clients;
mod lifecycle;
mod limits;
mod log_secrecy;
mod login;
mod login_refusal;
mod malformed_input;
mod postgres_state;
mod protocol_negotiation;
mod provision;
mod psycopg;
mod secret_command;
mod slow_peers;
mod startup_packets;
mod tokio_postgres_driver;
mod upstream;
mod upstream_protocol_errors;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use crate::harness::Harness;
use crate::harness::sidecar::IoDriver;
use crate::harness::suite::Suite;

/// Many trials wait for a deadline: more of them than cores may run at once.
const THREADS: usize = 4;

const GROUPS: [fn(&mut Suite); 23] = [
    attestation_gate::add,
    forwarder::add,
    login::add,
    login_refusal::add,
    protocol_negotiation::add,
    invalid_openings::add,
    malformed_input::add,
    slow_peers::add,
    startup_packets::add,
    upstream::add,
    upstream_protocol_errors::add,
    limits::add,
    cancel::add,
    lifecycle::add,
    log_secrecy::add,
    libpq_clients::add,
    tokio_postgres_driver::add,
    psycopg::add,
    bulk_transfer::add,
    provision::add,
    secret_command::add,
    postgres_state::add,
    cvm_integration::add,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let harness = match Harness::new() {
        Ok(harness) => Arc::new(harness),
        Err(why) => {
            eprintln!("the tests cannot start: {why}; scripts/setup installs what they need");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite::new(harness.clone());
    for driver in [IoDriver::IoUring, IoDriver::Epoll] {
        suite.set_driver(driver);
        for add in GROUPS {
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
