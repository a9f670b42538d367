//! `teesql-sidecar sessions` and `kill` over the control socket of a running sidecar, and the socket itself.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use attest::mock::{Certificate, Evidence};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::attestation_gate::connect;
use crate::audit::Log;
use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::message;
use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, poll_until, postgres_user, run, run_for_both_outputs,
};
use crate::harness::scrape::await_scrape;
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    // The shards answer a message, and the control thread does the rest.
    if !suite.adds_driver_independent() {
        return;
    }
    suite.add(
        "sessions::operators_list_and_end_connections",
        list_and_kill,
    );
    suite.add(
        "sessions::the_control_socket_is_private_and_limited",
        socket,
    );
}

/// Runs a command at the control socket of the settings.
fn ask(settings: &Settings, arguments: &[&str]) -> Output {
    let socket = settings.get("TEESQL_CONTROL_SOCKET");
    let environment = [("TEESQL_CONTROL_SOCKET", socket.as_str())];
    run(sidecar_command(arguments, &environment), TIMEOUT)
}

/// All connections, as `sessions --json` prints them.
pub(crate) fn list(settings: &Settings) -> Vec<Value> {
    let output = ask(settings, &["sessions", "--json"]);
    assert!(output.status.success(), "{}", lossy(&output.stderr));
    let text = lossy(&output.stdout);
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("JSON lines")
}

/// The connection from this client, once `wanted` accepts it.
fn find(settings: &Settings, client: &Client, wanted: impl Fn(&Value) -> bool) -> Value {
    let address = client.local_address().to_string();
    let mut last = Value::Null;
    poll_until(TIMEOUT, || {
        let mut all = list(settings).into_iter();
        last = all.find(|one| one["address"] == address.as_str())?;
        wanted(&last).then_some(())
    })
    .unwrap_or_else(|| panic!("{address} was never as expected: {last:#}"));
    last
}

fn id(connection: &Value) -> String {
    connection["id"].to_string()
}

fn application(byte: u8) -> Evidence {
    Evidence {
        app_id: vec![byte; 20],
        ..Evidence::default()
    }
}

fn session(fixture: &Fixture, sidecar: &Sidecar, certificate: &Certificate) -> Client {
    let mut client = connect(fixture, sidecar, certificate);
    client.login_reader();
    client
}

fn expect_killed(client: &mut Client) {
    let error = client.expect_fatal();
    assert_eq!(error.code, "57P01", "{error}");
    let text = "terminating connection due to administrator command";
    assert_eq!(error.message, text);
}

/// Starts a sidecar and waits for its control socket, which it opens after it listens.
fn start(settings: &Settings) -> Sidecar {
    let sidecar = Sidecar::start(settings);
    let path = settings.get("TEESQL_CONTROL_SOCKET");
    poll_until(TIMEOUT, || Path::new(&path).exists().then_some(())).expect("a control socket");
    sidecar
}

