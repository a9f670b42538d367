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
use crate::process_usage;

/// The database in which Postgres requires SCRAM.
pub const SCRAM_DATABASE: &str = "scram";
/// Descriptors of a proxy that are not connections.
const OTHER_FILES: u64 = 200;

/// Where Postgres and the load run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On all usable cores, the proxies' among them.
    Shared,
    /// On all usable cores but the proxies'. On a machine with one core the same as `Shared`.
    Apart,
}

/// Assignment of cores, as lists for `taskset`.
#[derive(Clone, Debug)]
pub struct Cores {
    /// Core of the proxies: the last usable one.
    pub proxy: String,
    /// Cores of Postgres and the load at the start.
    pub others: String,
    /// All usable cores.
    pub usable: Vec<usize>,
}

impl Cores {
    /// Assigns the usable cores, and pins this thread, and the threads and processes that it will
    /// start, to its share.
    ///
    /// # Errors
    /// The affinity cannot be read or set.
    pub fn assign(placement: Placement) -> Result<Self> {
        let mine = sched_getaffinity(Pid::from_raw(0)).map_err(affinity_failed)?;
        let usable: Vec<usize> = (0..CpuSet::count())
            .filter(|core| mine.is_set(*core).unwrap_or(false))
            .collect();
        let others = others(&usable, placement);
        pin(Pid::from_raw(0), others)?;
        let list: Vec<String> = others.iter().map(usize::to_string).collect();
        Ok(Self {
            proxy: usable.last().copied().unwrap_or(0).to_string(),
            others: list.join(","),
            usable,
        })
    }

    /// Moves this thread and `server` with its child processes to the cores of `placement`. What
    /// they start later inherits the cores.
    ///
    /// # Errors
    /// The affinity cannot be set.
    pub fn place(&self, placement: Placement, server: process_usage::Pid) -> Result<()> {
        let cores = others(&self.usable, placement);
        pin(Pid::from_raw(0), cores)?;
        let server = i32::try_from(server).map_err(|_| affinity_failed(nix::Error::ESRCH))?;
        pin(Pid::from_raw(server), cores)?;
        let children = format!("/proc/{server}/task/{server}/children");
        let children = std::fs::read_to_string(&children).map_err(io_context(children))?;
        for child in children.split_ascii_whitespace().flat_map(str::parse) {
            // A session may have ended meanwhile.
            let _ = pin(Pid::from_raw(child), cores);
        }
        Ok(())
    }

    /// Runs `load` with the threads that it starts on one half of the usable cores: in even rounds on the half with
    /// the proxies' core, in odd ones on the other one. Otherwise the scheduler chooses one of the two, for as long as
    /// the load runs, and a query costs a proxy up to a third less on the core of its client.
    ///
    /// # Errors
    /// Those of `load`, or the affinity cannot be set.
    pub fn alternate_load<T>(&self, round: usize, load: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(Pid::from_raw(0), half(&self.usable, round))?;
        let done = load();
        pin(Pid::from_raw(0), &self.usable)?;
        done
    }
}

/// The half of the `usable` cores on which the load of this round runs.
fn half(usable: &[usize], round: usize) -> &[usize] {
    let (others, with_proxy) = usable.split_at(usable.len() / 2);
    match round % 2 {
        1 if !others.is_empty() => others,
        _ => with_proxy,
    }
}

/// The cores of Postgres and the load among the `usable` ones.
fn others(usable: &[usize], placement: Placement) -> &[usize] {
    match (placement, usable) {
        (Placement::Apart, [others @ .., _proxy]) if !others.is_empty() => others,
        _ => usable,
    }
}

fn pin(process: Pid, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).map_err(affinity_failed)?;
    }
    sched_setaffinity(process, &set).map_err(affinity_failed)
}

fn affinity_failed(error: nix::Error) -> Error {
    io_context("cannot read or set CPU affinity")(error.into())
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

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn the_load_alternates_between_the_halves_of_the_cores() {
        assert_eq!(half(&[2, 3], 0), [3]);
        assert_eq!(half(&[2, 3], 1), [2]);
        assert_eq!(half(&[0, 1, 2], 0), [1, 2]);
        assert_eq!(half(&[0, 1, 2], 1), [0]);
        assert_eq!(half(&[5], 0), half(&[5], 1));
    }
}
