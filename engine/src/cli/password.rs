//! `teesql-sidecar password`: prints a role's Postgres password, so that Postgres can be set up before
//! the sidecar runs, or the passphrase of the backups.

use std::io;
use std::path::{Path, PathBuf};

use attest::agent::{Agent, AgentAddresses, AgentError, AgentOptions};
use clap::{Arg, ArgMatches, Command};
use wire::cluster_key::PasswordLabel;
use wire::scram::Password;
use zeroize::Zeroizing;

use crate::auth::postgres_passwords::{PostgresPasswords, password_from_agent};
use crate::cli::output::{CommandOutput, EX_CANTCREAT, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::cli::secret::write_new;
use crate::config::{Layers, PostgresConfig, Scope, with_flags};

/// What the command takes as ROLE. `backup` is the passphrase that backups are encrypted with.
const ROLES: [(&str, PasswordLabel); 7] = [
    ("teesql_read", PasswordLabel::Read),
    ("teesql_readwrite", PasswordLabel::ReadWrite),
    ("postgres", PasswordLabel::Superuser),
    ("superuser", PasswordLabel::Superuser),
    ("replicator", PasswordLabel::Replicator),
    ("rewind", PasswordLabel::Rewind),
    ("backup", PasswordLabel::BackupEncryption),
];

/// The subcommand `password`.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("password").about(
        "Print the Postgres password of a role: as configured, or derived from the cluster key or by the guest agent",
    );
    with_flags(command, Scope::Postgres)
        .arg(
            Arg::new("role")
                .value_name("ROLE")
                .required(true)
                .value_parser(ROLES.map(|(name, _)| name))
                .help("The role; backup is the passphrase that backups are encrypted with"),
        )
        .arg(
            Arg::new("file")
                .long("file")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Write it to this file instead (mode 0600), replacing an existing file"),
        )
}

/// Executes `password`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Postgres, flags);
    let PostgresConfig {
        passwords,
        guest_agent,
        warnings,
        ..
    } = match PostgresConfig::from_layers(&layers) {
        Ok(postgres) => postgres,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let role = flags.get_one::<String>("role");
    let known = ROLES
        .into_iter()
        .find(|(name, _)| role.is_some_and(|role| role == name));
    let Some((_, label)) = known else {
        return CommandOutput::error(EX_USAGE, "unknown role".to_owned());
    };
    let output = match resolve_password(passwords, label, guest_agent) {
        Ok(password) => write_password(&password, flags.get_one("file")),
        Err(output) => output,
    };
    output.with_warnings(&warnings)
}

fn resolve_password(
    passwords: PostgresPasswords,
    label: PasswordLabel,
    guest_agent: AgentAddresses,
) -> Result<Password, CommandOutput> {
    if let Some(password) = passwords.for_label(label) {
        return Ok(password);
    }
    let runtime = crate::app::runtime::new_current_thread()
        .map_err(|error| CommandOutput::error(EX_OSERR, error.to_string()))?;
    runtime
        .block_on(derive(label, guest_agent))
        .map_err(|error| CommandOutput::error(EX_UNAVAILABLE, error.to_string()))
}

async fn derive(label: PasswordLabel, guest_agent: AgentAddresses) -> Result<Password, AgentError> {
    let agent = Agent::new(guest_agent, AgentOptions::default())?;
    password_from_agent(&agent, label).await
}

fn write_password(password: &Password, file: Option<&PathBuf>) -> CommandOutput {
    let Ok(text) = std::str::from_utf8(password.as_bytes()) else {
        return CommandOutput::error(EX_USAGE, "the password is not UTF-8".to_owned());
    };
    let line = Zeroizing::new(format!("{text}\n"));
    let Some(path) = file else {
        return CommandOutput::text(line);
    };
    match replace_file(path, &line) {
        Ok(()) => CommandOutput::text(Zeroizing::default()),
        Err(error) => CommandOutput::error(EX_CANTCREAT, format!("{}: {error}", path.display())),
    }
}

/// Replaces a file atomically: a concurrent reader sees the old or the new content.
fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // An interrupted run may have left the file behind.
    let _ = std::fs::remove_file(&temporary);
    write_new(&temporary, text).and_then(|()| std::fs::rename(&temporary, path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn replaces_a_file_atomically_with_mode_0600() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(folder.path().join("password.new"), "left over").unwrap();
        for text in ["one\n", "two\n"] {
            replace_file(&path, text).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_configured_password_needs_no_guest_agent() {
        let configured = || PostgresPasswords {
            superuser: Some(Password::new("hunter2")),
            ..PostgresPasswords::default()
        };
        let unavailable = || AgentAddresses::only("unix:/nonexistent/agent.sock".parse().unwrap());
        let found = resolve_password(configured(), PasswordLabel::Superuser, unavailable());
        assert_eq!(found.ok().unwrap().as_bytes(), b"hunter2");
        assert!(resolve_password(configured(), PasswordLabel::Read, unavailable()).is_err());
    }
}
