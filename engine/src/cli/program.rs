//! The command line of `teesql-sidecar`, as data: the program parses it, and manual pages and shell completions are made
//! from it.

use clap::Command;

use crate::cli::{
    audit, ca, check, cluster, dev, manifest_address, password, provision, secret, serve, sessions,
    verify,
};

/// `teesql-sidecar` with all its commands.
#[must_use]
pub fn sidecar() -> Command {
    Command::new("teesql-sidecar")
        .about("TLS, client attestation and login in front of a PostgreSQL in a confidential VM")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(check::command())
        .subcommand(sessions::list_command())
        .subcommand(sessions::kill_command())
        .subcommand(provision::command())
        .subcommand(password::command())
        .subcommand(ca::command())
        .subcommand(cluster::command())
        .subcommand(manifest_address::command())
        .subcommand(dev::command())
        .subcommand(secret::command())
        .subcommand(verify::command())
        .subcommand(audit::command())
}
