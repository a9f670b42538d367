//! `pgbackrest.conf`, and the commands that Postgres and Patroni run.
//!
//! The repository is encrypted with a passphrase that all members derive, so that a new member can restore and the
//! repository's host can read nothing.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::Member;

/// The file. Without a passphrase its line is a comment.
pub(super) fn text(member: &Member<'_>, passphrase: Option<&str>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024));
    let _ = writeln!(text, "# pgBackRest of member {}.", member.name());
    let _ = writeln!(text, "[global]");
    match &member.options.backup {
        Some(backup) => {
            let _ = writeln!(text, "repo1-path={}", backup.repository);
        }
        None => {
            let _ = writeln!(text, "# repo1-path: give --backup-repository");
        }
    }
    let _ = writeln!(text, "repo1-cipher-type=aes-256-cbc");
    match passphrase {
        Some(passphrase) => {
            let _ = writeln!(text, "repo1-cipher-pass={passphrase}");
        }
        None => {
            let _ = writeln!(text, "# repo1-cipher-pass: --dir writes it");
        }
    }
    let _ = writeln!(text, "repo1-retention-full=2");
    let _ = writeln!(text, "start-fast=y");
    let _ = writeln!(text, "compress-type=lz4");
    if let Some(backup) = &member.options.backup {
        for (key, value) in &backup.options {
            let _ = writeln!(text, "{key}={value}");
        }
    }
    let port = member.postgres.local.rsplit(':').next().unwrap_or_default();
    let _ = writeln!(text, "\n[{}]", member.cluster.name);
    let _ = writeln!(text, "pg1-path={}", member.options.data_dir);
    let _ = writeln!(text, "pg1-port={port}");
    let _ = writeln!(text, "pg1-socket-path={}", member.options.socket_dir);
    let _ = writeln!(text, "pg1-user=postgres");
    text
}

/// pgBackRest with this member's configuration, if there are backups.
fn program(member: &Member<'_>) -> Option<String> {
    member.options.backup.as_ref()?;
    Some(format!(
        "pgbackrest --config={}/pgbackrest.conf --stanza={}",
        member.options.config_dir, member.cluster.name
    ))
}

/// Postgres' `archive_command`.
pub(super) fn archive_command(member: &Member<'_>) -> Option<String> {
    Some(format!("{} archive-push %p", program(member)?))
}

/// Postgres' `restore_command`.
pub(super) fn restore_command(member: &Member<'_>) -> Option<String> {
    Some(format!("{} archive-get %f \"%p\"", program(member)?))
}

/// How Patroni makes a standby from the last backup.
pub(super) fn replica_command(member: &Member<'_>) -> String {
    let program = program(member).unwrap_or_default();
    format!("{program} --delta --type=standby restore")
}

/// How Patroni makes the first member of a new cluster, if it is to come from a backup.
pub(super) fn bootstrap_command(member: &Member<'_>) -> Option<String> {
    let backup = member.options.backup.as_ref()?;
    let target = match backup.restore.as_ref()?.as_str() {
        "latest" => String::new(),
        time => format!(" --type=time --target='{time}' --target-action=promote"),
    };
    // An option of the command line overrides that of the file, also in the restore_command that pgBackRest writes.
    let repository = backup.restore_repository.as_ref();
    let repository = repository.map(|path| format!(" --repo1-path={path}"));
    let repository = repository.unwrap_or_default();
    let program = program(member)?;
    Some(format!("{program}{repository} --delta{target} restore"))
}

/// What Patroni runs when it has made a new cluster: without a stanza in the repository no WAL can be archived, and
/// Postgres would keep all of it. Patroni appends a connection string, which the shell ignores.
pub(super) fn post_bootstrap_command(member: &Member<'_>) -> Option<String> {
    let program = program(member)?;
    let folder = &member.options.config_dir;
    Some(format!(
        "sh -c 'PGPASSFILE={folder}/pgpass exec {program} stanza-create'"
    ))
}
