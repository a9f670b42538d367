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

mod certs;
mod client;
mod cluster;
mod fake;
mod message;
mod process;
mod sidecar;
mod stage;
mod suite;

mod broken;
mod bulk;
mod cancel;
mod citizen;
mod forward;
mod gate;
mod life;
mod limits;
mod login;
mod negotiation;
mod noise;
mod openings;
mod provision;
mod psql;
mod psycopg;
mod refusal;
mod secrecy;
mod secret;
mod slow;
mod startup;
mod state;
mod tokio_client;
mod upstream;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use crate::sidecar::Driver;
use crate::stage::Stage;
use crate::suite::Suite;

/// Many trials wait for a deadline: more of them than cores may run at once.
const THREADS: usize = 4;

const GROUPS: [fn(&mut Suite); 23] = [
    gate::add,
    forward::add,
    login::add,
    refusal::add,
    negotiation::add,
    openings::add,
    noise::add,
    slow::add,
    startup::add,
    upstream::add,
    broken::add,
    limits::add,
    cancel::add,
    life::add,
    secrecy::add,
    psql::add,
    tokio_client::add,
    psycopg::add,
    bulk::add,
    provision::add,
    secret::add,
    state::add,
    citizen::add,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let stage = match Stage::new() {
        Ok(stage) => Arc::new(stage),
        Err(why) => {
            eprintln!("the tests cannot start: {why}; scripts/setup installs what they need");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite::new(stage.clone());
    for driver in [Driver::IoUring, Driver::Epoll] {
        suite.set_driver(driver);
        for add in GROUPS {
            add(&mut suite);
        }
    }
    suite.print_skipped();
    let conclusion = libtest_mimic::run(&arguments, std::mem::take(&mut suite.trials));
    suite.print_skipped();
    drop(suite);
    drop(stage);
    if conclusion.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
