//! The product under test: its binary, its settings, its log.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::certificates::Certificates;
use crate::harness::process::{TIMEOUT, pdeathsig_command, poll_until, signal, spawn, wait};
use crate::harness::{
    READ_PASSWORD, READ_SECRET, READWRITE_PASSWORD, READWRITE_SECRET, SUPERUSER_PASSWORD,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum IoDriver {
    IoUring,
    Epoll,
}

impl fmt::Display for IoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// The environment of one `teesql-sidecar serve`.
#[derive(Debug, Clone)]
pub(crate) struct Settings(BTreeMap<&'static str, OsString>);

impl Settings {
    /// All that is needed to serve `upstream`: `host:port` or a socket's path.
    pub(crate) fn new(driver: IoDriver, upstream: &str, certificates: &Certificates) -> Self {
        let mut settings = Self(BTreeMap::new());
        for (name, value) in [
            ("TEESQL_LISTEN", "127.0.0.1:0"),
            ("TEESQL_ADMIN_LISTEN", "off"),
            ("TEESQL_SHARDS", "2"),
            ("TEESQL_POSTGRES", upstream),
            ("TEESQL_READ_SECRET", READ_SECRET),
            ("TEESQL_READWRITE_SECRET", READWRITE_SECRET),
            ("TEESQL_PG_PASSWORD_READ", READ_PASSWORD),
            ("TEESQL_PG_PASSWORD_READWRITE", READWRITE_PASSWORD),
            ("TEESQL_PG_PASSWORD_SUPERUSER", SUPERUSER_PASSWORD),
            ("TEESQL_REQUIRE_CLIENT_ATTESTATION", "false"),
            ("TEESQL_ALLOW_UNATTESTED_CLIENTS", "true"),
            // The machine may be busy: only the tests of this deadline shorten it.
            ("TEESQL_LOGIN_TIMEOUT", "60s"),
            ("TEESQL_LOG_FORMAT", "json"),
            ("TEESQL_LOG", "info"),
            ("RUST_BACKTRACE", "1"),
        ] {
            settings.0.insert(name, value.into());
        }
        settings
            .0
            .insert("TEESQL_DRIVER", driver.to_string().into());
        settings
            .0
            .insert("TEESQL_TLS_CERT", certificates.chain.clone().into());
        settings
            .0
            .insert("TEESQL_TLS_KEY", certificates.key.clone().into());
        settings
    }

    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.0.insert(name, value.into());
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.0.remove(name);
        self
    }
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    news: Condvar,
}

/// A running sidecar; killed when dropped.
#[derive(Debug)]
pub(crate) struct Sidecar {
    child: Mutex<Child>,
    pid: u32,
    log: Arc<Log>,
    address: SocketAddr,
}

impl Sidecar {
    /// Starts it and waits until it listens.
    pub(crate) fn start(settings: &Settings) -> Self {
        let mut sidecar = Self::spawn(settings);
        let line = sidecar.await_log("listening", |line| line["message"] == "listening");
        let address = line["address"]
            .as_str()
            .unwrap_or_else(|| panic!("no address: {line}"));
        sidecar.address = address.parse().unwrap_or_else(|e| panic!("{address}: {e}"));
        assert!(
            sidecar.address.ip().is_loopback(),
            "{address} is not loopback"
        );
        sidecar
    }

    /// Starts it with a log of the given format, `json` or `text`.
    pub(crate) fn start_with_log_format(settings: &Settings, format: &str) -> Self {
        if format == "json" {
            return Self::start(settings);
        }
        let mut sidecar = Self::spawn(&settings.clone().set("TEESQL_LOG_FORMAT", format));
        let address = sidecar.log.wait_for(TIMEOUT, |line| {
            let (_, behind) = line.split_once("listening")?.1.split_once("127.0.0.1:")?;
            let digits = behind.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        let port: u16 = address.expect("a line with the address");
        sidecar.address.set_port(port);
        sidecar
    }

    /// Starts it without waiting for anything: for those that must not come up.
    pub(crate) fn spawn(settings: &Settings) -> Self {
        let mut command = pdeathsig_command(
            Path::new(env!("CARGO_BIN_EXE_teesql-sidecar")),
            "KILL",
            None,
        );
        command.arg("serve").env_clear().envs(&settings.0);
        command.env("PATH", env::var_os("PATH").unwrap_or_default());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command).expect("setpriv starts");
        let log = Arc::new(Log::default());
        let stdout = child.stdout.take().expect("a pipe");
        let stderr = child.stderr.take().expect("a pipe");
        let (out, err) = (log.clone(), log.clone());
        thread::spawn(move || out.follow(BufReader::new(stdout), false));
        thread::spawn(move || err.follow(BufReader::new(stderr), true));
        let pid = child.id();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            child: Mutex::new(child),
            pid,
            log,
            address,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `ps` shows of it.
    pub(crate) fn command_line(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).expect("it runs")
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// All lines of its log so far, as printed.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log
            .lines
            .lock()
            .expect("no panic while locked")
            .0
            .clone()
    }

    /// The end of its log, for the report of a failure.
    fn last_lines(&self) -> String {
        let lines = self.log_lines();
        lines[lines.len().saturating_sub(50)..].join("\n")
    }

    /// The first line, old or new, that `wanted` accepts; `what` names it in the failure.
    pub(crate) fn await_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.await_log_for(TIMEOUT, what, wanted)
    }

    /// The same with a timeout of its own.
    pub(crate) fn await_log_for(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let parsed = |line: &str| {
            let value = serde_json::from_str::<Value>(line).ok()?;
            wanted(&value).then_some(value)
        };
        self.log.wait_for(timeout, parsed).unwrap_or_else(|| {
            panic!(
                "the sidecar never logged {what}; its log:\n{}",
                self.last_lines()
            )
        })
    }

    /// The line at the end of the connection from `peer`.
    pub(crate) fn await_connection_end(&self, peer: SocketAddr) -> Value {
        let peer = peer.to_string();
        self.await_log(&format!("the end of {peer}"), |line| {
            line["peer"] == peer.as_str() && line.get("reason").is_some()
        })
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child.lock().expect("no panic while locked"), which);
    }

    /// Its exit status, once it ended and all that it said was read.
    pub(crate) fn await_exit(&self) -> ExitStatus {
        let status = {
            let mut child = self.child.lock().expect("no panic while locked");
            wait(&mut child, TIMEOUT)
        };
        // No line is the one looked for: this returns at the log's end.
        self.log.wait_for(TIMEOUT, |_| None::<()>);
        status.unwrap_or_else(|| panic!("still running; its log:\n{}", self.last_lines()))
    }

    pub(crate) fn is_running(&self) -> bool {
        let mut child = self.child.lock().expect("no panic while locked");
        child
            .try_wait()
            .expect("our own child can be waited for")
            .is_none()
    }

    /// What nothing that a client does may end.
    pub(crate) fn assert_running(&self) {
        let mut child = self.child.lock().expect("no panic while locked");
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            panic!(
                "the sidecar died: {status}; its last lines:\n{}",
                self.last_lines()
            );
        }
    }

    /// Its resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no VmRSS: {status}"))
    }

    /// How many sockets it has open.
    pub(crate) fn sockets(&self) -> usize {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs");
        let names = folder
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        names
            .filter(|name| name.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// The same once it has come to rest: no question of its own to Postgres is
    /// under way, and nothing that was closed just now is still being closed.
    pub(crate) fn sockets_at_rest(&self) -> usize {
        let mut last = (self.sockets(), Instant::now());
        poll_until(TIMEOUT, || {
            let now = self.sockets();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(300)).then_some(now)
        })
        .expect("the sidecar comes to rest")
    }

    /// Waits until it has no more than `wanted` sockets open, as at rest.
    pub(crate) fn await_sockets(&self, wanted: usize) {
        let mut last = 0;
        poll_until(TIMEOUT, || {
            last = self.sockets();
            (last <= wanted).then_some(())
        })
        .unwrap_or_else(|| panic!("still {last} sockets open, not {wanted}"));
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let child = self
            .child
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner());
        let _ = child.kill();
        let _ = child.wait();
        if thread::panicking() {
            eprintln!("--- the sidecar's last lines ---\n{}", self.last_lines());
        }
    }
}

impl Log {
    fn follow(&self, pipe: impl BufRead, last: bool) {
        for line in pipe.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            self.lines
                .lock()
                .expect("no panic while locked")
                .0
                .push(line);
            self.news.notify_all();
        }
        if last {
            self.lines.lock().expect("no panic while locked").1 = true;
            self.news.notify_all();
        }
    }

    /// The first answer that `look` has for a line, old or new.
    fn wait_for<T>(&self, timeout: Duration, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut lines = self.lines.lock().expect("no panic while locked");
        loop {
            if let Some(found) = lines.0.iter().skip(seen).find_map(|line| look(line)) {
                return Some(found);
            }
            seen = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.1 {
                return None;
            }
            lines = self
                .news
                .wait_timeout(lines, left)
                .expect("no panic while locked")
                .0;
        }
    }
}
