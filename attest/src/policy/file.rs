//! Policy files: `[[os]]` and `[[peer]]` entries in TOML.
//!
//! The whole file is read before anything of it is used, and all mistakes are reported together, each
//! with its line. What is not known, empty or ambiguous is a mistake: a policy must not admit more than
//! its author meant. [`any`](ANY) is the word for a list that allows every value.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

use super::entry::{KmsRootPin, OsEntry, PeerEntry};
use crate::chain::KmsRoot;
use crate::limits::{MAX_POLICY_ENTRIES, MAX_POLICY_LEN};

mod entries;
mod overlap;
mod print;
mod table;

pub use print::print;

use entries::{read_os, read_peer};
use table::TableReader;

/// The word for a list that allows every value.
pub const ANY: &str = "any";

/// What the parser needs in addition to the text.
pub struct Context<'a> {
    /// The roles that can be granted.
    pub roles: &'a [&'a str],
    /// The roles that an entry grants if it names none.
    pub default_roles: &'a [&'a str],
    /// The KMS root of an entry that names an identity, and neither an operating system nor a root.
    pub default_kms_root: KmsRootPin,
    /// Reads the KMS roots of the PEM file with this name.
    pub read_roots: &'a dyn Fn(&str) -> Result<Vec<KmsRoot>, String>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("roles", &self.roles)
            .field("default_roles", &self.default_roles)
            .field("default_kms_root", &self.default_kms_root)
            .finish_non_exhaustive()
    }
}

/// A mistake in a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.text)
    }
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system's error.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// A directory, a device, a pipe.
    #[error("is not a regular file")]
    NotAFile,
    /// More than the cap.
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
    /// It was written while it was read.
    #[error("changed while it was read: replace it by renaming a complete file")]
    Changed,
    /// Not UTF-8.
    #[error("is not UTF-8 text")]
    NotText,
}

/// Reads a file once, in whole, up to `cap` bytes.
///
/// # Errors
/// [`ReadError`], also if the file is written meanwhile: half a policy must not take effect.
pub fn read(path: &Path, cap: usize) -> Result<Vec<u8>, ReadError> {
    read_then(path, cap, || {})
}

/// [`read`], with what happens between the read and the check whether the file has changed.
fn read_then(path: &Path, cap: usize, then: impl FnOnce()) -> Result<Vec<u8>, ReadError> {
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(ReadError::NotAFile);
    }
    let limit = u64::try_from(cap).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    (&mut file)
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() > cap {
        return Err(ReadError::TooLarge(cap));
    }
    then();
    let after = file.metadata()?;
    let state = |of: &std::fs::Metadata| (of.mtime(), of.mtime_nsec(), of.size());
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if state(&before) != state(&after) || length != after.size() {
        return Err(ReadError::Changed);
    }
    Ok(bytes)
}

/// Reads the text of a policy file, of at most [`MAX_POLICY_LEN`] bytes.
///
/// # Errors
/// [`ReadError`].
pub fn read_text(path: &Path) -> Result<String, ReadError> {
    String::from_utf8(read(path, MAX_POLICY_LEN)?).map_err(|_| ReadError::NotText)
}

/// Parses a policy file.
///
/// # Errors
/// All mistakes, in the order of their lines.
pub fn parse(text: &str, context: &Context<'_>) -> Result<Vec<PeerEntry>, Vec<Mistake>> {
    let mut parser = Parser {
        text,
        context,
        mistakes: Vec::new(),
    };
    let peers = parser.document();
    let mut mistakes = parser.mistakes;
    mistakes.sort_by_key(|mistake| mistake.line);
    match peers {
        Some(peers) if mistakes.is_empty() => Ok(peers),
        Some(_) | None => Err(mistakes),
    }
}

/// An entry with the line that it begins at.
struct Entry<T> {
    line: usize,
    entry: T,
}

struct Parser<'t> {
    text: &'t str,
    context: &'t Context<'t>,
    mistakes: Vec<Mistake>,
}

