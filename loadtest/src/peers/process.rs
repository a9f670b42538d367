//! Child processes that cannot outlive this one.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as NixPid;

use crate::error::{Error, Result, io_context};
use crate::process_usage::Pid;

/// For a first sign of life, and for an orderly end.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What is shown of a log where a process ended.
const LOG_TAIL: u64 = 2_000;

/// A running process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stop_signal: Signal,
}

/// The command line that runs `program` on `cores`, as Debian's user `postgres`
/// where this is run as root and `as_postgres` says so, and ends it with this
/// process whatever happens.
#[must_use]
pub fn command(program: &Path, cores: &str, as_postgres: bool) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores, "setpriv", "--pdeathsig", "KILL"]);
    if as_postgres && nix::unistd::geteuid().is_root() {
        command.args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
        ]);
    }
    command
        .arg("--")
        .arg(program)
        .stdin(Stdio::null())
        .env("LC_ALL", "C");
    command
}

impl Process {
    /// Starts it; all that it says goes to `log`. `end` is the signal for an
    /// orderly end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
        stop_signal: Signal,
    ) -> Result<Self> {
        let failed = || io_context(format!("cannot start {name}"));
        let out = File::create(&log).map_err(failed())?;
        let errors = out.try_clone().map_err(failed())?;
        let child = command
            .stdout(out)
            .stderr(errors)
            .spawn()
            .map_err(failed())?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            stop_signal,
        })
    }

    /// Its number: `taskset` and `setpriv` have become it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.id()
    }

    /// Waits until `probe` finds something.
    ///
    /// # Errors
    /// The process has ended, or there was nothing for 30 s: with its last words.
    pub fn wait_for<T>(&mut self, mut probe: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(found) = probe(self) {
                return Ok(found);
            }
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if ended || Instant::now() > deadline {
                let what = if ended { "ended" } else { "does not answer" };
                let log_tail = tail(&self.log);
                return Err(Error::Peer(format!("{} {what}: {log_tail}", self.name)));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until somebody listens there.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_for(|_| {
            TcpStream::connect_timeout(&address, POLL_INTERVAL)
                .is_ok()
                .then_some(())
        })
    }

    /// All that it log_tail.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(NixPid::from_raw(pid), self.stop_signal);
        }
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error| error.to_string())
}

/// A port of loopback that was free a moment ago: for programs that cannot take
/// port 0. If it is not free any more they say so.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(io_context("no free port"))
}

/// A program by name, in `PATH` or where Debian keeps daemons.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let mut places = folders.map(|folder| folder.join(name));
    places
        .find(|place| place.is_file())
        .ok_or_else(|| Error::Peer(format!("{name} is not installed")))
}

/// What `program` prints when asked for its version: the first line that has a
/// digit, or nothing.
#[must_use]
pub fn version(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| {
            let both = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&both).into_owned()
        },
    );
    let line = text
        .lines()
        .find(|line| line.contains(|c: char| c.is_ascii_digit()));
    let line = line.unwrap_or_default();
    line.split(" on ")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}