fn list_and_kill(fixture: &Fixture) {
    let (tdx, log) = (TdxFixture::new(), Log::new(fixture));
    let settings = with_socket(fixture, tdx.production_settings(fixture))
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_AUDIT_LOG", log.path());
    let sidecar = start(&settings);
    assert!(list(&settings).is_empty());
    let [orders, billing] = [0xa1, 0xb2].map(|byte| tdx.issue("client", &application(byte)));
    let mut first = session(fixture, &sidecar, &orders);
    let mut second = session(fixture, &sidecar, &orders);
    let mut other = session(fixture, &sidecar, &billing);

    assert_eq!(first.query_value("select 1"), "1");
    let shown = find(&settings, &first, |one| one["state"] == "idle");
    let leaf = Sha256::digest(orders.chain_der()[0]);
    for (key, value) in [
        ("kind", "client"),
        ("app_id", &"a1".repeat(20)),
        ("certificate", &format!("{leaf:x}")),
        ("role", "teesql_read"),
        ("database", "via_scram"),
        ("tcb_status", "UpToDate"),
    ] {
        assert_eq!(shown[key], value, "{shown:#}");
    }
    assert!(shown["instance_id"].is_string() && shown["since"].is_string());
    assert!(shown["received"].as_u64() > Some(0) && shown["sent"].as_u64() > Some(0));
    let grants = log.lines();
    let address = first.local_address().to_string();
    let grant = grants
        .iter()
        .find(|line| line["event"] == "role_grant" && line["address"] == address.as_str());
    assert_eq!(grant.expect("a line")["connection"], shown["id"]);

    // A client that waits for its answer is active, however long it takes.
    second.send(&message::query("select pg_sleep(600)"));
    let waiting = find(&settings, &second, |one| {
        one["state"] == "active" && one["idle_ms"].as_u64() > Some(1_500)
    });
    let table = lossy(&ask(&settings, &["sessions", "--peer", &"a1".repeat(20)]).stdout);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table
            .lines()
            .next()
            .is_some_and(|line| line.contains("APP ID"))
    );

    // A connection that is not of the named peer stays.
    let b2 = "b2".repeat(20);
    let refused = ask(&settings, &["kill", &id(&shown), "--peer", &b2]);
    assert_eq!(refused.status.code(), Some(1), "{}", lossy(&refused.stderr));
    assert_eq!(first.query_value("select 1"), "1");
    let ended = ask(&settings, &["kill", &id(&shown), &id(&waiting)]);
    assert_eq!(ended.status.code(), Some(0), "{}", lossy(&ended.stderr));
    assert_eq!(lossy(&ended.stdout).lines().count(), 3);
    expect_killed(&mut first);
    expect_killed(&mut second);
    let again = ask(&settings, &["kill", &id(&shown)]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(other.query_value("select 1"), "1");
    let ended = ask(&settings, &["kill", "--peer", &b2, "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{}", lossy(&ended.stderr));
    expect_killed(&mut other);
    check_records(&sidecar, &log, &shown);
    poll_until(TIMEOUT, || list(&settings).is_empty().then_some(())).expect("no connections");
}

/// Each of the four requests has a line in the audit log, and each session its end.
fn check_records(sidecar: &Sidecar, log: &Log, first: &Value) {
    let last = log.wait("kill", 4);
    assert_eq!(last["app_id"], "b2".repeat(20), "{last}");
    assert_eq!(last["connections"], Value::Null, "{last}");
    assert_eq!(last["uid"], Uid::effective().as_raw(), "{last}");
    assert!(last["pid"].as_u64() > Some(1), "{last}");
    log.wait("session_end", 3);
    let lines = log.lines();
    let of = |event: &str| {
        let found = lines.iter().filter(|line| line["event"] == event);
        found.cloned().collect::<Vec<_>>()
    };
    let counts: Vec<_> = of("kill")
        .iter()
        .map(|line| line["sessions"].clone())
        .collect();
    assert_eq!(counts, [0, 2, 0, 1]);
    assert_eq!(of("kill")[1]["connections"][0], first["id"]);
    for end in of("session_end") {
        assert_eq!(end["reason"], "killed", "{end}");
    }
    assert_eq!(sidecar.await_reason("killed")["level"], "INFO");
    let ended = "teesql_sessions_ended_total{reason=\"killed\"}";
    await_scrape(sidecar.admin_address(), |scrape| scrape.value(ended) == 3.0);
}

fn with_socket(fixture: &Fixture, settings: Settings) -> Settings {
    let path = fixture.harness.unique_path("control");
    settings.set("TEESQL_CONTROL_SOCKET", path.to_str().expect("UTF-8"))
}

/// Sends bytes to the socket and reads the answer.
fn exchange(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).expect("the sidecar listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    // What is too long is not read to its end.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn socket(fixture: &Fixture) {
    let settings = with_socket(fixture, fixture.settings());
    let socket = settings.get("TEESQL_CONTROL_SOCKET");
    let path = Path::new(&socket);
    let missing = ask(&settings, &["sessions"]);
    assert_eq!(
        missing.status.code(),
        Some(69),
        "{}",
        lossy(&missing.stderr)
    );
    let sidecar = start(&settings);
    let mode = || path.metadata().expect("the socket").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    for request in [
        &b""[..],
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"command\":\"stop\"}\n",
        b"\xff\xff\n",
    ] {
        let answer = exchange(path, request);
        assert!(answer.starts_with("{\"error\":"), "{answer:?}");
    }
    // The rest of a request that is too long is not read, which may reset the answer.
    for byte in [b'x', b'['] {
        let answer = exchange(path, &[byte; 100_000]);
        assert!(!answer.contains("done"), "{answer:?}");
    }
    // Clients that send nothing occupy all 4 requests for 2 s, and no longer.
    let silent: Vec<_> = (0..8).map(|_| UnixStream::connect(path)).collect();
    assert!(list(&settings).is_empty());
    drop(silent);
    if let Some(user) = postgres_user() {
        other_user_is_refused(path, &user);
        other_user_delays_nobody(&settings, &user);
    }
    // A second sidecar must not take the socket.
    let second = Sidecar::spawn(&settings);
    assert_eq!(second.await_exit().code(), Some(71));
    assert!(list(&settings).is_empty());
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.await_exit().code(), Some(0));
    assert!(!path.exists());
}

/// By the file's mode, and by SO_PEERCRED if the mode was changed.
fn other_user_is_refused(path: &Path, user: &User) {
    const ASK: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(30)
s.connect(sys.argv[1])
s.sendall(b'{\"command\":\"sessions\"}\\n')
print(s.makefile().read())";
    let ask = || {
        // The first one in the path may be in a home directory.
        let mut python = pdeathsig_command("/usr/bin/python3", "KILL", Some(user));
        python.args(["-c", ASK]).arg(path);
        run_for_both_outputs(python, TIMEOUT)
    };
    let output = ask();
    assert!(output.contains("PermissionError"), "{output}");
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(path, open).expect("permissions");
    let output = ask();
    let refused = output.contains("only root and the sidecar's own user");
    assert!(refused, "{output}");
    assert!(!output.contains("done"), "{output}");
}

/// The mode of the socket was changed: connections of another user must not take the places of operators.
fn other_user_delays_nobody(settings: &Settings, user: &User) {
    const SILENT: &str = "import socket, sys
all = [socket.socket(socket.AF_UNIX) for _ in range(12)]
for s in all:
    s.connect(sys.argv[1])
print('connected', flush=True)
sys.stdin.read()";
    let mut python = pdeathsig_command("/usr/bin/python3", "KILL", Some(user));
    python
        .args(["-c", SILENT, &settings.get("TEESQL_CONTROL_SOCKET")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut silent = python.spawn().expect("python3 starts");
    let mut line = String::new();
    let output = silent.stdout.take().expect("its output");
    BufReader::new(output)
        .read_line(&mut line)
        .expect("a line of its output");
    assert_eq!(line, "connected\n");
    let asked = Instant::now();
    assert!(list(settings).is_empty());
    // With 4 places, each occupied for 2 s, it would take 6 s.
    assert!(asked.elapsed() < Duration::from_secs(4));
    drop(silent.stdin.take());
    silent.wait().expect("its end");
}
