//! `teesql-sidecar cluster config`: prints the configuration of Patroni, etcd, `pg_hba.conf` and pgBackRest for this
//! member of a cluster.
//!
//! It exists so that those programs stay stock packages with stock configuration, and so that every member gets the same
//! ports from the same list of members. All addresses are on loopback: the sidecars' links carry them to the other
//! members, so neither Patroni nor etcd needs TLS.
//!
//! It must never print a password. Passwords go into files that only their owner can read, and only with `--dir`.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};

use crate::cli::output::{CommandOutput, EX_CANTCREAT, EX_OSERR, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{ClusterConfig, Config, Layers, PostgresConfig, Scope, with_flags};

mod etcd;
mod files;
mod hba;
mod options;
mod passwords;
mod patroni;
mod pgbackrest;
#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests;

use files::{File, Owner};
use options::Options;
use passwords::MemberPasswords;

/// The subcommand `cluster`.
#[must_use]
pub fn command() -> Command {
    Command::new("cluster")
        .about("Set up a cluster of several members with Patroni and etcd")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(config_command())
}

fn config_command() -> Command {
    let command = Command::new("config").about(
        "Print the configuration of Patroni, etcd, pg_hba.conf and pgBackRest for this member, or write it to files",
    );
    let command = with_flags(command, Scope::Serve).arg(
        Arg::new("what")
            .value_name("WHAT")
            .value_parser(Part::ALL.map(Part::name))
            .default_value("all"),
    );
    options::with_flags(command)
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .help_heading("Files")
                .help("Write files to this directory instead, with the passwords in those that only the owner can read, and replace existing ones"),
        )
        .arg(
            Arg::new("owner")
                .long("owner")
                .value_name("USER[:GROUP]")
                .requires("dir")
                .value_parser(|text: &str| text.parse::<Owner>())
                .help_heading("Files")
                .help("Give the files to this user, by name or number: the one that runs Patroni. Requires root"),
        )
}

/// What to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Patroni,
    Etcd,
    Hba,
    PgBackRest,
    All,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Patroni,
        Self::Etcd,
        Self::Hba,
        Self::PgBackRest,
        Self::All,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Patroni => "patroni",
            Self::Etcd => "etcd",
            Self::Hba => "hba",
            Self::PgBackRest => "pgbackrest",
            Self::All => "all",
        }
    }

    fn includes(self, part: Self) -> bool {
        self == Self::All || self == part
    }
}

/// Executes `cluster config`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let Some(("config", flags)) = flags.subcommand() else {
        return CommandOutput::error(EX_USAGE, "unknown command".to_owned());
    };
    let layers = Layers::from_process(Scope::Serve, flags);
    let config = match Config::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let Some(cluster) = &config.cluster else {
        let error = "cluster_name is not set: this sidecar belongs to no cluster";
        return CommandOutput::error(EX_USAGE, error.to_owned());
    };
    let member =
        match Options::new(flags, cluster).and_then(|options| Member::new(cluster, options)) {
            Ok(member) => member,
            Err(error) => return CommandOutput::error(EX_USAGE, error),
        };
    let part = flags.get_one::<String>("what").map(String::as_str);
    let part = Part::ALL
        .into_iter()
        .find(|known| Some(known.name()) == part);
    let part = part.unwrap_or(Part::All);
    match flags.get_one::<PathBuf>("dir") {
        None => print(&member, part),
        Some(_) => write(flags, &layers, &member, part),
    }
}

/// This member's configuration, with all that the generated files need.
struct Member<'a> {
    cluster: &'a ClusterConfig,
    postgres: Ports,
    patroni: Ports,
    etcd_client: Ports,
    etcd_peer: Ports,
    options: Options,
}

/// The addresses of a service.
struct Ports {
    /// Where it listens on its own member.
    local: String,
    /// Where each member's is reached, in the order of the members.
    members: Vec<String>,
    own: String,
}

