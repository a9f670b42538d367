//! `teesql-sidecar provision`: sets up the roles in Postgres, or checks them.

use std::cell::RefCell;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio_postgres::error::SqlState;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::cli::output::{CommandOutput, EX_NOPERM, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{Layers, PostgresConfig, Scope, with_flags};
use crate::postgres::provision::blockers::BlockerWatch;
use crate::postgres::provision::{self, DesiredState, ProvisionError, ProvisionTarget};
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
        .about("Set up the roles teesql_read and teesql_readwrite in Postgres, in a cluster also replicator and rewind");
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
        replication,
        passwords,
        guest_agent,
        ..
    } = postgres;
    let resolved = runtime.block_on(passwords.resolve_with_agent(guest_agent, replication));
    let (passwords, replication) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => return CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    };
    if let Mode::Run = mode {
        let target = ProvisionTarget {
            server,
            database,
            options,
            replication,
        };
        return runtime.block_on(set_up(&target, &passwords));
    }
    let ResolvedPasswords {
        read,
        readwrite,
        superuser,
    } = passwords;
    let desired = DesiredState::new(database.clone(), options, read, readwrite)
        .and_then(|desired| desired.with_replication(replication));
    let desired = match desired {
        Ok(desired) => desired,
        Err(error) => return failed(&error.into(), None),
    };
    if let Mode::Sql = mode {
        return CommandOutput::text(desired.script());
    }
    let result = runtime.block_on(async {
        let mut session = Superuser::connect(&server, superuser.as_ref(), &database).await?;
        let differences = provision::check(session.client_mut(), &desired).await;
        session.close().await;
        differences
    });
    match result {
        Ok(lines) => {
            let code = if lines.is_empty() { 0 } else { DIFFERS };
            let text = prefixed(&lines, "differs: ", "no differences");
            CommandOutput::text(text).with_code(code)
        }
        Err(error) => failed(&error, None),
    }
}

/// Sets up the roles. A failure also names the sessions that the command has waited for.
async fn set_up(target: &ProvisionTarget, passwords: &ResolvedPasswords) -> CommandOutput {
    let waits_for = RefCell::new(None);
    let note = |text| *waits_for.borrow_mut() = Some(text);
    let mut watch = BlockerWatch::only_names();
    let result = target.establish(passwords, &mut watch, note).await;
    match result {
        Ok(report) => {
            CommandOutput::text(prefixed(&report.repaired, "repaired: ", "nothing to do"))
        }
        Err(error) => failed(&error, waits_for.into_inner()),
    }
}

fn failed(error: &ProvisionError, waits_for: Option<String>) -> CommandOutput {
    let text = match waits_for {
        Some(waits_for) => format!("{error}; {waits_for}"),
        None => error.to_string(),
    };
    CommandOutput::error(exit_code(error), text)
}

/// Adds `prefix` to each line, or returns `if_empty` if there is no line.
fn prefixed(lines: &[String], prefix: &str, if_empty: &str) -> String {
    if lines.is_empty() {
        return format!("{if_empty}\n");
    }
    let lines = lines.iter().map(|line| format!("{prefix}{line}\n"));
    lines.collect()
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
