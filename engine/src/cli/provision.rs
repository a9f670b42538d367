//! `teesql-sidecar provision`: sets up the roles in Postgres, or checks them.

use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio_postgres::error::SqlState;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::cli::output::{CommandOutput, EX_NOPERM, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{Layers, PostgresConfig, Scope, with_flags};
use crate::postgres::provision::{self, DesiredState, ProvisionError};
use crate::postgres::superuser::{Error, Superuser};

/// Exit code if `--check` found a difference.
const DIFFERS: u8 = 1;

/// The subcommand `provision`.
#[must_use]
pub fn command() -> Command {
    let flag = |name, help| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    let command = Command::new("provision")
        .about("Set up the roles teesql_read and teesql_readwrite in Postgres");
    with_flags(command, Scope::Postgres)
        .arg(flag(
            "check",
            "Change nothing; print the differences, and exit with code 1 if there are any",
        ))
        .arg(
            flag(
                "sql",
                "Print a script for psql that does the same, without connecting to Postgres",
            )
            .conflicts_with("check"),
        )
}

/// Executes `provision`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Postgres, flags);
    let postgres = match PostgresConfig::from_layers(&layers) {
        Ok(postgres) => postgres,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let warnings = postgres.warnings.clone();
    let mode = if flags.get_flag("sql") {
        Mode::Sql
    } else if flags.get_flag("check") {
        Mode::Check
    } else {
        Mode::Run
    };
    run(postgres, mode).with_warnings(&warnings)
}

enum Mode {
    Run,
    Check,
    Sql,
}

fn run(postgres: PostgresConfig, mode: Mode) -> CommandOutput {
    let runtime = match crate::app::runtime::new_current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return CommandOutput::error(EX_OSERR, error.to_string()),
    };
    let PostgresConfig {
        server,
        database,
        provision: options,
        passwords,
        guest_agent,
        ..
    } = postgres;
    let resolved = runtime.block_on(passwords.resolve_with_agent(guest_agent));
    let ResolvedPasswords {
        read,
        readwrite,
        superuser,
    } = match resolved {
        Ok(passwords) => passwords,
        Err(error) => return CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    };
    let desired = match DesiredState::new(database.clone(), options, read, readwrite) {
        Ok(desired) => desired,
        Err(error) => {
            return CommandOutput::error(
                EX_OSERR,
                format!("cannot generate random bytes: {error}"),
            );
        }
    };
    let check = match mode {
        Mode::Sql => return CommandOutput::text(desired.script()),
        Mode::Check => true,
        Mode::Run => false,
    };
    let result = runtime.block_on(async {
        let mut session = Superuser::connect(&server, superuser.as_ref(), &database).await?;
        let lines = if check {
            let differences = provision::check(session.client_mut(), &desired).await;
            differences.map(|lines| prefixed(&lines, "differs: ", "no differences"))
        } else {
            let report = provision::run(session.client_mut(), &desired).await;
            report.map(|report| prefixed(&report.repaired, "repaired: ", "nothing to do"))
        };
        session.close().await;
        lines
    });
    match result {
        Ok((text, true)) if check => CommandOutput::text(text).with_code(DIFFERS),
        Ok((text, _)) => CommandOutput::text(text),
        Err(error) => CommandOutput::error(exit_code(&error), error.to_string()),
    }
}

/// Adds `prefix` to each line, or returns `if_empty` if there is no line. Also returns whether there
/// are lines.
fn prefixed(lines: &[String], prefix: &str, if_empty: &str) -> (String, bool) {
    if lines.is_empty() {
        return (format!("{if_empty}\n"), false);
    }
    let lines = lines.iter().map(|line| format!("{prefix}{line}\n"));
    (lines.collect(), true)
}

fn exit_code(error: &ProvisionError) -> u8 {
    match error {
        ProvisionError::Postgres(error) => match error {
            Error::Server { code, .. } if *code == SqlState::INVALID_CATALOG_NAME => EX_USAGE,
            // Class 28: invalid authorization specification.
            Error::Server { code, .. }
                if *code == SqlState::INSUFFICIENT_PRIVILEGE || code.code().starts_with("28") =>
            {
                EX_NOPERM
            }
            Error::Login(_) => EX_NOPERM,
            Error::Unreachable { .. }
            | Error::TimedOut(_)
            | Error::Server { .. }
            | Error::Broken(_) => EX_UNAVAILABLE,
        },
        ProvisionError::NotSuperuser(_) => EX_NOPERM,
        ProvisionError::Random(_) => EX_OSERR,
        ProvisionError::InRecovery
        | ProvisionError::OtherDatabase(_)
        | ProvisionError::NotConverged(_)
        | ProvisionError::TimedOut(_) => EX_UNAVAILABLE,
    }
}
