//! The folder, the cores and the secrets that a comparison's processes share.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

use crate::endpoint::Login;
use crate::error::{Error, Result, io_context};
use crate::load::MAX_CONNECTIONS;
use crate::machine::raise_descriptor_limit;
use crate::mock_tdx::MockTdx;

/// The database in which Postgres asks for SCRAM.
pub const SCRAM_DATABASE: &str = "scram";
/// Descriptors of a process that are not connections.
const OTHER_FILES: u64 = 200;

/// Who may use which cores.
#[derive(Clone, Debug)]
pub struct Cores {
    /// The proxies': the last one.
    pub proxy: String,
    /// Postgres' and the load's.
    pub others: String,
    /// How many there are in all.
    pub count: usize,
}

impl Cores {
    /// Those that this process may use. Postgres and the load keep off the
    /// proxies' core if `apart` says so and there is more than one; this process
    /// does from now on.
    ///
    /// # Errors
    /// The system does not say, or not let it.
    pub fn assign(apart: bool) -> Result<Self> {
        let failed = |error: nix::Error| io_context("cannot see or set cores")(error.into());
        let mine = sched_getaffinity(Pid::from_raw(0)).map_err(failed)?;
        let all: Vec<usize> = (0..CpuSet::count())
            .filter(|core| mine.is_set(*core).unwrap_or(false))
            .collect();
        let last = all.last().copied().unwrap_or(0);
        let others = match apart && all.len() > 1 {
            true => all.iter().copied().filter(|core| *core != last).collect(),
            false => all.clone(),
        };
        let mut set = CpuSet::new();
        for core in &others {
            set.set(*core).map_err(failed)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set).map_err(failed)?;
        let list: Vec<String> = others.iter().map(usize::to_string).collect();
        Ok(Self {
            proxy: last.to_string(),
            others: list.join(","),
            count: all.len(),
        })
    }
}

/// What all processes of a comparison share. Its Drop removes the folder.
pub struct Workspace {
    /// Cores.
    pub cores: Cores,
    /// Descriptors that each process may have.
    pub max_descriptors: u64,
    /// The mock TDX that certificates are of.
    pub tdx: MockTdx,
    /// Where `teesql-sidecar`, `tokio-baseline` and this program are.
    pub programs: PathBuf,
    /// Opens `teesql_read`.
    pub(crate) read_secret: String,
    /// Opens `teesql_readwrite`.
    pub(crate) readwrite_secret: String,
    /// Postgres' password of both roles.
    pub(crate) password: String,
    folder: TempDir,
}

impl Workspace {
    /// A new folder with certificates in it. `programs` is where the programs
    /// are: the folder of this one, if not said.
    ///
    /// # Errors
    /// The system's.
    pub fn new(cores: Cores, programs: Option<&Path>) -> Result<Self> {
        let failed = || io_context("cannot make a folder");
        let folder = tempfile::Builder::new()
            .prefix("teesql-loadtest-")
            .tempdir();
        let folder = folder.map_err(failed())?;
        // Postgres and PgBouncer, which are not run as root, live in it too.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).map_err(failed())?;
        if let Some(user) = postgres_user()? {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            chown(folder.path(), Some(uid), Some(gid)).map_err(failed())?;
        }
        let tdx = MockTdx::new()?;
        tdx.write(folder.path())?;
        Ok(Self {
            cores,
            max_descriptors: raise_descriptor_limit(),
            tdx,
            programs: match programs {
                Some(folder) => folder.to_owned(),
                None => own_directory()?,
            },
            read_secret: random_hex()?,
            readwrite_secret: random_hex()?,
            password: random_hex()?,
            folder,
        })
    }

    /// Connections that a proxy can hold: it needs two raise_descriptor_limit for each.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        let room = self.max_descriptors.saturating_sub(OTHER_FILES) / 2;
        MAX_CONNECTIONS.min(usize::try_from(room).unwrap_or(MAX_CONNECTIONS))
    }

    /// A file in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of this project's programs.
    ///
    /// # Errors
    /// It was not built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::Peer(format!("{} was not built", path.display()))),
        }
    }

    /// Where Postgres asks for no password: direct, and through proxies that
    /// leave the login to it.
    #[must_use]
    pub fn plain_login(&self) -> Login {
        Login::new("teesql_read", "postgres", "")
    }

    /// Through ours, to read.
    #[must_use]
    pub fn secret_login(&self) -> Login {
        Login::new("teesql_read", "postgres", &self.read_secret)
    }

    /// Direct, to a database where Postgres asks for SCRAM.
    #[must_use]
    pub fn scram_login(&self) -> Login {
        Login::new("teesql_read", SCRAM_DATABASE, &self.password)
    }

    /// Through ours, to the same.
    #[must_use]
    pub fn secret_scram_login(&self) -> Login {
        Login::new("teesql_read", SCRAM_DATABASE, &self.read_secret)
    }
}

/// Debian's user for Postgres, where this runs as root.
pub(crate) fn postgres_user() -> Result<Option<User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name("postgres") {
        Ok(Some(user)) => Ok(Some(user)),
        _ => Err(Error::Peer(
            "run as root, it needs a user named postgres".to_owned(),
        )),
    }
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(io_context("where am I"))?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| io_context("no randomness")(error.into()))?;
    Ok(hex::encode(bytes))
}
