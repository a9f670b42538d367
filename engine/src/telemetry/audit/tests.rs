//! Tests of the audit thread with real files, devices and pipes.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::chain::{Head, Summary, Tail, Verification};
use super::queue::ShardAudit;
use super::*;
use crate::config::AuditTarget;
use crate::io::peer::Peer;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;

/// How long a test waits for the audit thread.
const TIMEOUT: Duration = Duration::from_secs(30);

fn open(target: AuditTarget, required: bool) -> Result<(AuditLog, Metrics), AuditError> {
    let metrics = Metrics::new().unwrap();
    let config = AuditConfig { target, required };
    AuditLog::open(&config, None, &metrics).map(|log| (log, metrics))
}

fn open_file(path: &Path) -> (AuditLog, Metrics) {
    open(AuditTarget::File(path.to_owned()), false).unwrap()
}

/// A connection that becomes a session and ends: an admission, a role grant and an end.
fn session(audit: &ShardAudit) {
    let mut info = ConnectionInfo::new(0, Peer::Local);
    info.audit = Some(Box::default());
    audit.admitted(&mut info, None);
    info.is_session = true;
    audit.role_granted(&info, None);
    audit.ended(&info, None, None, (1, 2), &CloseReason::ClientClosed);
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.collect()
}

fn events(path: &Path) -> Vec<String> {
    let lines = lines(path);
    let events = lines
        .iter()
        .map(|line| line["event"].as_str().unwrap().to_owned());
    events.collect()
}

fn verify(paths: &[&Path]) -> Summary {
    let mut verification = Verification::new(None);
    let mut rest = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        if index > 0 {
            verification.next_file(&rest).unwrap();
        }
        let text = fs::read(path).unwrap();
        rest.clear();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => verification.line(line).unwrap(),
                None => rest = line.to_vec(),
            }
        }
    }
    verification.finish(&rest).unwrap().0
}

fn path_in(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

#[test]
fn the_chain_continues_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "audit.log");
    for _ in 0..3 {
        let (log, _) = open_file(&path);
        session(&log.handle().shard());
    }
    let run = [
        "started",
        "admission",
        "role_grant",
        "session_end",
        "stopped",
    ];
    assert_eq!(events(&path), [run, run, run].concat());
    assert_eq!(verify(&[&path]).lines, 15);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_torn_last_line_is_noted_and_the_chain_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "audit.log");
    drop(open_file(&path));
    let whole = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(whole.len() as u64 - 20).unwrap();
    drop(open_file(&path));
    assert_eq!(events(&path), ["started", "gap", "started", "stopped"]);
    let gap = &lines(&path)[1];
    assert_eq!(gap["cause"], "torn_line");
    assert_eq!(gap["seq"], 2);
    let summary = verify(&[&path]);
    assert_eq!((summary.gaps, summary.torn), (1, 1));
}

#[test]
fn another_file_or_a_log_in_use_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "other");
    fs::write(&path, "not an audit log\n").unwrap();
    let refused = |path: &Path| {
        let Err(error) = open(AuditTarget::File(path.to_owned()), false) else {
            panic!("it was opened");
        };
        error.to_string()
    };
    assert!(refused(&path).contains("does not end with a line of an audit log"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "not an audit log\n");
    let path = path_in(&folder, "audit.log");
    let (log, _) = open_file(&path);
    assert!(refused(&path).contains("another process has locked it"));
    drop(log);
    drop(open_file(&path));
    assert!(refused(folder.path()).contains("audit_log"));
    assert!(refused(&path_in(&folder, "none/audit.log")).contains("No such file"));
}

#[test]
fn a_renamed_file_is_continued_in_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (
        path_in(&folder, "audit.log"),
        path_in(&folder, "audit.log.1"),
    );
    let (log, _) = open_file(&path);
    let shard = log.handle().shard();
    session(&shard);
    await_that("the session is in the file", || lines(&path).len() == 4);
    // Without a rename nothing changes.
    log.reopen();
    session(&shard);
    await_that("the file stays in use", || lines(&path).len() == 7);
    fs::rename(&path, &old).unwrap();
    log.reopen();
    await_that("a new file", || path.exists() && !lines(&path).is_empty());
    session(&shard);
    drop(log);
    let new = [
        "reopened",
        "admission",
        "role_grant",
        "session_end",
        "stopped",
    ];
    assert_eq!(events(&path), new);
    assert_eq!(verify(&[&old, &path]).lines, 12);
}

/// `/dev/full` fails every write with ENOSPC.
#[test]
fn a_full_disk_loses_nothing_that_the_queue_holds_and_notes_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "audit.log");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let (log, metrics) = open_file(&path);
    let handle = log.handle();
    await_that("the failure is known", || {
        handle.state().failure == Some("no_space")
    });
    assert!(metrics.render().contains("teesql_audit_failing 1"));
    let shard = handle.shard();
    assert!(shard.accepts_sessions(), "audit_required is off");
    // More than the queue holds, although most admissions are only counted.
    let sessions = 3_000;
    for _ in 0..sessions {
        session(&shard);
    }
    fs::remove_file(&path).unwrap();
    log.reopen();
    await_that("it is written again", || handle.state().failure.is_none());
    assert!(metrics.render().contains("teesql_audit_failing 0"));
    drop(log);
    let written = lines(&path);
    let gaps: Vec<_> = written
        .iter()
        .filter(|line| line["event"] == "gap")
        .collect();
    let [gap] = gaps[..] else {
        panic!("{gaps:?}");
    };
    assert_eq!(gap["cause"], "no_space");
    let lost = gap["lost"].as_u64().unwrap();
    let other = ["started", "reopened", "stopped", "gap", "admissions"];
    let counted = written
        .iter()
        .filter(|line| line["event"] == "admissions")
        .map(|line| {
            assert_eq!(line["verdict"], "unattested", "{line}");
            line["count"].as_u64().unwrap()
        });
    let counted: u64 = counted.sum();
    assert!(counted > 0);
    let kept = written
        .iter()
        .filter(|line| !other.iter().any(|name| line["event"] == *name));
    assert_eq!(kept.count() as u64 + counted + lost, 3 * sessions);
    assert!(metrics.render().contains(&format!(
        r#"teesql_audit_lost_total{{cause="no_space"}} {lost}"#
    )));
    assert_eq!(verify(&[&path]).lost, lost);
}

