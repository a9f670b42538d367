//! `package-files`: writes what the Debian packages hold besides the programs, made from the tables of the programs.
//!
//! A separate program, so that what it needs is not part of the programs that are shipped. `scripts/package-deb` runs
//! it. The same sources give the same bytes: no date, host name or path may get into a file.

mod completions;
mod copyright;
mod defaults;
mod expression;
mod manual;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use engine::cli::{forward, program};
use engine::config::Scope;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A program with what its package holds.
pub(crate) struct Product {
    pub(crate) command: Command,
    pub(crate) scope: Scope,
    /// The configuration file that the package installs.
    pub(crate) configuration: &'static str,
    /// Its header.
    pub(crate) header: &'static str,
    /// What it sets.
    pub(crate) set: &'static [(&'static str, &'static str)],
    /// Other files of the package, for the manual page, each with its description.
    pub(crate) files: &'static [(&'static str, &'static str)],
}

fn products() -> [Product; 2] {
    [
        defaults::sidecar(program::sidecar()),
        defaults::forward(forward::command()),
    ]
}

fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).required(true);
    Command::new("package-files")
        .subcommand_required(true)
        .subcommand(
            Command::new("files")
                .about("Write the files of both packages, as a tree for each")
                .arg(path("folder")),
        )
        .subcommand(
            Command::new("copyright")
                .about("Write copyright and third-party-licenses")
                .arg(path("crates").help("The output of `cargo tree`: the crates that are linked"))
                .arg(path("metadata").help("The output of `cargo metadata`"))
                .arg(path("folder")),
        )
}

fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("copyright", paths)) => {
            let read = |name| fs::read_to_string(path(paths, name));
            let (crates, metadata) = (read("crates")?, read("metadata")?);
            let folder = path(paths, "folder");
            let all = copyright::linked_crates(&crates, &metadata)?;
            write(&folder.join("copyright"), copyright::dep5(&all)?)?;
            write(
                &folder.join("third-party-licenses"),
                copyright::notices(&all),
            )
        }
        Some((_, paths)) => {
            for product in products() {
                write_files(path(paths, "folder"), product)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a Path {
    let text = matches.get_one::<String>(name);
    Path::new(text.map_or("", String::as_str))
}

fn write_files(folder: &Path, product: Product) -> Result<()> {
    let root = folder.join(product.command.get_name());
    let configuration = defaults::file(&product)?;
    write(&root.join(product.configuration), configuration)?;
    for (name, page) in manual::pages(&product)? {
        let section = name.rsplit('.').next().unwrap_or_default();
        write(
            &root.join(format!("usr/share/man/man{section}/{name}")),
            page,
        )?;
    }
    for (name, script) in completions::scripts(&product.command) {
        write(&root.join(name), script)?;
    }
    Ok(())
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| format!("{shown}: {error}"))?;
    }
    fs::write(path, contents).map_err(|error| format!("{shown}: {error}").into())
}
