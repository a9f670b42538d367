//! Tests of the audit log: its events, log rotation, full disks, and `audit verify`.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attest::mock::Evidence;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::WRONG_SECRET;
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::message::{PROTOCOL_3_0, startup};
use crate::harness::process::{TIMEOUT, lossy, poll_until, run, run_successfully};
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("audit::records_what_happens_to_clients", records_clients);
    suite.add("audit::records_a_revocation", records_a_revocation);
    suite.add("audit::continues_in_a_new_file_on_sighup", rotation);
    suite.add("audit::continues_after_a_kill", continues_after_a_kill);
    suite.add("audit::sessions_go_on_when_the_disk_is_full", full_disk);
    suite.add(
        "audit::required_log_refuses_sessions_when_the_disk_is_full",
        full_disk_with_required_log,
    );
    suite.add("audit::garbage_is_counted", garbage_is_counted);
    if suite.adds_driver_independent() {
        suite.add("audit::a_file_that_is_no_log_exits_64", no_audit_log);
    }
}

/// The log of one test.
pub(crate) struct Log(PathBuf);

impl Log {
    pub(crate) fn new(fixture: &Fixture) -> Self {
        Self(fixture.harness.unique_path("audit"))
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.collect()
    }

    fn events(&self) -> Vec<String> {
        let lines = self.lines();
        let events = lines
            .iter()
            .map(|line| line["event"].as_str().expect("an event"));
        events.map(str::to_owned).collect()
    }

    /// Waits for `count` lines with `event`, and returns the last one.
    pub(crate) fn wait(&self, event: &str, count: usize) -> Value {
        poll_until(TIMEOUT, || {
            let mut lines = self.lines();
            lines.retain(|line| line["event"] == event);
            (lines.len() >= count).then(|| lines.pop())?
        })
        .unwrap_or_else(|| panic!("no {count} lines {event}: {:#?}", self.lines()))
    }
}

fn verify(paths: &[&Path]) -> Output {
    let mut command = sidecar_command(&["audit", "verify"], &[]);
    command.args(paths);
    run(command, TIMEOUT)
}

/// Ends the sidecar and verifies its log.
fn stop_and_verify(sidecar: &Sidecar, paths: &[&Path]) -> String {
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.await_exit().code(), Some(0));
    let verified = verify(paths);
    let output = lossy(&verified.stdout) + &lossy(&verified.stderr);
    assert_eq!(verified.status.code(), Some(0), "{output}");
    output
}

fn attested(fixture: &Fixture, tdx: &TdxFixture, sidecar: &Sidecar, evidence: &Evidence) -> Client {
    let name = fixture.harness.unique_name("client");
    let certificate = tdx.issue(&name, evidence);
    super::attestation_gate::connect(fixture, sidecar, &certificate)
}

