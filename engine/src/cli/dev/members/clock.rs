//! A clock of a member's own, which can be set off: libfaketime, preloaded into Patroni with Postgres and into the sidecar.
//!
//! Only the time of day is changed, as it is on a machine whose clock is wrong: the monotonic clock is not. etcd links
//! statically and keeps the machine's clock.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::super::error::{DevError, system};

/// The library, in Debian's package `libfaketime`: the folder below it is named after the architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The largest offset in seconds.
const MAX_OFFSET: u32 = 86_400;

/// Python's `time.sleep` calls `clock_nanosleep` with a time of the monotonic clock, which libfaketime 0.9.10 makes fail
/// with EINVAL: Patroni would end whenever it tries something again. `select` sleeps as well.
const SITECUSTOMIZE: &str = "\
import select
import time

time.sleep = lambda seconds: select.select((), (), (), seconds)
";

/// The file with the offset.
fn file(folder: &Path) -> PathBuf {
    folder.join("clock")
}

/// Where the library is.
pub(super) fn library() -> Option<PathBuf> {
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let path = Path::new("/usr/lib").join(architecture).join(LIBRARY);
    path.exists().then_some(path)
}

/// Lets a program have the member's clock. Without the library it has that of the machine.
pub(super) fn apply(command: &mut Command, folder: &Path) {
    if let Some(library) = library() {
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", file(folder))
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_XRESET", "1")
            .env("PYTHONPATH", python(folder));
    }
}

/// The folder of Python's modules for this member.
fn python(folder: &Path) -> PathBuf {
    folder.join("python")
}

/// Writes what [`apply`] names: a clock that is right.
///
/// # Errors
/// A file cannot be written.
pub(super) fn prepare(folder: &Path) -> Result<(), DevError> {
    let python = python(folder);
    std::fs::create_dir_all(&python)
        .and_then(|()| std::fs::write(python.join("sitecustomize.py"), SITECUSTOMIZE))
        .map_err(system("cannot prepare the clock"))?;
    set(folder, "+0")
}

/// Sets the clock off by so many seconds, such as `+60` or `-60`.
///
/// # Errors
/// It is not an offset, or the file cannot be written.
pub(super) fn set(folder: &Path, offset: &str) -> Result<(), DevError> {
    let seconds = offset.strip_prefix(['+', '-']);
    let seconds = seconds.and_then(|seconds| seconds.parse::<u32>().ok());
    if seconds.is_none_or(|seconds| seconds > MAX_OFFSET) {
        return Err(DevError::Members(format!(
            "{offset:?} is no offset of a clock: + or - and at most {MAX_OFFSET} seconds"
        )));
    }
    std::fs::write(file(folder), format!("{offset}\n")).map_err(system("cannot set the clock"))
}
