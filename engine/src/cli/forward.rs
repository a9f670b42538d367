//! `teesql-forward`: runs the forwarder, with or without a command that uses it.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

pub(crate) mod child;

use child::CommandUri;

use crate::app::descriptors;
use crate::app::forwarder::Forwarder;
use crate::cli::output::{CommandOutput, EX_OSERR, EX_USAGE, start_error_code};
use crate::config::{Errors, ForwarderConfig, Layers, Scope, with_flags};

/// Exit code if the command cannot be found or executed, as in a shell.
const CANNOT_RUN: u8 = 127;

/// The program.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("teesql-forward")
        .about(
            "Accept PostgreSQL connections on this machine without TLS, and forward them over mutual \
             RA-TLS to a TeeSQL sidecar, provided that it passes attestation",
        )
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand(crate::cli::manifest::command())
        .args_conflicts_with_subcommands(true);
    with_flags(command, Scope::Forward).arg(
        Arg::new("command")
            .value_name("COMMAND")
            .num_args(1..)
            .last(true)
            .help("Command to run with DATABASE_URL, PGHOST, PGPORT and PGSSLMODE set; the forwarder stops when it exits"),
    )
}

/// Executes the program, until the command exits or a signal stops the forwarder.
#[must_use]
pub fn execute(flags: &ArgMatches) -> ExitCode {
    if let Some(("manifest", flags)) = flags.subcommand() {
        return crate::cli::manifest::execute(flags).print();
    }
    let layers = Layers::from_process(Scope::Forward, flags);
    let config = match ForwarderConfig::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0).print(),
    };
    let log = crate::telemetry::log::init(config.process.log_format, config.process.log.clone());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let command = flags.get_many::<String>("command");
    let command: Vec<String> = command.into_iter().flatten().cloned().collect();
    let read_config = {
        let flags = flags.clone();
        move || ForwarderConfig::from_layers(&Layers::from_process(Scope::Forward, &flags))
    };
    let code = run(config, read_config, &command);
    // Write the remaining log lines.
    drop(log);
    code
}

fn run(
    config: ForwarderConfig,
    read_config: impl Fn() -> Result<ForwarderConfig, Errors> + Send + 'static,
    command: &[String],
) -> ExitCode {
    descriptors::raise_limit();
    let uri = match command {
        [] => None,
        _ => match CommandUri::new(config.database_url.clone()) {
            Ok(uri) => Some(uri),
            Err(error) => return CommandOutput::error(EX_USAGE, error).print(),
        },
    };
    let mut forwarder = match Forwarder::start_with_reload(config, read_config) {
        Ok(forwarder) => forwarder,
        Err(error) => {
            return CommandOutput::error(start_error_code(&error), error.to_string()).print();
        }
    };
    let result = match uri {
        None => {
            print_dsn(&forwarder.dsn());
            child::wait_for_signals(&mut forwarder).map(|()| 0)
        }
        Some(uri) => child::run(&mut forwarder, command, &uri),
    };
    let stopped = forwarder.stop();
    match (result, stopped) {
        (Ok(code), Ok(())) => ExitCode::from(code),
        (Err(error), _) => match command.first() {
            Some(program) => CommandOutput::error(CANNOT_RUN, format!("{program}: {error}")),
            None => CommandOutput::error(EX_OSERR, error.to_string()),
        }
        .print(),
        (_, Err(error)) => CommandOutput::error(EX_OSERR, error.to_string()).print(),
    }
}

/// Prints the connection URI: the only line on standard output, which scripts read.
fn print_dsn(dsn: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{dsn}").and_then(|()| out.flush());
}
