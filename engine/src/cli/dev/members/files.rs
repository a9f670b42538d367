//! The files of `dev --members`: one folder for the whole cluster and one for each member.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::super::error::{DevError, system};

/// libpq's port of the forwarder that follows the leader, in the same folder as the other one.
pub(super) const FOLLOWING_PORT: u16 = 5433;

/// The folder of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Where requests to the inner process arrive.
    pub(super) fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The forwarder's socket: a libpq host is the folder of it.
    pub(super) fn forwarder(&self) -> PathBuf {
        self.0.join(".s.PGSQL.5432")
    }

    /// The socket of the forwarder that follows the leader.
    pub(super) fn following(&self) -> PathBuf {
        self.0.join(format!(".s.PGSQL.{FOLLOWING_PORT}"))
    }

    /// The log of that forwarder.
    pub(super) fn following_log(&self) -> PathBuf {
        self.0.join("following.log")
    }

    /// The folder of the name server.
    pub(super) fn name_server(&self) -> PathBuf {
        self.0.join("dns")
    }

    /// The folder of a member.
    pub(super) fn member(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The shared repository of backups.
    pub(super) fn backups(&self) -> PathBuf {
        self.0.join("backups")
    }

    /// The socket of a server that has a port on this machine: the inner process relays from it to the server.
    pub(super) fn published_socket(&self, name: &str, kind: &str) -> PathBuf {
        self.0.join(format!("{name}-{kind}.sock"))
    }

    /// The file with the addresses on this machine, written by the outer process.
    pub(super) fn published(&self) -> PathBuf {
        self.0.join("published")
    }
}

/// Creates a folder that this user and group own, if there is one, and that others can enter.
pub(super) fn create(path: &Path, user: Option<(u32, u32)>) -> Result<(), DevError> {
    let doing = || format!("cannot create {}", path.display());
    std::fs::create_dir(path).map_err(system(doing()))?;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).map_err(system(doing()))?;
    match user {
        Some((user, group)) => chown(path, Some(user), Some(group)).map_err(system(doing())),
        None => Ok(()),
    }
}
