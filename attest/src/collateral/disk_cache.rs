//! A copy of the collateral on disk, which survives a restart.
//!
//! One file for each platform family and CA, `<FMSPC>-<ca>.json`, in the JSON of dcap-qvl's
//! `QuoteCollateralV3`. The same files serve machines without a network: copy them there. There is no
//! checksum: a file is verified before it is used, like a response of a PCCS, and Intel's signatures
//! detect whatever a broken disk, a partial write or an attacker changed. A failed write never affects the
//! collateral in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::key::CollateralKey;
use super::set::Collateral;
use crate::limits::{MAX_COLLATERAL_JSON_LEN, MAX_DIRECTORY_ENTRIES};

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file does not hold collateral.
    #[error(transparent)]
    Collateral(#[from] super::CollateralError),
    /// The file holds collateral for other platforms than its name says.
    #[error("holds collateral for {0}")]
    OtherKey(CollateralKey),
}

/// A directory with collateral.
#[derive(Clone, Debug)]
pub struct DiskCache {
    folder: PathBuf,
}

impl DiskCache {
    /// Creates a cache in `folder`, which need not exist yet.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of the collateral for `key`.
    #[must_use]
    pub fn path(&self, key: CollateralKey) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Reads every file with a name like that of collateral. Does not verify them. A missing directory is
    /// an empty one.
    ///
    /// # Errors
    /// An I/O error of the directory. The error of a file is in that file's place.
    pub fn load(&self) -> io::Result<Vec<(PathBuf, Result<Collateral, LoadError>)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut loaded = Vec::new();
        for entry in entries.take(MAX_DIRECTORY_ENTRIES) {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let key = name.and_then(|name| name.strip_suffix(".json")?.parse().ok());
            if let Some(key) = key {
                let read = load_file(&path).and_then(|collateral| match collateral.key() {
                    found if found == key => Ok(collateral),
                    found => Err(LoadError::OtherKey(found)),
                });
                loaded.push((path, read));
            }
        }
        loaded.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(loaded)
    }

    /// Writes `collateral` atomically: to a temporary file, flushed to disk, then renamed. After an error
    /// the previous file is intact.
    ///
    /// # Errors
    /// Any I/O error: a full disk, a read-only directory, a file instead of the directory.
    pub fn save(&self, collateral: &Collateral) -> io::Result<()> {
        let json = collateral
            .to_json()
            .map_err(|error| io::Error::other(error.to_string()))?;
        fs::create_dir_all(&self.folder)?;
        let path = self.path(collateral.key());
        // One writer for each directory is assumed. The process id keeps two from writing to one draft.
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = write_whole(&draft, &json).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&draft);
        }
        written?;
        File::open(&self.folder)?.sync_all()
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A file of this name is what an interrupted run left: process ids repeat, in a container most of all.
    let _ = fs::remove_file(path);
    // O_EXCL: neither a link nor a file that another user has put there is written to.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads one file of dcap-qvl's `QuoteCollateralV3` in JSON. Does not verify it.
///
/// # Errors
/// [`LoadError`].
pub fn load_file(path: &Path) -> Result<Collateral, LoadError> {
    let limit = u64::try_from(MAX_COLLATERAL_JSON_LEN).unwrap_or(u64::MAX);
    let mut json = Vec::new();
    // One byte more than the cap, so that the parser refuses a larger file.
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut json)?;
    Ok(Collateral::from_json(&json)?)
}
