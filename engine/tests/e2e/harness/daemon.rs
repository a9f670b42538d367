//! A running program under test: its log, signals and resource usage.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::process::{TIMEOUT, lossy, poll_until, signal, spawn, wait};

/// A child process whose output is collected line by line. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    child: Mutex<Child>,
    pid: u32,
    log: Arc<Log>,
}

/// The lines so far, and whether standard error has ended.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Daemon {
    /// Starts `command` and collects both of its outputs. `name` is for messages.
    pub(crate) fn spawn(name: &'static str, command: Command) -> Self {
        let mut child = spawn_piped(command);
        let stdout = child.stdout.take().expect("a pipe");
        let daemon = Self::collect_stderr(name, child);
        let log = daemon.log.clone();
        thread::spawn(move || log.collect(BufReader::new(stdout), false));
        daemon
    }

    /// Starts `command`, waits for one line on its standard output, and collects its standard
    /// error. Panics if the program ends without a line.
    pub(crate) fn spawn_with_first_line(name: &'static str, command: Command) -> (Self, String) {
        let mut child = spawn_piped(command);
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let daemon = Self::collect_stderr(name, child);
        let mut line = String::new();
        if stdout.read_line(&mut line).expect("UTF-8") == 0 {
            panic!("{name} printed nothing: {}", daemon.await_exit());
        }
        (daemon, line.trim_end().to_owned())
    }

    fn collect_stderr(name: &'static str, mut child: Child) -> Self {
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("a pipe");
        let err = log.clone();
        thread::spawn(move || err.collect(BufReader::new(stderr), true));
        Self {
            name,
            pid: child.id(),
            child: Mutex::new(child),
            log,
        }
    }

    /// All lines of its log so far, as printed.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        let lines = self.log.lines.lock().expect("no panic while locked");
        lines.0.clone()
    }

    /// The number of lines of its JSON log whose message starts with `start`.
    pub(crate) fn count_messages(&self, start: &str) -> usize {
        let message = format!("\"message\":\"{start}");
        let lines = self.log_lines();
        lines.iter().filter(|line| line.contains(&message)).count()
    }

    /// Waits until this number of messages start with `start`. A line may come after what it tells of.
    pub(crate) fn await_messages(&self, start: &str, count: usize) {
        let found = poll_until(TIMEOUT, || {
            (self.count_messages(start) == count).then_some(())
        });
        assert!(
            found.is_some(),
            "{} did not log {start:?} {count} times; its log:\n{}",
            self.name,
            self.last_lines()
        );
    }

    /// The end of its log, for failure messages.
    fn last_lines(&self) -> String {
        let lines = self.log_lines();
        lines[lines.len().saturating_sub(50)..].join("\n")
    }

    /// Waits for the first log line, old or new, that `wanted` accepts. `what` names it in the
    /// failure message.
    pub(crate) fn await_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.await_log_for(TIMEOUT, what, wanted)
    }

    /// [`await_log`](Self::await_log) with another timeout.
    pub(crate) fn await_log_for(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let parse = |line: &str| {
            let value = serde_json::from_str::<Value>(line).ok()?;
            wanted(&value).then_some(value)
        };
        self.find_line(timeout, parse).unwrap_or_else(|| {
            panic!(
                "{} never logged {what}; its log:\n{}",
                self.name,
                self.last_lines()
            )
        })
    }

    /// Waits for a log line with this message.
    pub(crate) fn await_message(&self, message: &str) -> Value {
        self.await_log(message, |line| line["message"] == message)
    }

    /// Waits for a log line with this reason code.
    pub(crate) fn await_reason(&self, code: &str) -> Value {
        self.await_log(code, |line| line["reason"] == code)
    }

    /// Waits for the log line at the end of the connection from `peer`.
    pub(crate) fn await_connection_end(&self, peer: SocketAddr) -> Value {
        let peer = peer.to_string();
        self.await_log(&format!("the end of {peer}"), |line| {
            line["peer"] == peer.as_str() && line.get("reason").is_some()
        })
    }

    /// The first result of `parse` for a line, old or new. `None` after `timeout`, or once the
    /// output has ended.
    pub(crate) fn find_line<T>(
        &self,
        timeout: Duration,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.log.find(timeout, parse)
    }

    /// Its arguments as `ps` shows them.
    pub(crate) fn command_line(&self) -> String {
        let path = format!("/proc/{}/cmdline", self.pid);
        lossy(&fs::read(path).expect("the process runs"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child.lock().expect("no panic while locked"), which);
    }

    /// Waits until it has exited and all of its output has been read.
    pub(crate) fn await_exit(&self) -> ExitStatus {
        let status = {
            let mut child = self.child.lock().expect("no panic while locked");
            wait(&mut child, TIMEOUT)
        };
        // No line matches: this returns at the end of the output.
        self.find_line(TIMEOUT, |_| None::<()>);
        status.unwrap_or_else(|| {
            let log = self.last_lines();
            panic!("{} is still running; its log:\n{log}", self.name)
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Panics with the end of the log if the program has exited.
    pub(crate) fn assert_running(&self) {
        if let Some(status) = self.exit_status() {
            let log = self.last_lines();
            panic!("{} exited: {status}; its last lines:\n{log}", self.name);
        }
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().expect("no panic while locked");
        child.try_wait().expect("our own child can be waited for")
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no VmRSS: {status}"))
    }

    /// The number of open sockets.
    pub(crate) fn sockets(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid);
        let folder = match fs::read_dir(&path) {
            Ok(folder) => folder,
            // The programs are not dumpable, so that only root sees their descriptors. Their number is public since
            // Linux 6.2, and all that changes in it is sockets.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let found = fs::metadata(&path).expect("the process runs");
                return usize::try_from(found.len()).expect("a number of descriptors");
            }
            Err(error) => panic!("{path}: {error}"),
        };
        let names = folder
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        names
            .filter(|name| name.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// The number of open sockets once it has not changed for 300 ms, so that neither a background
    /// query of the program nor a connection that is still being closed is counted.
    pub(crate) fn settled_sockets(&self) -> usize {
        let mut last = (self.sockets(), Instant::now());
        let settled = poll_until(TIMEOUT, || {
            let now = self.sockets();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(300)).then_some(now)
        });
        settled.expect("the number of sockets settles")
    }

    /// Waits until at most `max` sockets are open.
    pub(crate) fn await_sockets(&self, max: usize) {
        let mut last = 0;
        poll_until(TIMEOUT, || {
            last = self.sockets();
            (last <= max).then_some(())
        })
        .unwrap_or_else(|| panic!("still {last} open sockets, more than {max}"));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let child = self
            .child
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner());
        let _ = child.kill();
        let _ = child.wait();
        if thread::panicking() {
            eprintln!("--- last lines of {} ---\n{}", self.name, self.last_lines());
        }
    }
}

impl Log {
    fn collect(&self, pipe: impl BufRead, ends_log: bool) {
        for line in pipe.split(b'\n').map_while(Result::ok) {
            let mut lines = self.lines.lock().expect("no panic while locked");
            lines.0.push(lossy(&line));
            self.changed.notify_all();
        }
        if ends_log {
            self.lines.lock().expect("no panic while locked").1 = true;
            self.changed.notify_all();
        }
    }

    fn find<T>(&self, timeout: Duration, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut lines = self.lines.lock().expect("no panic while locked");
        loop {
            if let Some(found) = lines.0.iter().skip(seen).find_map(|line| parse(line)) {
                return Some(found);
            }
            seen = lines.0.len();
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() || lines.1 {
                return None;
            }
            lines = self
                .changed
                .wait_timeout(lines, remaining)
                .expect("no panic while locked")
                .0;
        }
    }
}

fn spawn_piped(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    spawn(command).expect("setpriv starts")
}
