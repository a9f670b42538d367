//! The command line of `teesql-loadtest`.

mod common;
mod flags;
mod loads;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgMatches, Command};

use crate::compare::{self, Options, Part};
use crate::consistency;
use crate::error::{Error, Result, io_context};
use crate::failover;
use crate::load::MAX_CONNECTIONS;
use crate::mock_tdx::{MAX_PLATFORMS, MockTdx};
use crate::peers::workspace::Placement;
use crate::peers::{PeerKind, fake_postgres, relay};
use crate::progress::Progress;
use crate::report::Report;
use crate::storm;
use flags::{flag, list, number, path, switch};

/// Builds the command line with all subcommands.
#[must_use]
pub fn command() -> Command {
    Command::new("teesql-loadtest")
        .about("Load generator for PostgreSQL behind TLS, and benchmark of the sidecar against other proxies")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(loads::commands())
        .subcommand(compare_command())
        .subcommand(failover_command())
        .subcommand(
            Command::new("report")
                .about("Evaluate the targets of a report.json again, and write its page and table")
                .arg(flag("from", "FILE", "The report.json to read").required(true))
                .arg(flag("out", "DIR", "Directory for report.html and report.json").required(true)),
        )
        .subcommand(
            Command::new("agree")
                .about("Compare the measured targets of two runs")
                .arg(flag("first", "FILE", "report.json of the first run").required(true))
                .arg(flag("second", "FILE", "report.json of the second run").required(true)),
        )
        .subcommand(consistency_command())
        .subcommand(storm_command())
        .subcommand(
            Command::new("mock-tdx")
                .about("Run a PCCS for the mock TDX until stopped, and print the sidecar's settings for it")
                .arg(flag("out", "DIR", "Directory for the roots and a server certificate (PEM)").required(true)),
        )
        .subcommand(internal("relay").arg(flag("upstream", "HOST:PORT", "").required(true)))
        .subcommand(internal("fake-postgres"))
        .subcommand(storm_clients_command())
}

/// Subcommands that a comparison starts as separate processes.
fn internal(name: &'static str) -> Command {
    Command::new(name)
        .hide(true)
        .arg(flag("listen", "HOST:PORT", "").required(true))
}

fn consistency_command() -> Command {
    Command::new("consistency")
        .about("Check what a cluster promises while its members fail: the command of `teesql-sidecar dev --members 3`")
        .arg(flag("seed", "N", "Stands for the faults and their order [default: 1]"))
        .arg(flag("faults", "N", "Number of faults, about 40 seconds each [default: 3]"))
        .arg(flag(
            "kinds",
            "KIND,…",
            "Only these faults: kill, pause, cut-off, clock, switchover [default: all]",
        ))
        .arg(flag("writers", "N", "Number of writers [default: 4]"))
        .arg(flag("readers", "N", "Number of readers of each member [default: 2]"))
}

fn storm_command() -> Command {
    Command::new("storm")
        .about("Start a sidecar, and let clients with unknown certificates connect to it at the same time, during running sessions")
        .arg(flag("clients", "N", "Number of clients [default: 1000]"))
        .arg(flag("platforms", "N", "Number of platforms that their certificates are of [default: 1]"))
        .arg(flag("sessions", "N", "Number of sessions that send queries meanwhile [default: 8]"))
        .arg(flag(
            "cpu-share",
            "SHARE",
            "Limit the sidecar to this share of the machine's CPU by a cgroup, 0.01 to 1 [default: no limit]",
        ))
        .arg(flag("patience", "S", "Clients close their connections after so many seconds, and come back [default: they wait]"))
        .arg(flag("before", "S", "Time before the storm, in seconds [default: 3]"))
        .arg(flag("seconds", "S", "How long the sessions continue after its start, in seconds [default: 10]"))
        .arg(flag(
            "programs",
            "DIR",
            "Directory of teesql-sidecar [default: that of this program]",
        ))
}

/// The clients of a storm, in a process of [`storm_command`].
fn storm_clients_command() -> Command {
    Command::new("storm-clients")
        .hide(true)
        .arg(flag("to", "IP:PORT", "").required(true))
        .arg(flag("first", "N", ""))
        .arg(flag("clients", "N", ""))
        .arg(flag("platforms", "N", ""))
        .arg(flag("patience", "S", ""))
}

