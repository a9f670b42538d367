//! `teesql-sidecar provision`, and what its exit codes mean.

use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio_postgres::error::SqlState;

use crate::auth::postgres_passwords::ResolvedPasswords;
use crate::cli::output::{CommandOutput, EX_NOPERM, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{Layers, PostgresConfig, Scope, with_flags};
use crate::postgres::provision::{self, ProvisionError, Wanted};
use crate::postgres::superuser::{Error, Superuser};

/// `--check` found something that is not as it has to be.
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
    let command = Command::new("provision").about("Set up the roles of the cluster in Postgres");
    with_flags(command, Scope::Postgres)
        .arg(flag(
            "check",
            "Change nothing; say what differs, and exit with 1 if anything does",
        ))
        .arg(
            flag(
                "sql",
                "Print all of it as a script for psql, and connect to nothing",
            )
            .conflicts_with("check"),
        )
}

/// Carries `provision` out.
#[must_use]
pub fn execute(flags: &ArgMatches, layers: &Layers) -> CommandOutput {
    let postgres = match PostgresConfig::from_layers(layers) {
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
    carry_out(postgres, mode).with_warnings(&warnings)
}

enum Mode {
    Run,
    Check,
    Sql,
}

fn carry_out(postgres: PostgresConfig, mode: Mode) -> CommandOutput {
    let runtime = match crate::app::runtime::of_this_thread() {
        Ok(runtime) => runtime,
        Err(error) => return CommandOutput::error(EX_OSERR, error.to_string()),
    };
    let PostgresConfig {
        address,
        database,
        passwords,
        guest_agent,
        ..
    } = postgres;
    let asked = runtime.block_on(passwords.complete(guest_agent));
    let passwords = match asked {
        Ok(passwords) => passwords,
        Err(error) => return CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    };
    let ResolvedPasswords {
        read,
        readwrite,
        superuser,
    } = passwords;
    let wanted = match Wanted::new(database.clone(), read, readwrite) {
        Ok(wanted) => wanted,
        Err(error) => return CommandOutput::error(EX_OSERR, format!("no random bytes: {error}")),
    };
    let check = match mode {
        Mode::Sql => return CommandOutput::text(wanted.script()),
        Mode::Check => true,
        Mode::Run => false,
    };
    let done = runtime.block_on(async {
        let mut session = Superuser::connect(&address, superuser.as_ref(), &database).await?;
        let done = if check {
            let found = provision::check(session.client_mut(), &wanted).await;
            found.map(|found| told(&found, "differs: ", "all is as it has to be"))
        } else {
            let report = provision::run(session.client_mut(), &wanted).await;
            report.map(|report| told(&report.repaired, "repaired: ", "nothing to do"))
        };
        session.close().await;
        done
    });
    match done {
        Ok((text, true)) if check => CommandOutput::text(text).with_code(DIFFERS),
        Ok((text, _)) => CommandOutput::text(text),
        Err(error) => CommandOutput::error(exit_code(&error), error.to_string()),
    }
}

/// The lines, or a word that there are none; and whether there are any.
fn told(lines: &[String], prefix: &str, none: &str) -> (String, bool) {
    if lines.is_empty() {
        return (format!("{none}\n"), false);
    }
    let lines = lines.iter().map(|line| format!("{prefix}{line}\n"));
    (lines.collect(), true)
}

fn exit_code(error: &ProvisionError) -> u8 {
    match error {
        ProvisionError::Postgres(error) => match error {
            Error::Server { code, .. } if *code == SqlState::INVALID_CATALOG_NAME => EX_USAGE,
            // Class 28: the login is refused.
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
        | ProvisionError::Unsettled(_)
        | ProvisionError::TimedOut(_) => EX_UNAVAILABLE,
    }
}