impl<'a> Member<'a> {
    /// # Errors
    /// A service that Patroni and etcd need is not configured.
    fn new(cluster: &'a ClusterConfig, options: Options) -> Result<Self, String> {
        let ports = |name: &str| {
            let service = cluster
                .services
                .iter()
                .find(|service| service.name.as_str() == name);
            let service = service.ok_or_else(|| {
                format!(
                    "cluster_services has no service {name}, which a cluster with Patroni needs"
                )
            })?;
            let address = |member| service.address_of(member).to_string();
            Ok::<_, String>(Ports {
                local: service.local_address().to_string(),
                members: (0..cluster.members.len()).map(address).collect(),
                own: address(cluster.own),
            })
        };
        Ok(Self {
            postgres: ports("postgres")?,
            patroni: ports("patroni")?,
            etcd_client: ports("etcd-client")?,
            etcd_peer: ports("etcd-peer")?,
            cluster,
            options,
        })
    }

    /// The name of this member.
    fn name(&self) -> &str {
        self.cluster.own_member().name.as_str()
    }

    /// The generated files, without passwords.
    fn files(&self, part: Part) -> Vec<File> {
        let mut files = Vec::new();
        if part.includes(Part::Patroni) {
            files.push(File::public("patroni.yml", patroni::yaml(self)));
        }
        if part.includes(Part::Etcd) {
            files.push(File::public("etcd.env", etcd::environment(self)));
            files.push(File::public("etcd.sh", etcd::SCRIPT.to_owned()));
        }
        if part.includes(Part::Hba) {
            files.push(File::public("pg_hba.conf", hba::text()));
        }
        if part.includes(Part::PgBackRest) && (self.options.backup.is_some() || part != Part::All) {
            files.push(File::public(
                "pgbackrest.conf",
                pgbackrest::text(self, None),
            ));
        }
        files
    }

    /// The same, and the files with passwords.
    ///
    /// # Errors
    /// A password contains a character that the files cannot hold.
    fn files_with_passwords(
        &self,
        part: Part,
        passwords: &MemberPasswords,
    ) -> Result<Vec<File>, String> {
        let mut files = self.files(part);
        if part.includes(Part::Patroni) {
            files.push(File::private(
                "patroni.env",
                passwords.patroni_environment(self)?,
            ));
            files.push(File::private("pgpass", passwords.passfile()?));
        }
        if let Some(file) = files.iter_mut().find(|file| file.name == "pgbackrest.conf") {
            *file = File::private(file.name, pgbackrest::text(self, Some(passwords.backup()?)));
        }
        Ok(files)
    }
}

fn print(member: &Member<'_>, part: Part) -> CommandOutput {
    let files = member.files(part);
    let several = files.len() > 1;
    let mut text = String::new();
    for file in files {
        if several {
            text.push_str("# ---- ");
            text.push_str(file.name);
            text.push('\n');
        }
        text.push_str(&file.text);
    }
    CommandOutput::text(text)
}

fn write(flags: &ArgMatches, layers: &Layers, member: &Member<'_>, part: Part) -> CommandOutput {
    let Some(folder) = flags.get_one::<PathBuf>("dir") else {
        return print(member, part);
    };
    let postgres = match PostgresConfig::from_layers(layers) {
        Ok(postgres) => postgres,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let runtime = match crate::app::runtime::new_current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return CommandOutput::error(EX_OSERR, error.to_string()),
    };
    let resolved = MemberPasswords::resolve(postgres.passwords, postgres.guest_agent);
    let passwords = match runtime.block_on(resolved) {
        Ok(passwords) => passwords,
        Err(error) => return CommandOutput::error(EX_UNAVAILABLE, error.to_string()),
    };
    let files = match member.files_with_passwords(part, &passwords) {
        Ok(files) => files,
        Err(error) => return CommandOutput::error(EX_USAGE, error),
    };
    let owner = flags.get_one::<Owner>("owner").copied();
    let mut text = String::new();
    for file in files {
        match file.write(folder, owner) {
            Ok(path) => text.push_str(&format!("{}\n", path.display())),
            Err(error) => {
                let path = folder.join(file.name);
                let error = format!("{}: {error}", path.display());
                return CommandOutput::error(EX_CANTCREAT, error);
            }
        }
    }
    CommandOutput::text(text).best_effort()
}
