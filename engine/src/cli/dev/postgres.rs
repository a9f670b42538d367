//! A Postgres that lives as long as `dev` does.

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

use super::{DevError, system};

/// For its first answer, and for its end.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// What is shown of its log where it does not start.
const LOG_TAIL: u64 = 2_000;

/// The running server.
pub(super) struct Postgres {
    server: Child,
    port: u16,
}

impl Postgres {
    /// Makes a cluster in `folder` whose superuser has this password, and starts
    /// it on a free port of loopback; as the user `postgres` when run as root.
    pub(super) fn start(folder: &Path, password: &str) -> Result<Self, DevError> {
        let programs = programs()?;
        let owner = owner()?;
        let home = folder.join("postgres");
        fs::create_dir(&home).map_err(system("cannot make a folder"))?;
        // The folder of this program is for its owner only.
        open_up(folder)?;
        if let Some(user) = &owner {
            chown(&home, Some(user.uid), Some(user.gid))
                .map_err(|error| system("cannot give Postgres its folder")(error.into()))?;
        }
        let password_file = home.join("password");
        fs::write(&password_file, password).map_err(system("cannot write a file"))?;
        if let Some(user) = &owner {
            let _ = chown(&password_file, Some(user.uid), Some(user.gid));
        }
        let mut initdb = command(&programs.join("initdb"), owner.as_ref());
        initdb
            .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
            // Whatever the locale here is: drivers take SQL_ASCII for bytes.
            .args(["--encoding=UTF8", "--no-locale"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("--pgdata")
            .arg(home.join("data"));
        let made = initdb.output().map_err(system("cannot run initdb"))?;
        let _ = fs::remove_file(&password_file);
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(DevError::Postgres(said));
        }
        Self::serve(&programs, &home, owner.as_ref())
    }

    fn serve(programs: &Path, home: &Path, owner: Option<&User>) -> Result<Self, DevError> {
        // Free a moment ago; if it is not any more, Postgres says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(system("no free port"))?
            .port();
        let log = home.join("log");
        let out = fs::File::create(&log).map_err(system("cannot write a file"))?;
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
        match postgres.answers() {
            true => Ok(postgres),
            false => Err(DevError::Postgres(tail(&log))),
        }
    }

    fn answers(&mut self) -> bool {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return true;
            }
            if matches!(self.server.try_wait(), Ok(Some(_)) | Err(_)) {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Postgres {
    /// A fast shutdown, and a hard one where that does not end it.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.server.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if !matches!(self.server.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// In a process group of its own: a Ctrl-C is for us, who stop it in order.
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

/// Postgres does not run as root.
fn owner() -> Result<Option<User>, DevError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name("postgres") {
        Ok(Some(user)) => Ok(Some(user)),
        _ => Err(DevError::Postgres(
            "run as root, it needs a user named postgres".to_owned(),
        )),
    }
}

fn open_up(folder: &Path) -> Result<(), DevError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
        .map_err(system("cannot open the folder to Postgres"))
}

/// The newest installed one: Debian's folders, else whatever `PATH` has.
fn programs() -> Result<PathBuf, DevError> {
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

fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_else(|error| format!("it ended, and its log cannot be read: {error}"))
}