#[test]
fn a_required_log_that_cannot_be_written_ends_the_start() {
    let full = AuditTarget::File("/dev/full".into());
    let Err(error) = open(full, true) else {
        panic!("it was opened");
    };
    assert!(error.to_string().contains("No space left"), "{error}");
}

#[test]
fn a_required_log_keeps_new_sessions_out_while_it_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (
        path_in(&folder, "audit.log"),
        path_in(&folder, "audit.log.1"),
    );
    let (log, _) = open(AuditTarget::File(path.clone()), true).unwrap();
    let (handle, shard) = (log.handle(), log.handle().shard());
    fs::rename(&path, &old).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    log.reopen();
    await_that("sessions are refused", || !shard.accepts_sessions());
    assert!(handle.state().required);
    fs::remove_file(&path).unwrap();
    log.reopen();
    await_that("sessions are accepted", || shard.accepts_sessions());
}

/// A pipe whose reader does not read blocks the audit thread, not the shard; and the process can end.
#[test]
fn a_blocked_pipe_does_not_block_a_shard() {
    let (mut reader, writer) = io::pipe().unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
    let target = AuditTarget::Descriptor(u32::try_from(number).unwrap());
    let (log, _) = open(target, false).unwrap();
    drop(writer);
    let handle = log.handle();
    let shard = handle.shard();
    let start = Instant::now();
    while handle.state().failure != Some("queue_full") {
        session(&shard);
        assert!(start.elapsed() < TIMEOUT);
    }
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    await_that("it is written again", || handle.state().failure.is_none());
    drop((log, shard));
    let text = reading.join().unwrap();
    let tail = Tail::find(text.as_bytes(), true).unwrap();
    assert_ne!(tail.head, Head::EMPTY);
    let gap = text
        .lines()
        .find(|line| line.contains(r#""event":"gap""#))
        .unwrap();
    let gap: Value = serde_json::from_str(gap).unwrap();
    assert_eq!(gap["cause"], "queue_full");
    let mut verification = Verification::new(None);
    for line in text.lines() {
        verification.line(line.as_bytes()).unwrap();
    }
    let summary = verification.finish(&[]).unwrap().0;
    assert_eq!(Some(summary.lost), gap["lost"].as_u64());
}

/// What is written after the end of a reader would be lost silently.
#[test]
fn a_named_pipe_needs_a_reader() {
    use nix::sys::stat::Mode;
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "pipe");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let target = AuditTarget::File(path.clone());
    let Err(error) = open(target.clone(), false) else {
        panic!("it was opened");
    };
    let error = error.to_string();
    assert!(error.contains("No such device or address"), "{error}");
    let mut options = fs::File::options();
    let options = options.read(true).custom_flags(nix::libc::O_NONBLOCK);
    let reader = options.open(&path).unwrap();
    let (log, _) = open(target, false).unwrap();
    let handle = log.handle();
    let shard = handle.shard();
    session(&shard);
    assert_eq!(handle.state().failure, None);
    drop(reader);
    await_that("the end of the reader is noticed", || {
        session(&shard);
        handle.state().failure == Some("io_error")
    });
}

#[test]
fn cancel_requests_beyond_the_budget_are_not_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "audit.log");
    let (log, _) = open_file(&path);
    let shard = log.handle().shard();
    for _ in 0..1_000 {
        let mut info = ConnectionInfo::new(0, Peer::Local);
        info.audit = Some(Box::default());
        shard.ended(&info, None, None, (0, 0), &CloseReason::Cancelled);
    }
    drop(log);
    let lines = lines(&path);
    let summary = lines
        .iter()
        .find(|line| line["event"] == "refusals")
        .unwrap();
    assert_eq!(summary["reason"], "cancel_forwarded");
    assert_eq!(summary["verdict"], Value::Null);
}

#[test]
fn a_flood_of_refusals_becomes_one_line_with_its_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder, "audit.log");
    let (log, _) = open_file(&path);
    let shard = log.handle().shard();
    let refusals = 5_000;
    for _ in 0..refusals {
        let mut info = ConnectionInfo::new(0, Peer::Local);
        info.audit = Some(Box::default());
        shard.ended(&info, None, None, (0, 0), &CloseReason::LoginTimeout);
    }
    drop(log);
    let lines = lines(&path);
    let single = lines
        .iter()
        .filter(|line| line["event"] == "refusal")
        .count();
    let summary = lines
        .iter()
        .find(|line| line["event"] == "refusals")
        .unwrap();
    assert_eq!(summary["reason"], "login_timeout");
    let count = summary["count"].as_u64().unwrap();
    assert_eq!(single as u64 + count, refusals);
    assert!((10..200).contains(&single), "{single}");
}
