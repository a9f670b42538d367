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

/// Time limit for the start, and for an orderly shutdown.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of the log that an error message quotes.
const LOG_TAIL: u64 = 2_000;

/// A running process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stop_signal: Signal,
}

/// Builds the command line that runs `program` on `cores` and kills it when this process dies. With
/// `as_postgres` it runs as Debian's user `postgres`, if this process runs as root.
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
    /// Starts the process. Its output goes to `log`; `stop_signal` requests an orderly shutdown.
    ///
    /// # Errors
    /// The process cannot be started.
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

    /// Process ID. `taskset` and `setpriv` exec the program, so it is the program's own.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.id()
    }

    /// Waits until `probe` returns a value.
    ///
    /// # Errors
    /// The process has exited, or there was no value within 30 s. The error has the end of the log.
    pub fn wait_for<T>(&mut self, mut probe: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(found) = probe(self) {
                return Ok(found);
            }
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if ended || Instant::now() > deadline {
                let what = if ended { "exited" } else { "does not respond" };
                let log_tail = tail(&self.log);
                return Err(Error::Peer(format!("{} {what}: {log_tail}", self.name)));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until `address` accepts connections.
    ///
    /// # Errors
    /// As [`Process::wait_for`].
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_for(|_| {
            TcpStream::connect_timeout(&address, POLL_INTERVAL)
                .is_ok()
                .then_some(())
        })
    }

    /// The whole log.
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

/// A loopback address that was free just now, for programs that cannot listen on port 0. If another
/// process takes it in the meantime, the program fails to start.
///
/// # Errors
/// There is no free port.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(io_context("no free port"))
}

/// Finds a program by name, in `PATH` or in Debian's directories for daemons.
///
/// # Errors
/// The program is not installed.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let mut places = folders.map(|folder| folder.join(name));
    places
        .find(|place| place.is_file())
        .ok_or_else(|| Error::Peer(format!("{name} is not installed")))
}

/// The version that `program` prints: the first line with a digit, or an empty string.
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
