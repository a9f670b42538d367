//! The files of `cluster config --dir`: each is replaced atomically, and is private from its first byte if it holds a
//! password.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{Gid, Group, Uid, User};
use zeroize::Zeroizing;

/// A file to write.
pub(super) struct File {
    pub(super) name: &'static str,
    pub(super) text: Zeroizing<String>,
    mode: u32,
}

/// The user and the group that a file is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    user: Uid,
    group: Option<Gid>,
}

impl File {
    /// A file that everybody can read.
    pub(super) fn public(name: &'static str, text: impl Into<Zeroizing<String>>) -> Self {
        let text = text.into();
        Self {
            name,
            text,
            mode: 0o644,
        }
    }

    /// A file that only its owner can read.
    pub(super) fn private(name: &'static str, text: impl Into<Zeroizing<String>>) -> Self {
        let text = text.into();
        Self {
            name,
            text,
            mode: 0o600,
        }
    }

    /// Replaces the file in `folder`, which is created if necessary. A concurrent reader sees the old or the new
    /// content.
    pub(super) fn write(&self, folder: &Path, owner: Option<Owner>) -> io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(self.name);
        let temporary = folder.join(format!("{}.new", self.name));
        // An interrupted run may have left the file behind.
        let _ = std::fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&temporary)?;
        // The process's umask may have removed permissions.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.write_all(self.text.as_bytes())?;
        if let Some(Owner { user, group }) = owner {
            // By the descriptor: the folder's owner could have replaced the file by a link.
            let group = group.map(Gid::as_raw);
            std::os::unix::fs::fchown(&file, Some(user.as_raw()), group)?;
        }
        std::fs::rename(&temporary, &path)?;
        Ok(path)
    }
}

impl FromStr for Owner {
    type Err = String;

    /// `USER` or `USER:GROUP`, names or numbers. A name without a group means the user's own group.
    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let group = group.map(parse_group).transpose()?;
        if let Ok(number) = user.parse() {
            let user = Uid::from_raw(number);
            return Ok(Self { user, group });
        }
        match User::from_name(user) {
            Ok(Some(found)) => Ok(Self {
                user: found.uid,
                group: group.or(Some(found.gid)),
            }),
            _ => Err(format!("no user is named {user:?}")),
        }
    }
}

fn parse_group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(found)) => Ok(found.gid),
        _ => Err(format!("no group is named {text:?}")),
    }
}