fn records_clients(fixture: &Fixture) {
    let (tdx, log) = (TdxFixture::new(), Log::new(fixture));
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_AUDIT_LOG", log.path());
    let sidecar = Sidecar::start(&settings);
    let policy = log.wait("started", 1)["policy"].clone();
    assert_eq!(policy.as_str().map(str::len), Some(64));

    let mut session = attested(fixture, &tdx, &sidecar, &Evidence::default());
    let address = session.local_address().to_string();
    session.login_reader();
    assert_eq!(session.query_value("select 'sql_marker'"), "sql_marker");
    session.terminate();
    let end = log.wait("session_end", 1);
    let lines = log.lines();
    let [_, admission, grant, _] = &lines[..] else {
        panic!("{lines:#?}");
    };
    assert_eq!(admission["event"], "admission");
    assert_eq!(admission["verdict"], "attested");
    assert_eq!(grant["event"], "role_grant");
    for line in [admission, grant, &end] {
        assert_eq!(line["address"], address.as_str(), "{line}");
        assert_eq!(line["connection"], admission["connection"], "{line}");
        assert_eq!(line["app_id"], "a1".repeat(20), "{line}");
        assert_eq!(line["compose_hash"], "c0".repeat(32), "{line}");
        assert_eq!(line["os_image_hash"], "05".repeat(32), "{line}");
        assert_eq!(line["certificate"].as_str().map(str::len), Some(64));
        assert_eq!(line["tcb_status"], "UpToDate", "{line}");
        assert_eq!(line["policy"], policy, "{line}");
    }
    for line in [grant, &end] {
        assert_eq!(line["role"], "teesql_read", "{line}");
        assert_eq!(line["database"], "via_scram", "{line}");
    }
    // After Terminate both sides close, in either order.
    let reason = end["reason"].as_str().expect("a reason");
    assert!(
        ["client_closed", "upstream_closed"].contains(&reason),
        "{end}"
    );
    assert!(end["received"].as_u64() > Some(20), "{end}");
    assert!(end["sent"].as_u64() > Some(20), "{end}");

    // A wrong secret, from a client that the gate lets in.
    let mut wrong = attested(fixture, &tdx, &sidecar, &Evidence::default());
    let refused = wrong.login("teesql_readwrite", "via_scram", WRONG_SECRET);
    assert_eq!(refused.expect_err("a wrong secret").code, "28P01");
    let line = log.wait("refusal", 1);
    assert_eq!(line["reason"], "authentication_failed", "{line}");
    assert_eq!(line["role"], "teesql_readwrite", "{line}");
    assert_eq!(line["app_id"], "a1".repeat(20), "{line}");

    // Evidence that is refused proves no identity, but there is a certificate.
    let mut debug = Evidence::default();
    debug.report.debug = true;
    attested(fixture, &tdx, &sidecar, &debug).expect_fatal();
    let line = log.wait("refusal", 2);
    assert_eq!(line["reason"], "debug_td", "{line}");
    assert_eq!(line["app_id"], Value::Null, "{line}");
    assert_eq!(line["certificate"].as_str().map(str::len), Some(64));
    assert_eq!(line["policy"], policy, "{line}");

    let output = stop_and_verify(&sidecar, &[&log.0]);
    assert!(output.starts_with("lines 1 to 8, "), "{output}");
    assert_eq!(log.events().last().map(String::as_str), Some("stopped"));
    let text = fs::read_to_string(&log.0).expect("the log");
    assert!(!text.contains("sql_marker") && !text.contains(&WRONG_SECRET[..10]));
    tampering_is_found(&log.0, &text);
}

