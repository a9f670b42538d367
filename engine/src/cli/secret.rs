//! `teesql-sidecar secret`: generates a cluster secret, or prints those that the guest agent derives.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use attest::agent::{Agent, AgentOptions};
use clap::{Arg, ArgAction, ArgMatches, Command};
use wire::secret::ClusterSecret;
use zeroize::Zeroizing;

use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::random::random_bytes;
use crate::cli::output::{CommandOutput, EX_CANTCREAT, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{AgentConfig, Layers, Scope, with_flags};

/// The subcommand `secret`.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("secret").about(
        "Generate a cluster secret: 32 random bytes, as 64 hex characters; or print those that the guest agent derives",
    );
    with_flags(command, Scope::Secret)
        .arg(
            Arg::new("derived")
                .long("derived")
                .action(ArgAction::SetTrue)
                .conflicts_with("file")
                .help("Print both secrets of cluster_secrets = derived instead: this needs the guest agent of the machine"),
        )
        .arg(
            Arg::new("file")
                .long("file")
                .value_name("PATH")
                .value_parser(clap::value_parser!(std::path::PathBuf))
                .help("Write it to this file instead (mode 0600); the file must not exist"),
        )
}

/// Executes `secret`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    if flags.get_flag("derived") {
        return print_derived(flags);
    }
    let bytes = match random_bytes() {
        Ok(bytes) => bytes,
        Err(error) => {
            return CommandOutput::error(
                EX_OSERR,
                format!("cannot generate random bytes: {error}"),
            );
        }
    };
    let mut line = ClusterSecret::from_bytes(bytes).to_text();
    line.push('\n');
    let Some(path) = flags.get_one::<std::path::PathBuf>("file") else {
        return CommandOutput::text(line);
    };
    match write_new(path, &line) {
        Ok(()) => CommandOutput::text(Zeroizing::default()),
        Err(error) => CommandOutput::error(EX_CANTCREAT, format!("{}: {error}", path.display())),
    }
}

/// Prints both derived secrets, one `key = "…"` for each.
fn print_derived(flags: &ArgMatches) -> CommandOutput {
    let layers = Layers::from_process(Scope::Secret, flags);
    let config = match AgentConfig::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let runtime = match crate::app::runtime::new_current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return CommandOutput::error(EX_OSERR, error.to_string()),
    };
    let derived = runtime.block_on(async {
        let agent = Agent::new(config.guest_agent, AgentOptions::default())?;
        ClusterSecrets::derive(&agent).await
    });
    let output = match derived {
        Ok(secrets) => CommandOutput::text(secret_lines(&secrets)),
        Err(error) => CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    };
    output.with_warnings(&config.warnings)
}

fn secret_lines(secrets: &ClusterSecrets) -> Zeroizing<String> {
    // Enough for both lines: growing would leave copies in freed memory.
    let mut lines = Zeroizing::new(String::with_capacity(256));
    for (key, secret) in [
        ("read_secret", &secrets.read),
        ("readwrite_secret", &secrets.readwrite),
    ] {
        if let Some(secret) = secret {
            lines.push_str(key);
            lines.push_str(" = \"");
            lines.push_str(&secret.to_text());
            lines.push_str("\"\n");
        }
    }
    lines
}

/// Creates a file with mode 0600. Removes it again if it cannot be written completely, so that it
/// cannot be mistaken for a secret.
///
/// # Errors
/// The file exists, or cannot be written.
pub(crate) fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn creates_a_private_file_and_keeps_an_existing_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write_new(&path, "one\n").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let error = write_new(&path, "two\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
    }

    #[test]
    fn does_not_follow_symbolic_links() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = write_new(&link, "one\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(!target.exists());
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random_bytes::<32>().unwrap(), random_bytes::<32>().unwrap());
    }
}