fn failover_command() -> Command {
    Command::new("failover")
        .about("Measure how long writes stop at failovers and switchovers of `teesql-sidecar dev --members`, whose command this must be")
        .arg(flag("failovers", "N", "Kills of the leader's member [default: 20]"))
        .arg(flag("switchovers", "N", "Planned switchovers [default: 20]"))
        .arg(flag(
            "idle",
            "S",
            "Measure the CPU of the idle sidecars for this many seconds [default: 0]",
        ))
        .arg(flag(
            "backup",
            "MIB",
            "Measure a base backup of a database of this size, and COPY of it [default: 0]",
        ))
        .arg(flag("label", "TEXT", "Name of the results [default: cluster]"))
}

fn compare_command() -> Command {
    Command::new("compare")
        .about("Measure the sidecar and the other proxies in turn, and write the report")
        .arg(switch(
            "quick",
            "Fewer and shorter measurements: about 11 minutes instead of 40",
        ))
        .arg(flag(
            "rounds",
            "N",
            "Number of rounds, each of which measures every arm [default: 5; 3 with --quick]",
        ))
        .arg(flag(
            "seconds",
            "S",
            "Length of each measurement, in seconds [default: 1.5; 1 with --quick]",
        ))
        .arg(flag(
            "clients",
            "N,…",
            "Connections of the query loads [default: 1,4,16,64; 1,16 with --quick]",
        ))
        .arg(flag(
            "bulk",
            "MIB",
            "Size of each COPY, in MiB [default: 256]",
        ))
        .arg(flag(
            "idle",
            "N",
            "Idle connections [default: 5000; 1000 with --quick]",
        ))
        .arg(flag(
            "arms",
            "ARM,…",
            "Arms to measure: proxies by name, or direct; sidecar is always included [default: all]",
        ))
        .arg(flag(
            "parts",
            "PART,…",
            "Parts to run: queries, apart, open-loop, mixture, bulk, connect, idle, growth, storm, verdicts [default: all]",
        ))
        .arg(switch(
            "apart",
            "Keep Postgres and the load off the proxies' core in all parts",
        ))
        .arg(flag(
            "threads",
            "N",
            "Threads of the load; 0 is one for every two cores [default: 0]",
        ))
        .arg(flag(
            "programs",
            "DIR",
            "Directory of teesql-sidecar and the baselines [default: that of this program]",
        ))
        .arg(flag(
            "out",
            "DIR",
            "Directory for report.html and report.json [default: target/bench]",
        ))
}

/// Runs the given subcommand and prints its result.
///
/// # Errors
/// Any error. All started processes are stopped before it is returned.
pub fn execute(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("compare", flags)) => compare(flags),
        Some(("failover", flags)) => failover(flags),
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
        Some(("storm", flags)) => {
            print(&storm::run(&storm_options(flags)?, &Progress::new()?)?.to_string())
        }
        Some(("storm-clients", flags)) => storm::clients::serve(&storm::clients::Clients {
            to: flags::address(flags, "to")?,
            first: number(flags, "first", 0..=storm::MAX_CLIENTS, 0)?,
            count: number(flags, "clients", 1..=storm::MAX_CLIENTS, 1)?,
            platforms: number(flags, "platforms", 1..=MAX_PLATFORMS, 1)?,
            patience: patience(flags)?,
        }),
        Some(("consistency", flags)) => print(&consistency::run::run(
            &consistency_options(flags)?,
            &Progress::new()?,
        )?),
        Some((name, flags)) => print(&loads::execute(name, flags, &Progress::new()?)?),
        None => Err(Error::Usage("no command".to_owned())),
    }
}

fn patience(flags: &ArgMatches) -> Result<Option<Duration>> {
    let given = flags.contains_id("patience");
    let seconds = given.then(|| number(flags, "patience", 0.1..=30.0, 30.0));
    Ok(seconds.transpose()?.map(Duration::from_secs_f64))
}

