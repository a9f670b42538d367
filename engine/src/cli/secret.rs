//! `teesql-sidecar secret`: generates a cluster secret.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use wire::secret::ClusterSecret;
use zeroize::Zeroizing;

use crate::auth::random::random_bytes;
use crate::cli::output::{CommandOutput, EX_CANTCREAT, EX_OSERR};

/// The subcommand `secret`.
#[must_use]
pub fn command() -> Command {
    Command::new("secret")
        .about("Generate a cluster secret: 32 random bytes, as 64 hex characters")
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
