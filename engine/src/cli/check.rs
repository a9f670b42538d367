//! `teesql-sidecar check`: validates the configuration of `serve` and shows the effective settings.

use clap::{ArgMatches, Command};

use crate::cli::output::{CommandOutput, EX_USAGE};
use crate::config::{Config, IdentitySource, Layers, Scope, with_flags};
use crate::io::stream::PgAddress;
use crate::postgres::session_address::standard_sockets;
use crate::tls::certificate::Identity;

/// The subcommand `check`.
#[must_use]
pub fn command() -> Command {
    with_flags(
        Command::new("check").about("Validate the configuration and show the effective settings"),
        Scope::Serve,
    )
}

/// With `postgres = auto`: which socket was found. Whether it lets the roles in shows only a login.
fn socket_note(config: &Config) -> Option<String> {
    let PgAddress::Tcp(address) = &config.postgres.address else {
        return None;
    };
    config.postgres.look_for_socket.then(|| {
        let sockets = standard_sockets(address.port());
        match sockets.iter().find(|path| path.exists()) {
            Some(path) => format!(
                "postgres: sessions use {} if it lets the roles in, else {address}",
                path.display()
            ),
            None => format!("postgres: no socket was found, sessions use {address}"),
        }
    })
}

/// Executes `check`. Certificate files are read and sockets looked for; nothing is contacted.
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
    output
        .with_note(socket_note(&config))
        .with_warnings(&config.warnings)
}
