//! The package against a whole cluster: `teesql-sidecar dev` with a real Postgres, and real drivers.
//!
//! The program starts the cluster and itself within it, so that all tests share one. They run one after the other: some
//! count threads and descriptors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod compatible;
mod connect;
mod fork;
mod harness;
mod lifecycle;
mod many;
mod refusals;
mod verification;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

/// Set for the program within the cluster.
const INSIDE: &str = "TEESQL_CLIENT_TEST_INSIDE";

/// A file of the build, next to this program's folder.
fn built(path: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.parent().unwrap().parent().unwrap().join(path)
}

fn trials() -> Vec<Trial> {
    let all = [
        connect::trials(),
        refusals::trials(),
        verification::trials(),
        lifecycle::trials(),
        many::trials(),
        fork::trials(),
        // Its last one leaves a forwarder behind.
        compatible::trials(),
    ];
    all.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list || std::env::var_os(INSIDE).is_some() {
        arguments.test_threads = Some(1);
        return libtest_mimic::run(&arguments, trials()).exit_code();
    }
    let sidecar = built("teesql-sidecar");
    if !sidecar.exists() {
        eprintln!(
            "NOT TESTED: {} does not exist: cargo build -p engine --features mock",
            sidecar.display()
        );
        return ExitCode::from(u8::from(harness::is_strict()));
    }
    let status = Command::new(sidecar)
        .args(["dev", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .env(INSIDE, "1")
        .status()
        .unwrap();
    ExitCode::from(if status.success() { 0 } else { 1 })
}
