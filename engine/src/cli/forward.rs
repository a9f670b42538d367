//! The command line of `teesql-forward`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

pub(crate) mod child;

use crate::app::forwarder::{Forwarder, StartError};
use crate::cli::output::{CommandOutput, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{ForwarderConfig, Layers, Scope, with_flags};

/// A command that cannot be found or run, as shells say it.
const CANNOT_RUN: u8 = 127;

/// The program.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("teesql-forward")
        .about(
            "Plain PostgreSQL on this machine, mutual RA-TLS to a TeeSQL sidecar, and not a byte to \
             a server that did not prove itself",
        )
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand(crate::cli::manifest::command())
        .args_conflicts_with_subcommands(true);
    with_flags(command, Scope::Forward).arg(
        Arg::new("command")
            .value_name("COMMAND")
            .num_args(1..)
            .last(true)
            .help("Runs it with DATABASE_URL, PGHOST, PGPORT and PGSSLMODE set, and ends with it"),
    )
}

/// Carries it out.
#[must_use]
pub fn execute(
    flags: &ArgMatches,
    environment: impl Fn(&str) -> Option<OsString>,
    names: impl Iterator<Item = String>,
) -> ExitCode {
    if let Some(("manifest", flags)) = flags.subcommand() {
        return crate::cli::manifest::execute(flags).print();
    }
    let layers = Layers::gather(Scope::Forward, flags, environment, names);
    let config = match ForwarderConfig::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0).print(),
    };
    let log = crate::telemetry::log::init(config.process.log_format, config.process.log.clone());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let asked = flags.get_many::<String>("command");
    let asked: Vec<String> = asked.into_iter().flatten().cloned().collect();
    let code = run(config, &asked);
    drop(log);
    code
}

fn run(config: ForwarderConfig, asked: &[String]) -> ExitCode {
    let database_url = config.database_url.clone();
    let mut forwarder = match Forwarder::start(config) {
        Ok(forwarder) => forwarder,
        Err(error) => return CommandOutput::error(exit_code(&error), error.to_string()).print(),
    };
    let ended = if asked.is_empty() {
        say(&forwarder.dsn());
        child::wait_for_signals(&mut forwarder).map(|()| 0)
    } else {
        child::run(&mut forwarder, asked, database_url.as_ref())
    };
    let stopped = forwarder.stop();
    match (ended, stopped) {
        (Ok(code), Ok(())) => ExitCode::from(code),
        (Err(error), _) if asked.is_empty() => {
            CommandOutput::error(EX_OSERR, error.to_string()).print()
        }
        (Err(error), _) => {
            let what = asked.first().map_or("", String::as_str);
            CommandOutput::error(CANNOT_RUN, format!("{what}: {error}")).print()
        }
        (_, Err(error)) => CommandOutput::error(EX_OSERR, error.to_string()).print(),
    }
}

/// The one line that scripts read.
fn say(dsn: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{dsn}").and_then(|()| out.flush());
}

fn exit_code(error: &StartError) -> u8 {
    match error {
        StartError::Identity(_) => EX_USAGE,
        StartError::Agent(_) | StartError::AgentSilent(_) | StartError::Authority(_) => {
            EX_UNAVAILABLE
        }
        StartError::Collateral(_)
        | StartError::Resolver(_)
        | StartError::Metrics(_)
        | StartError::Tls(_)
        | StartError::Shard(_)
        | StartError::System { .. } => EX_OSERR,
    }
}
