//! Publishes a record by a program of the operator, for name servers that do not take RFC 2136 updates.
//!
//! The program gets the record in its environment, no shell is involved, and nothing that it needs is an argument, since
//! `ps` shows those. It has a deadline; then its whole process group is killed. It never gets a setting of this
//! process, which may be a secret, and its output is read up to a limit.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::error::PublishError;
use crate::config::environment;

/// How long it may run.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of its output that are kept, for the log.
const MAX_OUTPUT: usize = 1024;
/// Variables of this process that begin with this are not passed on.
const OWN_PREFIX: &str = "TEESQL_";

/// Runs `program` with `variables`. The beginning of its output is logged: at debug level, or as a warning if it fails.
///
/// # Errors
/// It cannot be started, ends with another code than 0, or does not end in time.
pub(super) async fn run(
    program: &Path,
    variables: &[(&'static str, String)],
    deadline: Duration,
) -> Result<(), PublishError> {
    let mut command = Command::new(program);
    for name in std::env::vars_os().map(|(name, _)| name) {
        if is_own(&name) {
            command.env_remove(name);
        }
    }
    for name in environment::taken() {
        command.env_remove(name);
    }
    for (name, value) in variables {
        command.env(name, value);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let not_started = |error: std::io::Error| PublishError::CommandNotStarted(error.to_string());
    let mut child = command.spawn().map_err(not_started)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    // Also if this future is dropped, because this member no longer leads.
    let mut group = ProcessGroup(group.map(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async { tokio::join!(child.wait(), beginning_of(stdout), beginning_of(stderr)) };
    let Ok((status, stdout, stderr)) = timeout(deadline, ended).await else {
        return Err(PublishError::CommandTimedOut(deadline));
    };
    group.0 = None;
    let status = status.map_err(not_started)?;
    let output = escaped(&[stderr, stdout].concat());
    if status.success() {
        tracing::debug!(output, "manifest_command has succeeded");
        return Ok(());
    }
    // For the log only: `/ready` needs no authentication, and a program may print its token.
    tracing::warn!(output, "manifest_command has failed");
    Err(PublishError::CommandFailed {
        status: describe(status),
    })
}

/// Output as one line without control characters.
fn escaped(output: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(output))
}

fn is_own(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(OWN_PREFIX.as_bytes())
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// Reads to the end, and returns the beginning.
async fn beginning_of(source: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut source) = source else {
        return kept;
    };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend(buffer.iter().take(read.min(room)));
    }
    kept
}

/// Kills a process group when dropped.
struct ProcessGroup(Option<Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("publish");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    async fn run_script(text: &str, deadline: Duration) -> (Result<(), PublishError>, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), text);
        let result = run_when_closed(&program, deadline).await;
        (result, folder.keep())
    }

    /// Another test may be between `fork` and `exec`, where it has the script open for writing.
    async fn run_when_closed(program: &Path, deadline: Duration) -> Result<(), PublishError> {
        let variables = [
            ("TEESQL_MANIFEST_RECORD", "a=1;b=$(false)".to_owned()),
            ("TEESQL_MANIFEST_TTL", "30".to_owned()),
        ];
        loop {
            match run(program, &variables, deadline).await {
                Err(PublishError::CommandNotStarted(why)) if why.contains("busy") => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result,
            }
        }
    }

    #[tokio::test]
    async fn passes_the_record_and_nothing_of_its_own() {
        let text = "cd \"${0%/*}\"; printf %s \"$TEESQL_MANIFEST_RECORD\" > record; env | grep ^TEESQL_ | sort > env; \
             head -c 100000 /dev/zero";
        let (result, folder) = run_script(text, DEADLINE).await;
        assert_eq!(result, Ok(()));
        let read = |name| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read("record"), "a=1;b=$(false)");
        let expected = "TEESQL_MANIFEST_RECORD=a=1;b=$(false)\nTEESQL_MANIFEST_TTL=30\n";
        assert_eq!(read("env"), expected);
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn reports_how_it_failed() {
        let text = "echo 'no token\x1b[31m' >&2; head -c 100000 /dev/zero; exit 7";
        let (result, folder) = run_script(text, DEADLINE).await;
        fs::remove_dir_all(folder).unwrap();
        let Err(PublishError::CommandFailed { status }) = result else {
            panic!("{result:?}");
        };
        assert_eq!(status, "exit code 7");
        let missing = run(Path::new("/nonexistent/publish"), &[], DEADLINE).await;
        assert!(matches!(missing, Err(PublishError::CommandNotStarted(_))));
    }

    #[tokio::test]
    async fn output_is_cut_and_escaped() {
        assert_eq!(escaped(b"no token\x1b[31m\n"), r#""no token\u{1b}[31m\n""#);
        let endless = tokio::io::repeat(b'x').take(100_000);
        assert_eq!(beginning_of(Some(endless)).await.len(), MAX_OUTPUT);
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed() {
        let deadline = Duration::from_millis(100);
        let (result, folder) = run_script("sleep 600", deadline).await;
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(result, Err(PublishError::CommandTimedOut(deadline)));
    }

    #[tokio::test]
    async fn a_command_that_is_not_wanted_any_more_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            "sleep 600 & echo $! > \"${0%/*}/new\"; mv \"${0%/*}/new\" \"${0%/*}/child\"; wait";
        let program = script(folder.path(), text);
        let child = folder.path().join("child");
        let started = poll(|| fs::read_to_string(&child).ok());
        let child = tokio::select! {
            child = started => child,
            result = run_when_closed(&program, DEADLINE) => panic!("{result:?}"),
        };
        let stat = format!("/proc/{}/stat", child.trim());
        poll(|| {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await;
    }

    async fn poll<T>(mut done: impl FnMut() -> Option<T>) -> T {
        for _ in 0..2000 {
            if let Some(done) = done() {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 20 s");
    }
}
