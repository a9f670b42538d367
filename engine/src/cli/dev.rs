//! `teesql-sidecar dev`: runs a whole cluster on this machine, without TDX and without dstack.
//!
//! It starts a temporary Postgres, a mock guest agent and a mock PCCS under a generated TDX root, and
//! two sidecars in front of Postgres: one in production mode under that root, and one in simulator
//! mode. The sidecars run the same code as `serve`, configured as an operator would do it. With `--members`
//! it starts several members with Patroni and etcd instead.
//!
//! It runs until a signal arrives or, with a command, until that exits. It leaves nothing behind.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

#[cfg(feature = "mock")]
mod child;
#[cfg(feature = "mock")]
mod cluster;
#[cfg(feature = "mock")]
mod error;
#[cfg(feature = "mock")]
mod instructions;
#[cfg(feature = "mock")]
mod members;
#[cfg(feature = "mock")]
mod postgres;
#[cfg(feature = "mock")]
mod run;
#[cfg(feature = "mock")]
mod sidecars;

/// The subcommand `dev`.
#[must_use]
pub fn command() -> Command {
    let switch = |name, help| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .requires("members")
            .help(help)
    };
    Command::new("dev")
        .about("Run a whole cluster on this machine, without TDX: Postgres, guest agent and sidecars")
        // A build without the mocks can only say so.
        .hide(cfg!(not(feature = "mock")))
        .arg(
            Arg::new("members")
                .long("members")
                .value_name("N")
                .value_parser(clap::value_parser!(u8).range(2..=7))
                .help("Run this many members with Patroni and etcd, each in a network namespace, and a forwarder"),
        )
        .arg(switch(
            "backups",
            "The members archive WAL and keep backups with pgBackRest",
        ))
        .arg(switch(
            "plain",
            "The members have no sidecars: a baseline for measurements",
        ))
        .arg(switch(
            "clocks",
            "The members have clocks that can be set off",
        ))
        .arg(
            switch(
                "dns",
                "The leader publishes its manifest on a name server (Debian's knot), and a second forwarder follows it",
            )
            .conflicts_with("plain"),
        )
        .arg(
            Arg::new("request")
                .long("request")
                .num_args(1..)
                .allow_hyphen_values(true)
                .conflicts_with_all(["members", "command"])
                .value_name("WORD")
                .help("Ask the cluster of --members that TEESQL_DEV_CONTROL names: status, kill NAME, stop NAME, start NAME, pause NAME, resume NAME, isolate NAME, join NAME, clock NAME SECONDS, or exec NAME COMMAND …; with --dns also kill dns, start dns"),
        )
        .arg(
            Arg::new("inner")
                .long("inner")
                .hide(true)
                .requires("members")
                .value_parser(clap::value_parser!(PathBuf)),
        )
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

    let command = flags.get_many::<OsString>("command");
    let command: Vec<_> = command.into_iter().flatten().cloned().collect();
    let result = match (flags.get_one::<u8>("members"), flags.get_many("request")) {
        (_, Some(words)) => return request(&words.cloned().collect::<Vec<String>>()),
        (Some(members), None) => run_members(flags, usize::from(*members), &command),
        (None, None) => run_single(&command),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => CommandOutput::error(error.exit_code(), error.to_string()).print(),
    }
}

#[cfg(feature = "mock")]
fn run_single(command: &[OsString]) -> Result<u8, error::DevError> {
    use crate::config::log_format::LogFormat;
    use crate::telemetry::log;

    // Dropped last, so that the remaining log lines are written.
    let _guard = log::init(LogFormat::Text, log::dev_filter());
    run::run(command)
}

#[cfg(feature = "mock")]
fn run_members(
    flags: &ArgMatches,
    members: usize,
    command: &[OsString],
) -> Result<u8, error::DevError> {
    let plan = members::Plan {
        members,
        plain: flags.get_flag("plain"),
        backups: flags.get_flag("backups"),
        clocks: flags.get_flag("clocks"),
        dns: flags.get_flag("dns"),
    };
    match flags.get_one::<PathBuf>("inner") {
        Some(folder) => members::run_inner(folder.clone(), &plan, command),
        None => members::run_outer(&plan, command),
    }
}

/// Sends a request to the running cluster.
#[cfg(feature = "mock")]
fn request(words: &[String]) -> ExitCode {
    use crate::cli::output::{CommandOutput, EX_USAGE};

    let Some(socket) = std::env::var_os("TEESQL_DEV_CONTROL").map(PathBuf::from) else {
        let error = "TEESQL_DEV_CONTROL is not set: source the file env of a running cluster";
        return CommandOutput::error(EX_USAGE, error.to_owned()).print();
    };
    let words: Vec<_> = words.iter().map(OsString::from).collect();
    match members::request(&socket, &words) {
        Ok((code, output)) => CommandOutput::text(output).with_code(code).print(),
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
