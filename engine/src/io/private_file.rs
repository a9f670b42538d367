//! Files with secrets: their permissions are checked when they are read, as libpq checks those of its private keys.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Permissions that a file of root must not have: more than 0640. A group may be given access, such as that of the
/// service's user.
const REFUSED_OF_ROOT: u32 = 0o037;
/// Permissions that a file of another user must not have: more than 0600.
const REFUSED: u32 = 0o077;

/// A secret that others can read.
#[derive(Debug, thiserror::Error)]
#[error("it has the mode {mode:04o}, so that it is no secret: chmod 600, or 640 if root owns it")]
struct Exposed {
    mode: u32,
}

/// Opens a file that must be private.
///
/// # Errors
/// It cannot be opened, or others can read or change it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    check(&file)?;
    Ok(file)
}

/// Reads a file that must be private.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    // Growing would leave copies in freed memory.
    let mut bytes = Vec::with_capacity(length.saturating_add(1));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks the permissions of an open file, which cannot be replaced meanwhile as its path could.
///
/// # Errors
/// Others can read or change it.
pub(crate) fn check(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if is_exposed(found.mode(), found.uid()) {
        let mode = found.mode() & 0o7777;
        return Err(io::Error::other(Exposed { mode }));
    }
    Ok(())
}

fn is_exposed(mode: u32, owner: u32) -> bool {
    let refused = if owner == 0 { REFUSED_OF_ROOT } else { REFUSED };
    mode & refused != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn permissions_are_those_that_libpq_accepts_for_a_key() {
        // systemd's credentials have 0400 or 0440.
        for (owner, accepted, refused) in [
            (
                0,
                &[0o600, 0o640, 0o400, 0o440, 0o100_640][..],
                &[0o644, 0o660, 0o604, 0o650, 0o642][..],
            ),
            (
                1000,
                &[0o600, 0o400, 0o700][..],
                &[0o640, 0o440, 0o604, 0o620, 0o610][..],
            ),
        ] {
            for mode in accepted {
                assert!(!is_exposed(*mode, owner), "{mode:o} of {owner}");
            }
            for mode in refused {
                assert!(is_exposed(*mode, owner), "{mode:o} of {owner}");
            }
        }
    }

    #[test]
    fn reads_a_private_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "hush").unwrap();
        let set_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(0o600);
        assert_eq!(read(&path).unwrap(), b"hush");
        set_mode(0o644);
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("0644") && error.contains("chmod 600"),
            "{error}"
        );
    }
}
