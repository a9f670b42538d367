//! The file or descriptor that the audit log is written to.
//!
//! A file is locked, so that no two processes write one chain, and only ever appended to. Only the
//! audit thread may use it: a write to a pipe can block.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};

use super::chain::{Head, MAX_LINE, Tail};
use crate::config::AuditTarget;

/// Bytes at the end of a file in which its last whole line must be.
const TAIL: u64 = 4 * MAX_LINE as u64;

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    #[error("audit_log {0}: {1}")]
    Open(AuditTarget, io::Error),
    #[error("audit_log {0}: another process has locked it")]
    Locked(AuditTarget),
    #[error("audit_log {0}: it is a directory or a socket")]
    Kind(AuditTarget),
    #[error("audit_log {0}: the file exists and does not end with a line of an audit log")]
    Foreign(AuditTarget),
    #[error("audit_log {0}: the file holds lines of another chain")]
    OtherChain(AuditTarget),
}

/// An open target.
pub(super) struct Sink {
    target: AuditTarget,
    output: Output,
    /// Device and inode of a regular file.
    identity: Option<(u64, u64)>,
}

enum Output {
    /// A regular file, locked.
    File(Flock<File>),
    /// A pipe or a device.
    Stream(File),
}

impl Output {
    fn file(&mut self) -> &mut File {
        match self {
            Self::File(file) => file,
            Self::Stream(file) => file,
        }
    }
}

impl Sink {
    /// Opens the target, and reads where its chain ends. A file is created if there is none.
    ///
    /// # Errors
    /// It cannot be opened, is locked, or is not an audit log.
    pub(super) fn open(target: &AuditTarget) -> Result<(Self, Tail), SinkError> {
        let failed = |error| SinkError::Open(target.clone(), error);
        let mut file = open(target).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() || kind.is_socket() {
            return Err(SinkError::Kind(target.clone()));
        }
        if !kind.is_file() {
            let sink = Self {
                target: target.clone(),
                output: Output::Stream(file),
                identity: None,
            };
            let tail = Tail {
                head: Head::EMPTY,
                torn: None,
                ends_line: true,
            };
            return Ok((sink, tail));
        }
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Self::continue_file(target, locked, &metadata),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
            Err((_, error)) => return Err(failed(error.into())),
        };
        drop(file);
        Err(SinkError::Locked(target.clone()))
    }

    fn continue_file(
        target: &AuditTarget,
        mut file: Flock<File>,
        metadata: &std::fs::Metadata,
    ) -> Result<(Self, Tail), SinkError> {
        let failed = |error| SinkError::Open(target.clone(), error);
        let length = metadata.len();
        let start = length.saturating_sub(TAIL);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        Read::by_ref(&mut *file)
            .take(TAIL)
            .read_to_end(&mut end)
            .map_err(failed)?;
        let tail = Tail::find(&end, start == 0).ok_or(SinkError::Foreign(target.clone()))?;
        let sink = Self {
            target: target.clone(),
            output: Output::File(file),
            identity: Some((metadata.dev(), metadata.ino())),
        };
        Ok((sink, tail))
    }

    /// Opens the path again. `None` if it still names this file, or if there is no path.
    ///
    /// # Errors
    /// It cannot be opened, or holds lines that do not end with `head`. This one stays usable.
    pub(super) fn reopen(&self, head: Head) -> Result<Option<Self>, SinkError> {
        let AuditTarget::File(path) = &self.target else {
            return Ok(None);
        };
        if self.identity.is_some() && identity_of(path) == self.identity {
            return Ok(None);
        }
        let (sink, tail) = Self::open(&self.target)?;
        let is_empty = tail.head == Head::EMPTY && tail.torn.is_none();
        let is_ours = tail.head == head && tail.torn.is_none() && tail.ends_line;
        if is_empty || is_ours {
            Ok(Some(sink))
        } else {
            Err(SinkError::OtherChain(self.target.clone()))
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.file().write(bytes)
    }

    /// Has the system write a file to its disk. Does nothing for a pipe or a device.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &self.output {
            Output::File(file) => file.sync_data(),
            Output::Stream(_) => Ok(()),
        }
    }
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn open(target: &AuditTarget) -> io::Result<File> {
    let path = match target {
        AuditTarget::File(path) => path.clone(),
        // A copy, which works for a socket or terminal of another user too.
        AuditTarget::Descriptor(1) => return own(io::stdout().as_fd().try_clone_to_owned()),
        AuditTarget::Descriptor(2) => return own(io::stderr().as_fd().try_clone_to_owned()),
        AuditTarget::Descriptor(number) => PathBuf::from(format!("/proc/self/fd/{number}")),
    };
    let kind = std::fs::metadata(&path).ok();
    let kind = kind.map(|metadata| metadata.file_type());
    let is_pipe = kind.is_some_and(|kind| kind.is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    // A pipe must be opened for writing only, or the end of its reader could not be noticed.
    match target {
        AuditTarget::File(_) => options.read(!is_pipe).create(true),
        AuditTarget::Descriptor(_) => options.read(kind.is_some_and(|kind| kind.is_file())),
    };
    if !is_pipe {
        return options.open(path);
    }
    // Without a reader, opening it fails instead of waiting for one; writing may wait.
    let pipe = options.custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(pipe)
}

fn own(descriptor: io::Result<OwnedFd>) -> io::Result<File> {
    descriptor.map(File::from)
}
