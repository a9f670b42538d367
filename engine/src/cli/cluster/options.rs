//! The flags of `cluster config` that are not settings of the sidecar: directories, and what Patroni and pgBackRest do.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::ClusterConfig;

/// Seconds between two loops of Patroni.
pub(super) const LOOP_WAIT: u16 = 5;
/// Seconds that etcd and Postgres may not answer before Patroni demotes the leader.
pub(super) const RETRY_TIMEOUT: u16 = 5;
/// The shortest `ttl`: Patroni's rule. Otherwise a leader can lose its key while it still retries. [Patroni, dynamic
/// configuration]
const MIN_TTL: u16 = LOOP_WAIT + 2 * RETRY_TIMEOUT;
/// The longest `ttl`. Writes stop for longer than that when a leader fails.
const MAX_TTL: u16 = 300;

/// The values of the flags.
pub(super) struct Options {
    pub(super) data_dir: String,
    pub(super) bin_dir: Option<String>,
    pub(super) socket_dir: String,
    pub(super) config_dir: String,
    pub(super) etcd_dir: String,
    /// How many members, from the first one on, founded the cluster's etcd: all, if it is not known.
    pub(super) founders: Option<usize>,
    /// The member that goes on alone after the majority was lost.
    pub(super) recover: Option<String>,
    /// Seconds that the leader's key in etcd is valid for without renewal.
    pub(super) ttl: u16,
    pub(super) synchronous: Synchronous,
    pub(super) watchdog: String,
    pub(super) backup: Option<Backup>,
}

/// Whether a commit waits for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Synchronous {
    /// For one standby, as long as there is one.
    On,
    /// For one standby, always: without one, writes wait.
    Strict,
    /// Never.
    Off,
}

/// Backups by pgBackRest.
pub(super) struct Backup {
    /// The repository's directory, or its prefix in an object store.
    pub(super) repository: String,
    /// Further options of pgBackRest.
    pub(super) options: Vec<(String, String)>,
    /// The target time at which a new cluster starts: `None` for an empty one, `latest` for the end of the archive.
    pub(super) restore: Option<String>,
    /// The repository that it is restored from, if that is another one.
    pub(super) restore_repository: Option<String>,
}

/// A flag: name, placeholder, default and help.
type Flag = (
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static str,
);

const FLAGS: [Flag; 14] = [
    (
        "data-dir",
        "PATH",
        Some("/var/lib/postgresql/data"),
        "Postgres' data directory",
    ),
    (
        "bin-dir",
        "PATH",
        None,
        "Directory of Postgres' programs; the default is to search PATH",
    ),
    (
        "socket-dir",
        "PATH",
        Some("/var/run/postgresql"),
        "Directory of Postgres' Unix socket",
    ),
    (
        "config-dir",
        "PATH",
        None,
        "Where the files will be when they are used [default: that of --dir, or else /etc/teesql]",
    ),
    (
        "etcd-dir",
        "PATH",
        Some("/var/lib/etcd/default"),
        "etcd's data directory",
    ),
    (
        "founders",
        "N",
        None,
        "The first N members founded the cluster; those after them were added later, and never found an etcd without it [default: all]",
    ),
    (
        "recover",
        "NAME",
        None,
        "The majority is lost: this member goes on alone, once, and the others join it. Name the same one on all members",
    ),
    (
        "ttl",
        "SECONDS",
        Some("20"),
        "Patroni's ttl: how long the leader's lock outlives a leader that fails; at least 15",
    ),
    (
        "synchronous",
        "MODE",
        Some("on"),
        "Whether a commit waits for a standby: on (while there is one), strict (without one, writes wait) or off",
    ),
    (
        "watchdog",
        "MODE",
        Some("automatic"),
        "Patroni's watchdog: off, automatic (used if there is a device; a TD has none unless its kernel has softdog) or required",
    ),
    (
        "backup-repository",
        "PATH",
        None,
        "Archive WAL and keep backups with pgBackRest in this directory, or under this prefix of an object store",
    ),
    (
        "backup-option",
        "KEY=VALUE",
        None,
        "Further option of pgBackRest, such as repo1-type=s3. Keys of an object store belong in PGBACKREST_ variables",
    ),
    (
        "restore",
        "TIME",
        None,
        "Start the new cluster from the last backup, recovered up to this time or to the end of the archive (latest)",
    ),
    (
        "restore-repository",
        "PATH",
        None,
        "Restore from this repository instead of the one that the new cluster archives into",
    ),
];