impl<'t> Parser<'t> {
    fn document(&mut self) -> Option<Vec<PeerEntry>> {
        let document = match DeTable::parse(self.text) {
            Ok(document) => document,
            Err(error) => {
                let line = error.span().map_or(1, |span| self.line_of(span.start));
                self.mistake(line, error.message().to_owned());
                return None;
            }
        };
        for (key, _) in document.get_ref() {
            if !matches!(&**key.get_ref(), "os" | "peer") {
                let line = self.line_of(key.span().start);
                let text = format!(
                    "{}: unknown key: a policy consists of [[os]] and [[peer]]",
                    key.get_ref()
                );
                self.mistake(line, text);
            }
        }
        let systems = self.entries(document.get_ref(), "os", |table| read_os(table));
        self.check_names("os", &systems, |os| os.name.as_deref());
        let systems: Vec<_> = systems.into_iter().map(shared).collect();
        overlap::check_systems(self, &systems);
        let peers = self.entries(document.get_ref(), "peer", |table| {
            read_peer(table, &systems)
        });
        self.check_names("peer", &peers, |peer| peer.name.as_deref());
        overlap::check_peers(self, &peers);
        if peers.is_empty() && self.mistakes.is_empty() {
            let text = "there is no [[peer]]: a policy without one admits no peer";
            self.mistake(1, text.to_owned());
        }
        Some(peers.into_iter().map(|peer| peer.entry).collect())
    }

    /// Reads an array of tables.
    fn entries<T>(
        &mut self,
        document: &DeTable<'_>,
        kind: &'static str,
        mut read: impl FnMut(&mut TableReader<'_, '_, 't>) -> T,
    ) -> Vec<Entry<T>> {
        let Some(value) = document.get(kind) else {
            return Vec::new();
        };
        let line = self.line_of(value.span().start);
        let Some(array) = value.get_ref().as_array() else {
            self.mistake(
                line,
                format!("{kind}: write [[{kind}]], in double brackets"),
            );
            return Vec::new();
        };
        if array.len() > MAX_POLICY_ENTRIES {
            let text = format!("more than {MAX_POLICY_ENTRIES} entries of [[{kind}]]");
            self.mistake(line, text);
            return Vec::new();
        }
        let mut entries = Vec::new();
        for (number, value) in (1..).zip(array.iter()) {
            let line = self.line_of(value.span().start);
            match value.get_ref().as_table() {
                Some(table) => {
                    let mut reader = TableReader::new(self, kind, number, line, table);
                    let entry = read(&mut reader);
                    reader.finish();
                    entries.push(Entry { line, entry });
                }
                None => self.mistake(
                    line,
                    format!("{kind}: write [[{kind}]], in double brackets"),
                ),
            }
        }
        entries
    }

    fn check_names<T>(
        &mut self,
        kind: &str,
        entries: &[Entry<T>],
        name: impl Fn(&T) -> Option<&str>,
    ) {
        for (index, later) in entries.iter().enumerate() {
            let Some(of_later) = name(&later.entry) else {
                continue;
            };
            let earlier = entries
                .iter()
                .take(index)
                .find(|earlier| name(&earlier.entry) == Some(of_later));
            if let Some(earlier) = earlier {
                let text = format!(
                    "{kind} {of_later:?}: line {} has an entry of this name: rename or delete one",
                    earlier.line
                );
                self.mistake(later.line, text);
            }
        }
    }

    fn mistake(&mut self, line: usize, text: String) {
        self.mistakes.push(Mistake { line, text });
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

fn shared(os: Entry<OsEntry>) -> Entry<Arc<OsEntry>> {
    Entry {
        line: os.line,
        entry: Arc::new(os.entry),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_file_that_is_written_while_it_is_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "first").unwrap();
        assert_eq!(read_then(&path, 100, || {}).unwrap(), b"first");
        let longer = || fs::write(&path, "a longer text").unwrap();
        let changed = read_then(&path, 100, longer);
        assert!(matches!(changed, Err(ReadError::Changed)), "{changed:?}");
        // The same length, at another time.
        let same_length = || {
            fs::write(&path, "A LONGER TEXT").unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
                .unwrap();
        };
        let changed = read_then(&path, 100, same_length);
        assert!(matches!(changed, Err(ReadError::Changed)), "{changed:?}");
    }
}
