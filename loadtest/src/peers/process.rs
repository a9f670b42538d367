//! Child processes that cannot outlive this one.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as NixPid;

use crate::error::{Error, Result, doing};
use crate::process_usage::Pid;

/// For a first sign of life, and for an orderly end.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// What is shown of a log where a process ended.
const LOG_TAIL: u64 = 2_000;

/// A running process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    end: Signal,
}

/// The command line that runs `program` on `cores`, as Debian's user `postgres`
/// where this is run as root and `demoted` says so, and ends it with this
/// process whatever happens.
#[must_use]
pub fn command(program: &Path, cores: &str, demoted: bool) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores, "setpriv", "--pdeathsig", "KILL"]);
    if demoted && nix::unistd::geteuid().is_root() {
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
    pub fn start(name: &str, mut command: Command, log: PathBuf, end: Signal) -> Result<Self> {
        let failed = || doing(format!("cannot start {name}"));
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
            end,
        })
    }

    /// Its number: `taskset` and `setpriv` have become it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.id()
    }

    /// Waits until `look` finds something.
    ///
    /// # Errors
    /// The process has ended, or there was nothing for 30 s: with its last words.
    pub fn until<T>(&mut self, mut look: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if ended || Instant::now() > give_up {
                let what = if ended { "ended" } else { "does not answer" };
                let said = tail(&self.log);
                return Err(Error::Peer(format!("{} {what}: {said}", self.name)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until somebody listens there.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub fn until_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.until(|_| {
            TcpStream::connect_timeout(&address, LOOK)
                .is_ok()
                .then_some(())
        })
    }

    /// All that it said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(NixPid::from_raw(pid), self.end);
        }
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
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
        .map_err(doing("no free port"))
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