fn tampering_is_found(path: &Path, text: &str) {
    let bad = |text: &str, line: usize| {
        fs::write(path, text).expect("the log");
        let output = verify(&[path]);
        let place = format!("error: {}:{line}: ", path.display());
        assert_eq!(output.status.code(), Some(65));
        let error = lossy(&output.stderr);
        assert!(error.starts_with(&place), "{error}");
    };
    // The changed line is the third; the fourth does not fit to it.
    bad(
        &text.replacen(r#""role":"teesql_read""#, r#""role":"postgres""#, 1),
        4,
    );
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let without = |removed: usize| {
        let kept = (0..lines.len()).filter(|index| *index != removed);
        kept.map(|index| lines[index]).collect::<String>()
    };
    bad(&without(2), 3);
    bad(&text[..text.len() - 5], lines.len());
    bad(&text.replacen('{', "x", 2), 1);
    // Removed newest lines are found by a hash that was kept.
    fs::write(path, text).expect("the log");
    let output = lossy(&verify(&[path]).stdout);
    let (_, hash) = output.trim_end().rsplit_once(' ').expect("the hash");
    let contains = |expected: i32| {
        let mut command = sidecar_command(&["audit", "verify", "--contains", hash], &[]);
        command.arg(path);
        assert_eq!(run(command, TIMEOUT).status.code(), Some(expected));
    };
    contains(0);
    fs::write(path, without(lines.len() - 1)).expect("the log");
    assert_eq!(verify(&[path]).status.code(), Some(0));
    contains(65);
    fs::remove_file(path).expect("the log");
    assert_eq!(verify(&[path]).status.code(), Some(66));
}

fn records_a_revocation(fixture: &Fixture) {
    let (tdx, log) = (TdxFixture::new(), Log::new(fixture));
    let config = tdx.path("audit.toml");
    let allow = |byte: &str| {
        let text = format!("allowed_mrtd = \"{}\"\n", byte.repeat(48));
        fs::write(&config, text).expect("audit.toml");
    };
    allow("11");
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_CONFIG", &config)
        .set("TEESQL_REVOCATION_GRACE", "100ms")
        .set("TEESQL_AUDIT_LOG", log.path());
    let sidecar = Sidecar::start(&settings);
    let mut session = attested(fixture, &tdx, &sidecar, &Evidence::default());
    session.login_reader();
    allow("12");
    sidecar.signal(Signal::SIGHUP);
    assert_eq!(session.expect_fatal().code, "57P01");
    let end = log.wait("session_end", 1);
    let (policy, revocation) = (log.wait("policy", 1), log.wait("revocation", 1));
    assert_eq!(revocation["reason"], "mrtd_not_allowed", "{revocation}");
    assert_eq!(revocation["verdict"], "revoked", "{revocation}");
    assert_eq!(revocation["policy"], policy["policy"], "{revocation}");
    assert_eq!(revocation["connection"], end["connection"]);
    assert_eq!(end["reason"], "mrtd_not_allowed", "{end}");
    stop_and_verify(&sidecar, &[&log.0]);
}

/// Settings with an audit log and an HTTP server, without attestation.
fn settings(fixture: &Fixture, log: &Log) -> Settings {
    fixture
        .settings()
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_AUDIT_LOG", log.path())
}

fn rotation(fixture: &Fixture) {
    let log = Log::new(fixture);
    let old = fixture.harness.unique_path("audit-old");
    let sidecar = Sidecar::start(&settings(fixture, &log));
    fixture.session(&sidecar).terminate();
    let admission = log.wait("admission", 1);
    assert_eq!(admission["verdict"], "unattested", "{admission}");
    log.wait("session_end", 1);
    let session = fixture.session(&sidecar);
    fs::rename(&log.0, &old).expect("the log is renamed");
    sidecar.signal(Signal::SIGHUP);
    log.wait("reopened", 1);
    session.terminate();
    log.wait("session_end", 1);
    stop_and_verify(&sidecar, &[&old, &log.0]);
    // In the wrong order, and the second one alone.
    assert_eq!(verify(&[&log.0, &old]).status.code(), Some(65));
    let alone = verify(&[&log.0]);
    assert_eq!(alone.status.code(), Some(0));
    let text = lossy(&alone.stdout);
    assert!(text.contains("are not in these files"), "{text}");
}

fn continues_after_a_kill(fixture: &Fixture) {
    let log = Log::new(fixture);
    let sidecar = Sidecar::start(&settings(fixture, &log));
    let _session = fixture.session(&sidecar);
    log.wait("role_grant", 1);
    sidecar.signal(Signal::SIGKILL);
    sidecar.await_exit();
    // What a crash of the whole machine may leave.
    let mut file = fs::File::options()
        .append(true)
        .open(&log.0)
        .expect("the log");
    file.write_all(br#"{"seq":4,"prev":"00"#)
        .expect("a torn line");
    let sidecar = Sidecar::start(&settings(fixture, &log));
    sidecar.await_message("the last line of the audit log is incomplete");
    fixture.session(&sidecar).terminate();
    log.wait("session_end", 1);
    let output = stop_and_verify(&sidecar, &[&log.0]);
    assert!(
        output.contains("1 of them written incompletely"),
        "{output}"
    );
    let session = ["admission", "role_grant"];
    let expected = [
        &["started"][..],
        &session,
        &["gap", "started"],
        &session,
        &["session_end", "stopped"],
    ];
    assert_eq!(log.events(), expected.concat());
}

/// Limits the size of the files that the sidecar writes: `bytes`, or `unlimited`.
fn limit_file_size(sidecar: &Sidecar, bytes: &str) {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--pid={}", sidecar.pid()))
        .arg(format!("--fsize={bytes}:unlimited"));
    run_successfully(command, TIMEOUT);
}

/// The check `audit` in `/ready`, once its reason is as wanted.
fn await_audit_check(sidecar: &Sidecar, failing: bool) -> (u16, Value) {
    let address = sidecar.admin_address();
    poll_until(TIMEOUT, || {
        let response = http::get(address, "/ready");
        let json = response.json();
        let checks = json["checks"].as_array()?;
        let check = checks
            .iter()
            .find(|check| check["name"] == "audit")?
            .clone();
        (check["reason"].is_string() == failing).then_some((response.status, check))
    })
    .unwrap_or_else(|| panic!("the check did not change to failing = {failing}"))
}

fn full_disk(fixture: &Fixture) {
    let log = Log::new(fixture);
    let sidecar = Sidecar::start(&settings(fixture, &log));
    let mut session = fixture.session(&sidecar);
    let grant = log.wait("role_grant", 1);
    assert_eq!(await_audit_check(&sidecar, false).0, 200);
    // In the middle of the next line.
    let size = fs::metadata(&log.0).expect("the log").len() + 100;
    limit_file_size(&sidecar, &size.to_string());
    fixture.session(&sidecar).terminate();
    let (status, check) = await_audit_check(&sidecar, true);
    assert_eq!((status, &check["ready"]), (200, &Value::Bool(true)));
    let reason = check["reason"].as_str().expect("a reason");
    assert!(reason.contains("no_space"), "{reason}");
    sidecar.await_message("the audit log cannot be written, trying again every second");
    let metrics = http::get(sidecar.admin_address(), "/metrics").body;
    assert!(metrics.contains("teesql_audit_failing 1"), "{metrics}");
    // Sessions go on, and new ones begin.
    assert_eq!(session.query_value("select 1"), "1");
    fixture.session(&sidecar).terminate();
    assert_eq!(fs::metadata(&log.0).expect("the log").len(), size);

    limit_file_size(&sidecar, "unlimited");
    assert_eq!(await_audit_check(&sidecar, false).0, 200);
    session.terminate();
    log.wait("session_end", 3);
    stop_and_verify(&sidecar, &[&log.0]);
    // The queue had room, so that nothing is missing.
    let events = log.events();
    assert!(!events.contains(&"gap".to_owned()), "{events:?}");
    let count = |event: &str| events.iter().filter(|found| *found == event).count();
    assert_eq!((count("admission"), count("role_grant")), (3, 3));
    assert_eq!(grant["seq"], 3);
}

fn full_disk_with_required_log(fixture: &Fixture) {
    let log = Log::new(fixture);
    let settings = settings(fixture, &log).set("TEESQL_AUDIT_REQUIRED", "true");
    let sidecar = Sidecar::start(&settings);
    let mut session = fixture.session(&sidecar);
    log.wait("role_grant", 1);
    let size = fs::metadata(&log.0).expect("the log").len();
    limit_file_size(&sidecar, &size.to_string());
    // The first event that cannot be written shows it.
    drop(fixture.client(sidecar.address()));
    let (status, check) = await_audit_check(&sidecar, true);
    assert_eq!((status, &check["ready"]), (503, &Value::Bool(false)));
    let mut client = fixture.client(sidecar.address());
    client.send(&startup(PROTOCOL_3_0, &[("user", "teesql_read")]));
    let error = client.expect_fatal();
    assert_eq!(error.code, "57P03", "{error}");
    sidecar.await_reason("audit_unavailable");
    assert_eq!(session.query_value("select 1"), "1");
    limit_file_size(&sidecar, "unlimited");
    assert_eq!(await_audit_check(&sidecar, false).0, 200);
    fixture.session(&sidecar).terminate();
    session.terminate();
    stop_and_verify(&sidecar, &[&log.0]);
    let lines = log.lines();
    let refused = |line: &&Value| line["reason"] == "audit_unavailable";
    assert_eq!(lines.iter().filter(refused).count(), 1, "{lines:#?}");
}

fn garbage_is_counted(fixture: &Fixture) {
    const FLOOD: usize = 400;
    let log = Log::new(fixture);
    let sidecar = Sidecar::start(&settings(fixture, &log));
    for _ in 0..FLOOD {
        let mut stream = TcpStream::connect(sidecar.address()).expect("it accepts");
        stream
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("it reads");
    }
    let mut client = Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
    let refused = client.login("teesql_read", "via_scram", WRONG_SECRET);
    refused.expect_err("a wrong secret");
    let wrong = |line: &&Value| line["reason"] == "authentication_failed";
    poll_until(TIMEOUT, || log.lines().iter().find(wrong).map(drop)).expect("its line");
    let refused = || {
        let lines = log.lines();
        let garbage = lines.iter().filter(|line| line["reason"] == "garbage");
        let single = garbage
            .clone()
            .filter(|line| line["event"] == "refusal")
            .count();
        let counts = garbage.filter_map(|line| line["count"].as_u64());
        (single, counts.sum::<u64>())
    };
    let all = poll_until(TIMEOUT, || {
        let (single, counted) = refused();
        (single as u64 + counted == FLOOD as u64).then_some(single)
    });
    let single = all.unwrap_or_else(|| panic!("{:?}", refused()));
    assert!(single < FLOOD / 2, "{single} lines");
    stop_and_verify(&sidecar, &[&log.0]);
}

fn no_audit_log(fixture: &Fixture) {
    let log = Log::new(fixture);
    fs::write(&log.0, "something else\n").expect("a file");
    let sidecar = Sidecar::spawn(&settings(fixture, &log));
    assert_eq!(sidecar.await_exit().code(), Some(64));
    let text = sidecar.log_lines().join("\n");
    assert!(
        text.contains("does not end with a line of an audit log"),
        "{text}"
    );
    let required = fixture.settings().set("TEESQL_AUDIT_REQUIRED", "true");
    let sidecar = Sidecar::spawn(&required);
    assert_eq!(sidecar.await_exit().code(), Some(64));
    let text = sidecar.log_lines().join("\n");
    assert!(
        text.contains("audit_log: not set, but audit_required is"),
        "{text}"
    );
}
