//! `teesql-sidecar dev`: runs a whole cluster on this machine, without TDX and without dstack.
//!
//! It starts a temporary Postgres, a mock guest agent and a mock PCCS under a generated TDX root, and
//! two sidecars in front of Postgres: one in production mode under that root, and one in simulator
//! mode. The sidecars run the same code as `serve`, configured as an operator would do it.
//!
//! It runs until a signal arrives or, with a command, until that exits. It leaves nothing behind.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

#[cfg(feature = "mock")]
mod child;
#[cfg(feature = "mock")]
mod cluster;
#[cfg(feature = "mock")]
mod error;
#[cfg(feature = "mock")]
mod instructions;
#[cfg(feature = "mock")]
mod postgres;
#[cfg(feature = "mock")]
mod run;
#[cfg(feature = "mock")]
mod sidecars;

/// The subcommand `dev`.
#[must_use]
pub fn command() -> Command {
    Command::new("dev")
        .about("Run a whole cluster on this machine, without TDX: Postgres, guest agent and sidecars")
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(1..)
                .last(true)
                .value_parser(clap::value_parser!(OsString))
                .help("Command to run with PGHOST, PGPASSWORD and other variables set; the cluster stops when it exits. Without a command, it runs until Ctrl-C"),
        )
}

/// Executes `dev`.
#[cfg(feature = "mock")]
#[must_use]
pub fn execute(flags: &ArgMatches) -> ExitCode {
    use crate::cli::output::CommandOutput;
    use crate::config::log_format::LogFormat;
    use crate::telemetry::log;

    let command = flags.get_many::<OsString>("command");
    let command: Vec<_> = command.into_iter().flatten().cloned().collect();
    let guard = log::init(LogFormat::Text, log::dev_filter());
    let result = run::run(&command);
    // Write the remaining log lines.
    drop(guard);
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => CommandOutput::error(error.exit_code(), error.to_string()).print(),
    }
}

/// Fails: this build does not contain the mocks.
#[cfg(not(feature = "mock"))]
#[must_use]
pub fn execute(_: &ArgMatches) -> ExitCode {
    let error = "this build has no mock TDX. Run: \
                 cargo run -p engine --features mock --bin teesql-sidecar -- dev";
    crate::cli::output::CommandOutput::error(crate::cli::output::EX_USAGE, error.to_owned()).print()
}
