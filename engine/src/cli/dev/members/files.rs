//! The files of `dev --members`: one folder for the whole cluster and one for each member.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::super::error::{DevError, system};

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

    /// The folder of a member.
    pub(super) fn member(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The shared repository of backups.
    pub(super) fn backups(&self) -> PathBuf {
        self.0.join("backups")
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
