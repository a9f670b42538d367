//! The forwarder's binary: its settings, its one line, its log.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, poll_until, signal, spawn, wait};
use crate::harness::sidecar::IoDriver;

/// The environment of one forwarder.
#[derive(Debug, Clone)]
pub(crate) struct Settings(BTreeMap<&'static str, OsString>);

impl Settings {
    /// Where it goes is for the caller to say.
    pub(crate) fn new(driver: IoDriver) -> Self {
        let settings = [
            ("TEESQL_DRIVER", driver.to_string()),
            ("TEESQL_LOG_FORMAT", "json".to_owned()),
            ("TEESQL_LOG", "info".to_owned()),
            // The machine may be busy: only the tests of these shorten them.
            ("TEESQL_CONNECT_TIMEOUT", "30s".to_owned()),
            ("TEESQL_LOGIN_TIMEOUT", "60s".to_owned()),
            ("PATH", env::var("PATH").unwrap_or_default()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        Self(settings.map(|(name, value)| (name, value.into())).into())
    }

    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.0.insert(name, value.into());
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.0.remove(name);
        self
    }

    pub(crate) fn get(&self, name: &str) -> String {
        let value = self
            .0
            .get(name)
            .map(|value| lossy(value.as_encoded_bytes()));
        value.unwrap_or_default()
    }

    /// As a command, with nothing else in its environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = pdeathsig_command(
            Path::new(env!("CARGO_BIN_EXE_teesql-forward")),
            "KILL",
            None,
        );
        command.args(arguments).env_clear().envs(&self.0);
        command
    }
}

/// A running forwarder; killed when dropped.
pub(crate) struct Forwarder {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// The line on its standard output.
    pub(crate) dsn: String,
}

impl Forwarder {
    /// Starts it and waits for its one line.
    pub(crate) fn start(settings: &Settings) -> Self {
        let mut command = settings.command(&[]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command).expect("setpriv starts");
        let lines = follow(child.stderr.take().expect("a pipe"));
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut dsn = String::new();
        let forwarder = |dsn| Self { child, lines, dsn };
        if stdout.read_line(&mut dsn).expect("text") == 0 {
            let forwarder = forwarder(String::new());
            panic!(
                "no forwarder; it said:\n{}",
                forwarder.log_lines().join("\n")
            );
        }
        forwarder(dsn.trim_end().to_owned())
    }

    /// What libpq calls host and port.
    pub(crate) fn place(&self) -> (String, u16) {
        let address = self.dsn.strip_prefix("postgresql://").expect("a DSN");
        let (place, query) = address.split_once("/?").expect("a query");
        if let Some((host, port)) = place.rsplit_once(':') {
            return (host.to_owned(), port.parse().expect("a port"));
        }
        let pairs: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        let host = pairs["host"].replace("%2F", "/");
        (host, pairs["port"].parse().expect("a port"))
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        let (host, port) = self.place();
        format!("{host}:{port}").parse().expect("TCP")
    }

    /// `program` with a connection to it in libpq's environment.
    pub(crate) fn client(&self, program: &str, (role, secret): (&str, &str)) -> Command {
        let (host, port) = self.place();
        let mut command = pdeathsig_command(Path::new(program), "KILL", None);
        command
            .env("PGHOST", host)
            .env("PGPORT", port.to_string())
            .env("PGUSER", role)
            .env("PGPASSWORD", secret)
            .env("PGDATABASE", "via_scram")
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable");
        command
    }

    /// What `select 1` says, both outputs.
    pub(crate) fn ask(&self, who: (&str, &str)) -> String {
        let mut psql = self.client("psql", who);
        psql.args(["-X", "-A", "-t", "-c", "select 1"]);
        let output = crate::harness::process::run(psql, TIMEOUT * 2);
        lossy(&output.stdout) + &lossy(&output.stderr)
    }

    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic while locked").clone()
    }

    /// The first line, old or new, that `wanted` accepts.
    pub(crate) fn await_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = poll_until(TIMEOUT, || {
            let lines = self.log_lines();
            let mut values = lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok());
            values.find(|value| wanted(value))
        });
        found.unwrap_or_else(|| {
            panic!(
                "never logged {what}; its log:\n{}",
                self.log_lines().join("\n")
            )
        })
    }

    pub(crate) fn await_reason(&self, code: &str) -> Value {
        self.await_log(code, |line| line["reason"] == code)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    pub(crate) fn await_exit(&mut self) -> ExitStatus {
        wait(&mut self.child, TIMEOUT).expect("it ends")
    }

    fn sockets(&self) -> usize {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        let names = folder
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        names
            .filter(|name| name.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// How many sockets are open once nothing changes any more.
    pub(crate) fn sockets_at_rest(&self) -> usize {
        let mut last = (self.sockets(), Instant::now());
        let rest = poll_until(TIMEOUT, || {
            let now = self.sockets();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(300)).then_some(now)
        });
        rest.expect("it comes to rest")
    }

    pub(crate) fn await_sockets(&self, wanted: usize) {
        let rest = poll_until(TIMEOUT, || (self.sockets() <= wanted).then_some(()));
        rest.unwrap_or_else(|| panic!("still {} sockets, not {wanted}", self.sockets()));
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "--- the forwarder's lines ---\n{}",
                self.log_lines().join("\n")
            );
        }
    }
}

fn follow(pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writing = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut lines = writing.lock().expect("no panic while locked");
            lines.push(lossy(&line));
        }
    });
    lines
}
