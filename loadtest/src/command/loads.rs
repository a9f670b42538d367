//! The single loads: `query`, `connect`, `idle`, `bulk` and `storm`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{ArgMatches, Command};

use super::common::{cost, distribution, endpoint, login};
use super::flags::{flag, number, seconds, switch, text, value};
use crate::endpoint::{Endpoint, Login};
use crate::error::{Error, Result, io_context};
use crate::load::{MAX_CONNECTIONS, bulk, connect, connection_storm, idle, query};
use crate::machine::raise_descriptor_limit;
use crate::mock_tdx::MockTdx;
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::script::QueryMode;
use crate::stats::format_figure;

/// Most units a second of an open loop.
const MAX_RATE: f64 = 1e6;
/// Most units of an open loop in all: all of them may have to wait in memory.
const MAX_DUE: f64 = 2e7;

pub(super) fn commands() -> [Command; 5] {
    [
        shared("query", "The queries of pgbench in a closed loop, or an open one at a fixed rate")
            .arg(flag("mode", "MODE", "simple, extended, prepared, pipelined or tpcb [default: prepared]"))
            .arg(flag("scale", "N", "Scale of pgbench's tables [default: 1]"))
            .arg(flag("rate", "N", "Units a second: an open loop, latency from the intended start")),
        shared("connect", "New connections: full handshakes, or with the login behind them")
            .arg(switch("login", "Log in too, instead of the handshake alone"))
            .arg(flag("certificates", "KIND", "one, each (of the clients one of its own) or new (one that nobody has seen for every connection) [default: one]"))
            .arg(flag("count", "N", "How many new ones; it ends when they are used up [default: 2000]")),
        shared("idle", "Connections that rest, and the memory of the process that holds them")
            .arg(switch("gradual", "Look at a fifth and a half of them too")),
        shared("bulk", "COPY out or in, with the content checked at both ends")
            .arg(flag("way", "WAY", "out or in [default: out]"))
            .arg(flag("mib", "N", "How much [default: 256]")),
        shared("storm", "Certificates that nobody has seen, all at once, beside sessions")
            .arg(flag("strangers", "N", "How many [default: 1000]"))
            .arg(flag("scale", "N", "Scale of pgbench's tables [default: 1]")),
    ]
}

/// A load with the flags that all of them have.
fn shared(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .arg(flag("to", "IP:PORT", "The other end").required(true))
        .arg(flag(
            "opening",
            "OPENING",
            "plain, ssl-request, direct or raw [default: ssl-request]",
        ))
        .arg(flag("user", "ROLE", "[default: teesql_read]"))
        .arg(flag("database", "NAME", "[default: postgres]"))
        .arg(flag(
            "password-file",
            "FILE",
            "The role's password or the cluster's secret [env: PGPASSWORD]",
        ))
        .arg(flag(
            "ca",
            "FILE",
            "Certificates that the server is trusted by; needed beyond this machine",
        ))
        .arg(flag(
            "server-name",
            "NAME",
            "In the server's certificate [default: localhost]",
        ))
        .arg(flag("cert", "FILE", "This client's certificates, PEM"))
        .arg(flag("key", "FILE", "Their key, PEM"))
        .arg(switch(
            "mock-tdx",
            "A certificate of the mock TDX as this client's; see mock-tdx",
        ))
        .arg(flag("clients", "N", "Connections; bulk has one [default: 16]"))
        .arg(flag("threads", "N", "Threads [default: 1]"))
        .arg(flag("seconds", "S", "That are measured: of idle the rest, of storm the quiet and the storm each; not of bulk [default: 5]"))
        .arg(flag("pid", "PID", "The process whose CPU and memory count; idle needs it"))
}

