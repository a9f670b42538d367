//! The directory, the cores and the secrets that all processes of a comparison share.

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

/// The database in which Postgres requires SCRAM.
pub const SCRAM_DATABASE: &str = "scram";
/// Descriptors of a proxy that are not connections.
const OTHER_FILES: u64 = 200;

/// Assignment of cores, as lists for `taskset`.
#[derive(Clone, Debug)]
pub struct Cores {
    /// Core of the proxies: the last usable one.
    pub proxy: String,
    /// Cores of Postgres and the load.
    pub others: String,
    /// Number of usable cores.
    pub count: usize,
}

impl Cores {
    /// Assigns the usable cores, and pins this process to its share. With `apart`, and more than
    /// one core, Postgres and the load do not use the proxies' core.
    ///
    /// # Errors
    /// The affinity cannot be read or set.
    pub fn assign(apart: bool) -> Result<Self> {
        let failed =
            |error: nix::Error| io_context("cannot read or set CPU affinity")(error.into());
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

/// State shared by all processes of a comparison. Dropping it removes the directory.
pub struct Workspace {
    /// Assignment of cores.
    pub cores: Cores,
    /// Descriptor limit of each process.
    pub max_descriptors: u64,
    /// The mock TDX platform that issues all certificates.
    pub tdx: MockTdx,
    /// Directory of `teesql-sidecar`, `teesql-loadtest` and the baselines.
    pub programs: PathBuf,
    /// Cluster secret of `teesql_read`.
    pub(crate) read_secret: String,
    /// Cluster secret of `teesql_readwrite`.
    pub(crate) readwrite_secret: String,
    /// Postgres password of both roles.
    pub(crate) password: String,
    folder: TempDir,
}

impl Workspace {
    /// Creates the directory and writes the certificates into it. `programs` is the directory of
    /// the programs, by default that of the running one.
    ///
    /// # Errors
    /// System errors.
    pub fn new(cores: Cores, programs: Option<&Path>) -> Result<Self> {
        let failed = || io_context("cannot create a temporary directory");
        let folder = tempfile::Builder::new()
            .prefix("teesql-loadtest-")
            .tempdir();
        let folder = folder.map_err(failed())?;
        // Postgres and PgBouncer, which do not run as root, use it too.
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

    /// Maximum connections of a proxy, which needs two descriptors for each.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        let room = self.max_descriptors.saturating_sub(OTHER_FILES) / 2;
        MAX_CONNECTIONS.min(usize::try_from(room).unwrap_or(MAX_CONNECTIONS))
    }

    /// Path of a file in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of one of this project's programs.
    ///
    /// # Errors
    /// The program has not been built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::Peer(format!(
                "{} not found: build it first",
                path.display()
            ))),
        }
    }

    /// Login where Postgres requests no password: direct, and through proxies that do not log in
    /// themselves.
    #[must_use]
    pub fn plain_login(&self) -> Login {
        Login::new("teesql_read", "postgres", "")
    }

    /// Login for reading through the sidecar.
    #[must_use]
    pub fn secret_login(&self) -> Login {
        Login::new("teesql_read", "postgres", &self.read_secret)
    }

    /// Direct login to the database in which Postgres requires SCRAM.
    #[must_use]
    pub fn scram_login(&self) -> Login {
        Login::new("teesql_read", SCRAM_DATABASE, &self.password)
    }

    /// Login to the same database through the sidecar.
    #[must_use]
    pub fn secret_scram_login(&self) -> Login {
        Login::new("teesql_read", SCRAM_DATABASE, &self.read_secret)
    }
}

/// Debian's user `postgres`, if this process runs as root.
pub(crate) fn postgres_user() -> Result<Option<User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name("postgres") {
        Ok(Some(user)) => Ok(Some(user)),
        _ => Err(Error::Peer(
            "running as root needs a system user named postgres".to_owned(),
        )),
    }
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(io_context("cannot find this program's path"))?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| io_context("cannot read random bytes")(error.into()))?;
    Ok(hex::encode(bytes))
}
