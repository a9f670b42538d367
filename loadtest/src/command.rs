//! The command line of `teesql-loadtest`.

mod common;
mod flags;
mod loads;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgMatches, Command};

use crate::compare::{self, Options, Part};
use crate::error::{Error, Result, io_context};
use crate::load::MAX_CONNECTIONS;
use crate::mock_tdx::MockTdx;
use crate::peers::{PeerKind, fake_postgres, relay};
use crate::progress::Progress;
use crate::report::Report;
use flags::{flag, list, number, path, switch};

/// All subcommands.
#[must_use]
pub fn command() -> Command {
    Command::new("teesql-loadtest")
        .about("Load for PostgreSQL behind TLS, and the sidecar measured beside its peers")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(loads::commands())
        .subcommand(compare_command())
        .subcommand(
            Command::new("report")
                .about("Judges a report.json anew, and makes its page and table again")
                .arg(flag("from", "FILE", "A report.json").required(true))
                .arg(flag("out", "DIR", "Where report.html and report.json go").required(true)),
        )
        .subcommand(
            Command::new("agree")
                .about("How far apart the targets' ratios of two runs are")
                .arg(flag("first", "FILE", "A report.json").required(true))
                .arg(flag("second", "FILE", "Another").required(true)),
        )
        .subcommand(
            Command::new("mock-tdx")
                .about("A PCCS for certificates of the mock TDX, until it is stopped")
                .arg(flag("out", "DIR", "For root, CA and a server's certificate").required(true)),
        )
        .subcommand(internal("relay").arg(flag("upstream", "HOST:PORT", "").required(true)))
        .subcommand(internal("fake-postgres"))
}

/// What a comparison starts as a process of its own.
fn internal(name: &'static str) -> Command {
    Command::new(name)
        .hide(true)
        .arg(flag("listen", "HOST:PORT", "").required(true))
}

fn compare_command() -> Command {
    Command::new("compare")
        .about("Measures all arms in turns, and writes the report")
        .arg(switch(
            "quick",
            "About 3 minutes instead of 18, with less to say",
        ))
        .arg(flag("rounds", "N", "Rounds over all arms [default: 7]"))
        .arg(flag("seconds", "S", "Of each measurement [default: 1.5]"))
        .arg(flag(
            "clients",
            "N,…",
            "Connections of the query loads [default: 1,4,16,64]",
        ))
        .arg(flag("bulk", "MIB", "Of each COPY [default: 256]"))
        .arg(flag("idle", "N", "Idle connections [default: 5000]"))
        .arg(flag(
            "arms",
            "ARM,…",
            "Which arms; ours is always among them",
        ))
        .arg(flag(
            "parts",
            "PART,…",
            "queries, bulk, connect, idle, growth, storm, verdicts",
        ))
        .arg(switch(
            "apart",
            "Postgres and the load keep off the proxies' core",
        ))
        .arg(flag(
            "threads",
            "N",
            "Threads of the load [default: one for every two cores]",
        ))
        .arg(flag(
            "programs",
            "DIR",
            "Where teesql-sidecar and tokio-baseline are [default: here]",
        ))
        .arg(flag(
            "out",
            "DIR",
            "For report.html and report.json [default: target/bench]",
        ))
}

/// Does what the command line says, and prints its answer.
///
/// # Errors
/// Anything; nothing is left running.
pub fn execute(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("compare", flags)) => compare(flags),
        Some(("report", flags)) => rerender(flags),
        Some(("agree", flags)) => {
            let [first, second] = ["first", "second"].map(|name| read_report(flags, name));
            print(&first?.agreement(&second?))
        }
        Some(("relay", flags)) => relay::serve(
            flags::address(flags, "listen")?,
            flags::address(flags, "upstream")?,
        ),
        Some(("mock-tdx", flags)) => {
            serve_mock_pccs(&path(flags, "out").unwrap_or_default(), &Progress::new()?)
        }
        Some(("fake-postgres", flags)) => fake_postgres::serve(flags::address(flags, "listen")?),
        Some((name, flags)) => print(&loads::execute(name, flags, &Progress::new()?)?),
        None => Err(Error::Usage("no command".to_owned())),
    }
}