pub(super) fn execute(name: &str, flags: &ArgMatches, progress: &Progress) -> Result<String> {
    let _ = raise_descriptor_limit();
    let tdx = MockTdx::new()?;
    let load = Load::read(flags, tdx)?;
    match name {
        "query" => load.query(flags, progress),
        "connect" => load.connect(flags, progress),
        "idle" => load.idle(flags, progress),
        "bulk" => load.bulk(flags, progress),
        "storm" => load.storm(flags, progress),
        _ => Err(Error::Usage(format!("no such command: {name}"))),
    }
}

/// What the flags of all loads say.
struct Load {
    tdx: MockTdx,
    endpoint: Endpoint,
    login: Login,
    clients: usize,
    threads: usize,
    seconds: f64,
    pid: Option<Pid>,
}

impl Load {
    fn read(flags: &ArgMatches, tdx: MockTdx) -> Result<Self> {
        Ok(Self {
            endpoint: endpoint(flags, &tdx)?,
            login: login(flags)?,
            clients: number(flags, "clients", 1..=MAX_CONNECTIONS, 16)?,
            threads: number(flags, "threads", 1..=256, 1)?,
            seconds: seconds(flags, 5.0)?,
            pid: value(flags, "pid")?,
            tdx,
        })
    }

    fn query(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let rate = value::<f64>(flags, "rate")?;
        if rate.is_some_and(|rate| !(rate > 0.0 && rate <= MAX_RATE)) {
            return Err(Error::Usage(format!("--rate: above 0, to {MAX_RATE}")));
        }
        if rate.unwrap_or(0.0) * self.seconds > MAX_DUE {
            return Err(Error::Usage(format!(
                "--rate times --seconds: at most {MAX_DUE}"
            )));
        }
        let load = query::QueryLoad {
            mode: value(flags, "mode")?.unwrap_or(QueryMode::Prepared),
            scale: number(flags, "scale", 1..=10_000, 1)?,
            threads: self.threads,
            rate,
            pid: self.pid,
            ..query::QueryLoad::new(
                self.endpoint.clone(),
                self.login.clone(),
                self.clients,
                self.seconds,
            )
        };
        let outcome = load.run(progress)?;
        let [latencies, ..] = &outcome.latencies;
        let mut text = format!("{} queries/s", format_figure(outcome.per_second()));
        distribution(&mut text, latencies);
        if rate.is_some() {
            let _ = write!(
                text,
                "\nfrom the intended start; the load itself was late by p50 {} µs, p99 {} µs; \
                 {} were due and never begun",
                format_figure(outcome.lateness.percentile(50.0)),
                format_figure(outcome.lateness.percentile(99.0)),
                outcome.unserved,
            );
        }
        cost(&mut text, &outcome.meter, self.seconds);
        Ok(text)
    }

    fn connect(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let until = match flags.get_flag("login") {
            true => connect::Until::Login,
            false => connect::Until::Handshake,
        };
        let count = number(flags, "count", 1..=100_000, 2_000)?;
        let (certificate_use, wanted) = match text(flags, "certificates").unwrap_or("one") {
            "one" => (connect::CertificateUse::Shared, 0),
            "each" => (connect::CertificateUse::PerClient, self.clients),
            "new" => (connect::CertificateUse::PerConnection, count),
            other => {
                return Err(Error::Usage(format!(
                    "--certificates {other}: one, each or new"
                )));
            }
        };
        let endpoints = match wanted {
            0 => vec![self.endpoint.clone()],
            wanted => self.unknown_clients(wanted, progress)?,
        };
        let (endpoint, login) = (self.endpoint.clone(), self.login.clone());
        let load = connect::ConnectLoad {
            endpoints,
            certificate_use,
            threads: self.threads,
            pid: self.pid,
            ..connect::ConnectLoad::new(endpoint, login, until, self.clients, self.seconds)
        };
        let outcome = load.run(progress)?;
        let mut text = format!(
            "{} connections/s, {} failed",
            format_figure(outcome.per_second()),
            outcome.failed
        );
        if let Some(reason) = &outcome.reason {
            let _ = write!(text, ": {reason}");
        }
        distribution(&mut text, &outcome.latencies);
        if let Some(per_core) = outcome.per_core() {
            let _ = write!(
                text,
                "\n{} for each second of the process' CPU",
                format_figure(per_core)
            );
        }
        cost(&mut text, &outcome.meter, self.seconds);
        Ok(text)
    }

