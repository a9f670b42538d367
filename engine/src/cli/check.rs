//! `teesql-sidecar check`: validates the configuration of `serve` and shows the effective settings.

use clap::{ArgMatches, Command};

use crate::cli::output::{CommandOutput, EX_USAGE};
use crate::config::{Config, IdentitySource, Layers, Scope, with_flags};
use crate::tls::certificate::Identity;

/// The subcommand `check`.
#[must_use]
pub fn command() -> Command {
    with_flags(
        Command::new("check").about("Validate the configuration and show the effective settings"),
        Scope::Serve,
    )
}

/// Executes `check`. Certificate files are read; nothing is contacted.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Serve, flags);
    let output = CommandOutput::text(layers.describe()).best_effort();
    let config = match Config::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return output.with_errors(EX_USAGE, &errors.0),
    };
    if let IdentitySource::Files { cert, key } = &config.identity
        && let Err(error) = Identity::from_files(cert, key)
    {
        return output.with_errors(EX_USAGE, &[error.to_string()]);
    }
    output.with_warnings(&config.warnings)
}