/// Adds the flags to `command`.
pub(super) fn with_flags(command: Command) -> Command {
    FLAGS
        .iter()
        .fold(command, |command, (name, placeholder, default, help)| {
            let arg = Arg::new(*name)
                .long(*name)
                .value_name(*placeholder)
                .help_heading("Files")
                .help(*help);
            let arg = match (*name, default) {
                ("backup-option", _) => arg.action(ArgAction::Append).requires("backup-repository"),
                ("restore", _) => arg.requires("backup-repository"),
                ("restore-repository", _) => arg.requires("restore"),
                ("founders", _) => arg.value_parser(clap::value_parser!(u8).range(1..)),
                ("synchronous", _) => arg.value_parser(["on", "strict", "off"]),
                ("watchdog", _) => arg.value_parser(["off", "automatic", "required"]),
                _ => arg,
            };
            command.arg(match default {
                Some(default) => arg.default_value(*default),
                None => arg,
            })
        })
}

impl Options {
    /// # Errors
    /// A value cannot be used, or names a member that `cluster` does not have.
    pub(super) fn new(flags: &ArgMatches, cluster: &ClusterConfig) -> Result<Self, String> {
        let text = |name: &str| flags.get_one::<String>(name).cloned();
        let path = |name: &str| absolute(name, text(name).unwrap_or_default());
        let folder = flags.get_one::<std::path::PathBuf>("dir");
        let folder = folder.map(|folder| folder.display().to_string());
        let config_dir = text("config-dir").or(folder);
        let backup = match text("backup-repository") {
            None => None,
            Some(repository) => Some(Backup {
                repository: absolute("backup-repository", repository)?,
                options: backup_options(flags)?,
                restore: text("restore").map(one_line).transpose()?,
                restore_repository: text("restore-repository")
                    .map(|path| absolute("restore-repository", path))
                    .transpose()?,
            }),
        };
        Ok(Self {
            data_dir: path("data-dir")?,
            bin_dir: text("bin-dir")
                .map(|path| absolute("bin-dir", path))
                .transpose()?,
            socket_dir: path("socket-dir")?,
            config_dir: absolute("config-dir", config_dir.unwrap_or("/etc/teesql".to_owned()))?,
            etcd_dir: path("etcd-dir")?,
            founders: flags
                .get_one("founders")
                .map(|founders: &u8| usize::from(*founders)),
            recover: text("recover")
                .map(|name| member(name, cluster))
                .transpose()?,
            ttl: ttl(&text("ttl").unwrap_or_default())?,
            synchronous: match text("synchronous").as_deref() {
                Some("strict") => Synchronous::Strict,
                Some("off") => Synchronous::Off,
                _ => Synchronous::On,
            },
            watchdog: text("watchdog").unwrap_or_default(),
            backup,
        })
    }
}

fn member(name: String, cluster: &ClusterConfig) -> Result<String, String> {
    let mut members = cluster.members.iter();
    match members.any(|member| member.name.as_str() == name) {
        true => Ok(name),
        false => Err(format!("--recover {name:?}: no such member")),
    }
}

fn ttl(text: &str) -> Result<u16, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (MIN_TTL..=MAX_TTL).contains(number));
    number.ok_or_else(|| format!("--ttl {text:?}: expected {MIN_TTL} to {MAX_TTL} seconds"))
}

/// A path that can stand in all generated files and in a shell command without quotes.
fn absolute(name: &str, path: String) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    match path.starts_with('/') && path.bytes().all(plain) {
        true => Ok(path),
        false => Err(format!(
            "--{name} {path:?}: expected an absolute path of letters, digits and / . _ -"
        )),
    }
}

fn backup_options(flags: &ArgMatches) -> Result<Vec<(String, String)>, String> {
    let options = flags.get_many::<String>("backup-option");
    let options = options.into_iter().flatten();
    options
        .map(|option| {
            let (key, value) = option
                .split_once('=')
                .filter(|(key, _)| {
                    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                    !key.is_empty() && key.bytes().all(allowed)
                })
                .ok_or_else(|| format!("--backup-option {option:?}: expected KEY=VALUE"))?;
            Ok((key.to_owned(), one_line(value.to_owned())?))
        })
        .collect()
}

fn one_line(text: String) -> Result<String, String> {
    match text.contains(|letter: char| letter.is_control() || letter == '\'') {
        true => Err(format!("{text:?}: a control character or a quote")),
        false => Ok(text),
    }
}
