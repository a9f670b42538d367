//! `teesql-sidecar serve`: runs the sidecar.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::app::descriptors;
use crate::app::lifecycle::Outcome;
use crate::app::sidecar;
use crate::cli::output::{CommandOutput, EX_USAGE, start_error_code};
use crate::config::{Config, Layers, Scope, with_flags};

/// The subcommand `serve`.
#[must_use]
pub fn command() -> Command {
    with_flags(Command::new("serve").about("Run the sidecar"), Scope::Serve)
}

/// Executes `serve`, until a signal stops the process or it fails.
#[must_use]
pub fn execute(flags: &ArgMatches) -> ExitCode {
    let load = || Config::from_layers(&Layers::from_process(Scope::Serve, flags));
    let config = match load() {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0).print(),
    };
    let log = crate::telemetry::log::init(config.process.log_format, config.process.log.clone());
    descriptors::raise_limit();
    let code = match sidecar::run(config, load) {
        Ok(Outcome::Drained) => {
            tracing::info!("stopped");
            0
        }
        Ok(Outcome::Interrupted(signal)) => {
            tracing::warn!(signal, "stopped immediately by a second signal");
            128_u8.saturating_add(u8::try_from(signal).unwrap_or(0))
        }
        Err(error) => {
            tracing::error!(%error, "the sidecar stopped");
            start_error_code(&error)
        }
    };
    // Write the remaining log lines.
    drop(log);
    ExitCode::from(code)
}
