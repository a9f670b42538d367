//! The subcommands for single loads: `query`, `connect`, `idle` and `bulk`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{ArgMatches, Command};

use super::common::{cost, distribution, endpoint, login};
use super::flags::{flag, number, seconds, switch, text, value};
use crate::endpoint::{Endpoint, Login};
use crate::error::{Error, Result, io_context};
use crate::load::{MAX_CONNECTIONS, bulk, connect, idle, query};
use crate::machine::raise_descriptor_limit;
use crate::mock_tdx::MockTdx;
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::script::QueryMode;
use crate::stats::format_figure;

/// Maximum transactions per second of an open loop.
const MAX_RATE: f64 = 1e6;
/// Maximum transactions of an open loop, which may queue all of them in memory.
const MAX_TRANSACTIONS: f64 = 2e7;

pub(super) fn commands() -> [Command; 4] {
    [
        shared("query", "pgbench's queries, in a closed loop or, with --rate, in an open loop")
            .arg(flag("mode", "MODE", "Queries: simple, extended, prepared, pipelined (10 at a time) or tpcb [default: prepared]"))
            .arg(flag("scale", "N", "Scale factor of pgbench's tables [default: 1]"))
            .arg(flag("rate", "N", "Transactions per second, as an open loop: latency counts from the intended start [default: closed loop]")),
        shared("connect", "New connections in a closed loop: full TLS handshakes, optionally with login")
            .arg(switch("login", "Log in as well, instead of the handshake only"))
            .arg(flag("certificates", "KIND", "Client certificates: one (shared), each (one per client) or new (an unknown one per connection) [default: one]"))
            .arg(flag("count", "N", "Number of certificates for --certificates new; the load ends when all are used [default: 2000]")),
        shared("idle", "Idle connections, and the memory of the process that holds them")
            .arg(switch("gradual", "Sample the memory at 20 % and 50 % of the connections too")),
        shared("bulk", "COPY out or in, with the content verified at both ends")
            .arg(flag("direction", "DIRECTION", "out (from Postgres) or in (to Postgres) [default: out]").alias("way"))
            .arg(flag("mib", "N", "Size of the COPY, in MiB [default: 256]")),
    ]
}

/// A load's subcommand, with the flags that all loads share.
fn shared(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .arg(flag("to", "IP:PORT", "Address of the server").required(true))
        .arg(flag(
            "opening",
            "OPENING",
            "How to open connections: plain, ssl-request, direct (TLS with ALPN) or raw (TLS without) [default: ssl-request]",
        ))
        .arg(flag("user", "ROLE", "Role to log in as [default: teesql_read]"))
        .arg(flag("database", "NAME", "Database to connect to [default: postgres]"))
        .arg(flag(
            "password-file",
            "FILE",
            "File with the role's password or the cluster's secret [default: the environment variable PGPASSWORD]",
        ))
        .arg(flag(
            "ca",
            "FILE",
            "CA certificates of the server, PEM; required unless the server is on loopback",
        ))
        .arg(flag(
            "server-name",
            "NAME",
            "Name in the server's certificate, with --ca [default: localhost]",
        ))
        .arg(flag("cert", "FILE", "Client certificate chain, PEM; needs --key"))
        .arg(flag("key", "FILE", "Private key of the client certificate, PEM; needs --cert"))
        .arg(switch(
            "mock-tdx",
            "Use a client certificate of the mock TDX, see the subcommand mock-tdx",
        ))
        .arg(flag("clients", "N", "Connections; bulk always uses one [default: 16]"))
        .arg(flag("threads", "N", "Threads of the load [default: 1]"))
        .arg(flag("seconds", "S", "Measured time in seconds; for idle the idle time; ignored by bulk [default: 5]"))
        .arg(flag("pid", "PID", "Process whose CPU time and memory are measured; required by idle"))
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
        _ => Err(Error::Usage(format!("no such command: {name}"))),
    }
}

/// The values of the shared flags.
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
            return Err(Error::Usage(format!(
                "--rate: must be above 0 and at most {MAX_RATE}"
            )));
        }
        if rate.unwrap_or(0.0) * self.seconds > MAX_TRANSACTIONS {
            return Err(Error::Usage(format!(
                "--rate times --seconds: must be at most {MAX_TRANSACTIONS}"
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
                "\nlatency counts from the intended start; delay of the load itself: p50 {} µs, p99 {} µs; \
                 {} transactions were due but not started",
                format_figure(outcome.lateness.percentile(50.0)),
                format_figure(outcome.lateness.percentile(99.0)),
                outcome.unstarted,
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
                    "--certificates {other}: must be one, each or new"
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
                "\n{} per second of the process' CPU time",
                format_figure(per_core)
            );
        }
        cost(&mut text, &outcome.meter, self.seconds);
        Ok(text)
    }

    /// Endpoints with client certificates that are new in this run.
    fn unknown_clients(&self, count: usize, progress: &Progress) -> Result<Vec<Endpoint>> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce)
            .map_err(|error| io_context("cannot read random bytes")(error.into()))?;
        let run = hex::encode(nonce);
        let issue = |number: usize| {
            progress.check_signal()?;
            progress.status(&format!("issuing certificates: {number}"));
            let identity = self.tdx.identity(&format!("{run} {number}"))?;
            self.endpoint.with_identity(&identity)
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
        text.push_str(" (after the idle time)");
        Ok(text)
    }

    fn bulk(&self, flags: &ArgMatches, progress: &Progress) -> Result<String> {
        let direction = match text(flags, "direction").unwrap_or("out") {
            "out" => bulk::Direction::Out,
            "in" => bulk::Direction::In,
            other => {
                return Err(Error::Usage(format!(
                    "--direction {other}: must be out or in"
                )));
            }
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
            "{} GB/s, content verified",
            format_figure(outcome.gb_per_second())
        );
        if let Some(cpu) = outcome.cpu_per_gb() {
            let _ = write!(
                text,
                "\n{} s of the process' CPU time per GB",
                format_figure(cpu)
            );
        }
        cost(&mut text, &outcome.meter, outcome.seconds);
        Ok(text)
    }
}
