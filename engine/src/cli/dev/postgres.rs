//! The temporary Postgres of `dev`.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};

use super::cluster::write;
use super::error::{DevError, system};

/// The limit for the start, and for the stop.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How many bytes of its log to show if it does not start.
const LOG_TAIL: u64 = 2_000;

/// The running server. It stops when this is dropped.
pub(super) struct Postgres {
    server: Child,
    port: u16,
}

impl Postgres {
    /// Creates a database cluster in `folder` whose superuser has this password, and starts it on a
    /// free port of loopback; as the user `postgres` if this process runs as root.
    pub(super) fn start(folder: &Path, password: &str) -> Result<Self, DevError> {
        let programs = find_programs()?;
        let owner = postgres_user()?;
        let home = folder.join("postgres");
        fs::create_dir(&home).map_err(system("cannot create the directory of Postgres"))?;
        // Temporary directories are accessible to their owner only.
        make_accessible(folder)?;
        if let Some(user) = &owner {
            chown(&home, Some(user.uid), Some(user.gid)).map_err(|error| {
                system("cannot change the owner of the data directory")(error.into())
            })?;
        }
        let password_file = home.join("password");
        write(&password_file, password, 0o600)?;
        if let Some(user) = &owner {
            let _ = chown(&password_file, Some(user.uid), Some(user.gid));
        }
        let mut initdb = command(&programs.join("initdb"), owner.as_ref());
        initdb
            .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
            // Independent of the locale: with SQL_ASCII, drivers return bytes instead of text.
            .args(["--encoding=UTF8", "--no-locale"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("--pgdata")
            .arg(home.join("data"));
        let output = initdb.output().map_err(system("cannot run initdb"))?;
        let _ = fs::remove_file(&password_file);
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(DevError::Postgres(message));
        }
        Self::run_server(&programs, &home, owner.as_ref())
    }

    fn run_server(programs: &Path, home: &Path, owner: Option<&User>) -> Result<Self, DevError> {
        // If another process takes the port meanwhile, Postgres fails with an error.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(system("cannot find a free port"))?
            .port();
        let log = home.join("log");
        let out =
            fs::File::create_new(&log).map_err(system("cannot create the log file of Postgres"))?;
        let mut server = command(&programs.join("postgres"), owner);
        server
            .arg("-D")
            .arg(home.join("data"))
            .args(["-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .args(["-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(out);
        let server = server.spawn().map_err(system("cannot run postgres"))?;
        let mut postgres = Self { server, port };
        match postgres.wait_until_listening() {
            true => Ok(postgres),
            false => Err(DevError::Postgres(log_tail(&log))),
        }
    }

    /// `false` if it exits or takes too long.
    fn wait_until_listening(&mut self) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return true;
            }
            if matches!(self.server.try_wait(), Ok(Some(_)) | Err(_)) {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        false
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Postgres {
    /// Requests a fast shutdown, and kills the server if that takes too long.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.server.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.server.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A command in its own process group, so that Ctrl-C reaches only this process, which then stops the
/// others in order.
fn command(program: &Path, owner: Option<&User>) -> Command {
    let mut command = Command::new(program);
    command
        .process_group(0)
        .stdin(Stdio::null())
        .env("LC_ALL", "C");
    if let Some(user) = owner {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// The user to run Postgres as, if this process runs as root, which Postgres refuses.
pub(super) fn postgres_user() -> Result<Option<User>, DevError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name("postgres") {
        Ok(Some(user)) => Ok(Some(user)),
        _ => Err(DevError::Postgres(
            "running as root requires a user named postgres".to_owned(),
        )),
    }
}

fn make_accessible(folder: &Path) -> Result<(), DevError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
        .map_err(system("cannot make the directory accessible to Postgres"))
}

/// The directory with the newest version in Debian's directories, or else the first in `PATH`.
pub(super) fn find_programs() -> Result<PathBuf, DevError> {
    let has = |folder: &PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = installed
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .into_string()
                .ok()?
                .parse::<u32>()
                .ok()
        })
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
        .filter(has)
        .max();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = newest.or_else(|| std::env::split_paths(&path).find(has));
    found.ok_or_else(|| {
        DevError::Postgres("no initdb found: install Debian's package postgresql".to_owned())
    })
}

fn log_tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_else(|error| format!("it exited, and its log cannot be read: {error}"))
}