fn compare(flags: &ArgMatches) -> Result<()> {
    let options = options(flags)?;
    let progress = Progress::new()?;
    let report = compare::run(&options, &progress)?;
    let folder = path(flags, "out").unwrap_or_else(|| PathBuf::from("target/bench"));
    write_report(&report, &folder)
}

fn rerender(flags: &ArgMatches) -> Result<()> {
    let folder = path(flags, "out").ok_or_else(|| Error::Usage("--out".to_owned()))?;
    write_report(&read_report(flags, "from")?, &folder)
}

/// The report that a flag names, read_report by the targets of today.
fn read_report(flags: &ArgMatches, name: &str) -> Result<Report> {
    let file = path(flags, name).ok_or_else(|| Error::Usage(format!("--{name}")))?;
    let mut report = Report::read(&file)?;
    compare::evaluate_targets(&mut report);
    Ok(report)
}

fn write_report(report: &Report, folder: &Path) -> Result<()> {
    report.write(folder)?;
    print(&report.table())?;
    print(&format!("\n{}", folder.join("report.html").display()))
}

fn options(flags: &ArgMatches) -> Result<Options> {
    let defaults = match flags.get_flag("quick") {
        true => Options::quick(),
        false => Options::standard(),
    };
    let clients = list(flags, "clients")?.unwrap_or_else(|| defaults.clients.clone());
    if clients
        .iter()
        .any(|clients| !(1..=MAX_CONNECTIONS).contains(clients))
    {
        return Err(Error::Usage(format!(
            "--clients: 1 to {MAX_CONNECTIONS} each"
        )));
    }
    Ok(Options {
        rounds: number(flags, "rounds", 1..=compare::MAX_ROUNDS, defaults.rounds)?,
        seconds: flags::seconds(flags, defaults.seconds)?,
        bulk: number(flags, "bulk", 1..=65_536, defaults.bulk)?,
        idle: number(flags, "idle", 10..=MAX_CONNECTIONS, defaults.idle)?,
        arms: arms(flags)?,
        parts: parts(flags)?,
        apart: flags.get_flag("apart"),
        threads: number(flags, "threads", 0..=256, defaults.threads)?,
        programs: path(flags, "programs"),
        clients,
        ..defaults
    })
}

/// Those that are named and ours, in the order of pictures.
fn arms(flags: &ArgMatches) -> Result<Vec<PeerKind>> {
    let named = list::<PeerKind>(flags, "arms")?;
    let wanted = |kind: &PeerKind| match &named {
        None => true,
        Some(named) => *kind == PeerKind::Sidecar || named.contains(kind),
    };
    Ok(PeerKind::ALL.into_iter().filter(wanted).collect())
}

fn parts(flags: &ArgMatches) -> Result<Vec<Part>> {
    let Some(named) = list::<String>(flags, "parts")? else {
        return Ok(Part::ALL.to_vec());
    };
    let part = |name: &String| {
        let found = Part::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| Error::Usage(format!("no such part: {name}")))
    };
    named.iter().map(part).collect()
}

/// Vouches for the mock TDX until it is stopped, and says how a sidecar is told of
/// it.
fn serve_mock_pccs(folder: &Path, progress: &Progress) -> Result<()> {
    let tdx = MockTdx::new()?;
    std::fs::create_dir_all(folder).map_err(io_context(folder.display().to_string()))?;
    tdx.write(folder)?;
    let shown = folder.display();
    print(&format!(
        "TEESQL_DANGEROUS_TDX_ROOT_CA={shown}/root.pem TEESQL_PCCS={} \
         TEESQL_TLS_CERT={shown}/cert.pem TEESQL_TLS_KEY={shown}/key.pem",
        tdx.pccs_url()
    ))?;
    loop {
        progress.check_signal()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn print(text: &str) -> Result<()> {
    let written = writeln!(std::io::stdout(), "{text}");
    written.map_err(io_context("cannot write"))
}
