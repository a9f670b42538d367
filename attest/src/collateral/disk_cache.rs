//! The copy on disk: it survives a restart, and never harms what is held in memory.
//!
//! One file for each platform family and CA, `<FMSPC>-<ca>.json`, in the JSON of dcap-qvl's
//! `QuoteCollateralV3`. The same files serve machines without a network: copy them there. No check sum is
//! kept with them, because Intel's signatures over every part are a better one: whatever a broken disk,
//! half a write or an attacker makes of a file, it is verified before it is used, as an answer of a PCCS is.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::key::CollateralKey;
use super::set::Collateral;
use crate::limits::{MAX_COLLATERAL_JSON_LEN, MAX_DIRECTORY_ENTRIES};

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It holds no collateral.
    #[error(transparent)]
    Collateral(#[from] super::CollateralError),
    /// It holds collateral for other platforms than its name says.
    #[error("holds collateral for {0}")]
    OtherKey(CollateralKey),
}

/// A folder with collateral.
#[derive(Clone, Debug)]
pub struct DiskCache {
    folder: PathBuf,
}

impl DiskCache {
    /// The folder need not exist yet.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the collateral for `key` is.
    #[must_use]
    pub fn path(&self, key: CollateralKey) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Reads every file that is named like collateral. Not verified yet. A folder that is not there is
    /// an empty one.
    ///
    /// # Errors
    /// Whatever hinders reading the folder; what is wrong with one file stands in its place.
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

    /// Writes `collateral`: to a new file, flushed to the disk, then renamed over the old one. After an
    /// error the old file is still there, whole.
    ///
    /// # Errors
    /// Whatever hinders that: a full disk, a read-only folder, a file in its place.
    pub fn save(&self, collateral: &Collateral) -> io::Result<()> {
        let json = collateral
            .to_json()
            .map_err(|error| io::Error::other(error.to_string()))?;
        fs::create_dir_all(&self.folder)?;
        let path = self.path(collateral.key());
        // One writer for each folder is assumed; the number keeps two from sharing half a file.
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = write_whole(&draft, &json).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&draft);
        }
        written?;
        File::open(&self.folder)?.sync_all()
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads one file of dcap-qvl's `QuoteCollateralV3` in JSON. Not verified yet.
///
/// # Errors
/// [`LoadError`].
pub fn load_file(path: &Path) -> Result<Collateral, LoadError> {
    let limit = u64::try_from(MAX_COLLATERAL_JSON_LEN).unwrap_or(u64::MAX);
    let mut json = Vec::new();
    // One more than is allowed, so that the parser sees that it is too much.
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut json)?;
    Ok(Collateral::from_json(&json)?)
}