    /// Targets with certificates that nobody has seen, of this run.
    fn unknown_clients(&self, count: usize, progress: &Progress) -> Result<Vec<Endpoint>> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| io_context("no randomness")(error.into()))?;
        let run = hex::encode(nonce);
        let issue = |number: usize| {
            progress.check_signal()?;
            progress.status(&format!("issuing certificates: {number}"));
            let chain = self.tdx.identity(&format!("{run} {number}"))?;
            self.endpoint.with_identity(&chain)
        };
        (0..count).map(issue).collect()
    }

    fn idle(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let pid = self
            .pid
            .ok_or_else(|| Error::Usage("--pid is missing".to_owned()))?;
        let steps = match flags.get_flag("gradual") {
            true => vec![self.clients / 5, self.clients / 2, self.clients],
            false => vec![self.clients],
        };
        let load = idle::IdleLoad {
            endpoint: self.endpoint.clone(),
            login: self.login.clone(),
            steps,
            idle_time: Duration::from_secs_f64(self.seconds),
            pid,
        };
        let outcome = load.run(progress)?;
        let mut text = format!("before: PSS {} KB", format_figure(outcome.before.pss));
        for point in outcome.steps.iter().chain([&outcome.after_idle]) {
            let _ = write!(
                text,
                "\n{} connections: PSS {} KB, RSS {} KB, {} KB each",
                point.connections,
                format_figure(point.pss),
                format_figure(point.rss),
                format_figure(outcome.per_connection(*point)),
            );
        }
        text.push_str(" (after a rest)");
        Ok(text)
    }

    fn bulk(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let direction = match text(flags, "way").unwrap_or("out") {
            "out" => bulk::Direction::Out,
            "in" => bulk::Direction::In,
            other => return Err(Error::Usage(format!("--way {other}: out or in"))),
        };
        let load = bulk::CopyLoad {
            endpoint: self.endpoint.clone(),
            login: self.login.clone(),
            direction,
            rows: number(flags, "mib", 1..=65_536, 256)? * 1024,
            check: true,
            pid: self.pid,
        };
        let outcome = load.run(progress)?;
        let mut text = format!(
            "{} GB/s, content as it has to be",
            format_figure(outcome.gb_per_second())
        );
        if let Some(cpu) = outcome.cpu_per_gb() {
            let _ = write!(
                text,
                "\n{} s of the process' CPU for each GB",
                format_figure(cpu)
            );
        }
        cost(&mut text, &outcome.meter, outcome.seconds);
        Ok(text)
    }

    fn storm(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let count = number(flags, "strangers", 1..=MAX_CONNECTIONS, 1_000)?;
        let measured = Duration::from_secs_f64(self.seconds);
        let (endpoint, login) = (self.endpoint.clone(), self.login.clone());
        let load = connection_storm::ConnectionStorm {
            sessions: query::QueryLoad {
                scale: number(flags, "scale", 1..=10_000, 1)?,
                threads: self.threads,
                pid: self.pid,
                ..query::QueryLoad::new(endpoint, login.clone(), self.clients, self.seconds)
            },
            unknown_clients: self.unknown_clients(count, progress)?,
            login,
            before: measured,
            during: measured,
        };
        let outcome = load.run(progress)?;
        let (before, during) = outcome.p99();
        let admission = &outcome.admission;
        let mut text = format!(
            "sessions' p99: quiet {} µs, stormy {} µs, ratio {}\n{} strangers admitted, {} refused, in {:?}",
            format_figure(before),
            format_figure(during),
            format_figure(during / before),
            admission.admitted,
            admission.refused,
            admission.took,
        );
        if let Some(reason) = &admission.reason {
            let _ = write!(text, ": {reason}");
        }
        Ok(text)
    }
}