fn storm_options(flags: &ArgMatches) -> Result<storm::Options> {
    let seconds = |name, default| {
        let seconds = number(flags, name, 0.1..=600.0, default);
        seconds.map(Duration::from_secs_f64)
    };
    let share = flags.contains_id("cpu-share");
    let share = share.then(|| number(flags, "cpu-share", 0.01..=1.0, 1.0));
    Ok(storm::Options {
        clients: number(flags, "clients", 1..=storm::MAX_CLIENTS, 1_000)?,
        platforms: number(flags, "platforms", 1..=MAX_PLATFORMS, 1)?,
        sessions: number(flags, "sessions", 1..=1_000, 8)?,
        cpu_share: share.transpose()?,
        patience: patience(flags)?,
        before: seconds("before", 3.0)?,
        during: seconds("seconds", 10.0)?,
        programs: path(flags, "programs"),
    })
}

fn consistency_options(flags: &ArgMatches) -> Result<consistency::run::Options> {
    Ok(consistency::run::Options {
        seed: flags::value(flags, "seed")?.unwrap_or(1),
        faults: number(flags, "faults", 0..=10_000, 3)?,
        kinds: list(flags, "kinds")?.unwrap_or_default(),
        clients: consistency::workload::Clients {
            writers: number(flags, "writers", 1..=64, 4)?,
            readers: number(flags, "readers", 0..=64, 2)?,
        },
    })
}

fn failover(flags: &ArgMatches) -> Result<()> {
    let options = failover::Options {
        failovers: number(flags, "failovers", 0..=1_000, 20)?,
        switchovers: number(flags, "switchovers", 0..=1_000, 20)?,
        idle: number(flags, "idle", 0..=3_600, 0)?,
        backup: number(flags, "backup", 0..=65_536, 0)?,
        label: flags::text(flags, "label").unwrap_or("cluster").to_owned(),
    };
    let report = failover::run(&options, &Progress::new()?)?;
    print(&report.to_string())?;
    match report.is_sound() {
        true => Ok(()),
        false => Err(Error::Peer(
            "acknowledged writes are missing or were taken by two members".to_owned(),
        )),
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

/// Reads the report that flag `name` names, and evaluates the current targets on it.
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
        placement: match flags.get_flag("apart") {
            true => Placement::Apart,
            false => Placement::Shared,
        },
        threads: number(flags, "threads", 0..=256, defaults.threads)?,
        programs: path(flags, "programs"),
        clients,
        ..defaults
    })
}

/// The named arms and the sidecar, in the order of the charts.
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

/// Runs the mock PCCS until a signal arrives, and prints the settings that a sidecar needs for it.
fn serve_mock_pccs(folder: &Path, progress: &Progress) -> Result<()> {
    let tdx = MockTdx::new()?;
    std::fs::create_dir_all(folder).map_err(io_context(folder.display().to_string()))?;
    tdx.write(folder)?;
    let shown = folder.display();
    print(&format!(
        "TEESQL_DANGEROUS_TDX_ROOT_CA={shown}/root.pem TEESQL_PCCS={} \
         TEESQL_TLS_CERT={shown}/cert.pem TEESQL_TLS_KEY={shown}/sidecar.key",
        tdx.pccs_url()
    ))?;
    loop {
        progress.check_signal()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn print(text: &str) -> Result<()> {
    let written = writeln!(std::io::stdout(), "{text}");
    written.map_err(io_context("cannot write to stdout"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Options> {
        let line = ["teesql-loadtest", "compare"].iter().chain(flags);
        let matches = command().try_get_matches_from(line).unwrap();
        options(matches.subcommand().unwrap().1)
    }

    #[test]
    fn flags_override_the_defaults_of_quick() {
        let options = parse(&["--quick", "--rounds", "5", "--parts", "bulk,idle"]).unwrap();
        assert_eq!((options.rounds, options.idle), (5, 1_000));
        assert_eq!(options.parts, [Part::Bulk, Part::Idle]);
        assert!(parse(&["--rounds", "101"]).is_err());
        assert!(parse(&["--clients", "1,0"]).is_err());
        assert!(parse(&["--parts", "all"]).is_err());
    }

    #[test]
    fn the_sidecar_is_always_measured() {
        let arms = |names| parse(&["--arms", names]).unwrap().arms;
        assert_eq!(arms("direct"), [PeerKind::Direct, PeerKind::Sidecar]);
        let expected = [PeerKind::TokioBaseline, PeerKind::Sidecar];
        assert_eq!(arms("tokio-baseline"), expected);
        // The earlier name.
        assert_eq!(arms("twin"), expected);
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
