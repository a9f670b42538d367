//! Tests of what other processes can learn about a running sidecar or forwarder: the environment block, core files,
//! `/proc`; and of the launch token.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::unused_port;
use crate::harness::daemon::Daemon;
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, poll_until, postgres_user, run, with_limit, write_private,
};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, READWRITE_SECRET, unverified_tls as tls};

pub(crate) fn add(suite: &mut Suite) {
    if !suite.adds_driver_independent() {
        return;
    }
    suite.add(
        "hardening::sidecar_hides_its_memory",
        sidecar_hides_its_memory,
    );
    suite.add(
        "hardening::forwarder_hides_its_memory",
        forwarder_hides_its_memory,
    );
    suite.add(
        "hardening::forwarder_keeps_its_secrets_from_the_command",
        forwarder_keeps_its_secrets,
    );
    suite.add("hardening::runs_as_another_user", runs_as_another_user);
    suite.add("hardening::refuses_exposed_files", refuses_exposed_files);
    suite.add("hardening::launch_token", launch_token);
}

/// The same command with an unlimited size of core files.
fn with_core_files(command: &Command) -> Command {
    with_limit(command, "--core=unlimited:unlimited")
}

/// The environment block of `daemon` has no `secret`. Only root can read it, and not everywhere.
fn assert_not_in_environment(daemon: &Daemon, secret: &str) {
    let block = fs::read(format!("/proc/{}/environ", daemon.pid()));
    let block = block.map(|block| lossy(&block)).unwrap_or_default();
    assert!(!block.contains(secret), "{block}");
}

/// The process may not write core files, and a fatal signal writes none.
fn assert_no_core_file(daemon: &Daemon) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("it runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let fields: Vec<_> = line.expect("a limit").split_whitespace().collect();
    assert_eq!(fields[4..6], ["0", "0"], "{fields:?}");
    daemon.signal(Signal::SIGABRT);
    let status = daemon.await_exit();
    assert_eq!(status.signal(), Some(6), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

fn sidecar_hides_its_memory(fixture: &Fixture) {
    let command = fixture.settings().sidecar_command(&["serve"]);
    let daemon = Daemon::spawn("teesql-sidecar", with_core_files(&command));
    let listening = daemon.await_message("listening");
    for secret in [READ_SECRET, READWRITE_SECRET] {
        assert_not_in_environment(&daemon, secret);
    }
    // A reload still finds the secrets.
    daemon.signal(Signal::SIGHUP);
    daemon.await_message("configuration reloaded");
    let address = listening["address"].as_str().expect("text");
    let address = address.parse().expect("an address");
    let mut client =
        Client::connect_with(tls::config(None), address, TlsNegotiation::Raw).expect("TLS");
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("a session");
    assert_no_core_file(&daemon);
}

fn forwarder_hides_its_memory(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .forwarder_settings(fixture)
        .set("DATABASE_URL", "postgresql://u:5ec2e7-5ec2e7@127.0.0.1:1/d");
    let command = settings.forwarder_command(&[]);
    let (daemon, _) = Daemon::spawn_with_first_line("teesql-forward", with_core_files(&command));
    assert_not_in_environment(&daemon, "5ec2e7-5ec2e7");
    assert_no_core_file(&daemon);
}

/// A command gets the variables that other programs use too, and not the forwarder's own secrets.
fn forwarder_keeps_its_secrets(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .forwarder_settings(fixture)
        .set(
            "TEESQL_DATABASE_URL",
            "postgresql://u:5ec2e7-5ec2e7@127.0.0.1:1/d",
        )
        .set("INTEL_TRUST_AUTHORITY_API_KEY", "aW50ZWwta2V5");
    let output = run(settings.forwarder_command(&["--", "env"]), TIMEOUT);
    let environment = lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", lossy(&output.stderr));
    let has = |line: &str| environment.lines().any(|found| found == line);
    assert!(
        has("INTEL_TRUST_AUTHORITY_API_KEY=aW50ZWwta2V5"),
        "{environment}"
    );
    assert!(has("PGPASSWORD=5ec2e7-5ec2e7"), "{environment}");
    assert!(
        !environment.contains("TEESQL_DATABASE_URL"),
        "{environment}"
    );
}

/// A process that is not dumpable cannot read all of its own files in `/proc`. It starts all the same, and its metrics are
/// complete.
fn runs_as_another_user(fixture: &Fixture) {
    let port = unused_port();
    let admin = ([127, 0, 0, 1], port).into();
    let settings = fixture
        .settings()
        .without("TEESQL_TLS_CERT")
        .without("TEESQL_TLS_KEY")
        .set("TEESQL_GUEST_AGENT", "/nonexistent/dstack.sock")
        .set("TEESQL_ADMIN_LISTEN", &format!("127.0.0.1:{port}"));
    let user = postgres_user();
    let command = settings.sidecar_command(&["serve"]);
    let program = command.get_args().nth(3).expect("setpriv's command");
    let mut other = pdeathsig_command(program, "KILL", user.as_ref());
    other.arg("serve").env_clear();
    let variables = command.get_envs();
    other.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    let daemon = Daemon::spawn("teesql-sidecar", other);
    let up = || std::net::TcpStream::connect(admin).ok();
    poll_until(TIMEOUT, up).expect("it serves HTTP");
    let proc = format!("/proc/{}", daemon.pid());
    let status = fs::metadata(format!("{proc}/environ")).expect("it runs");
    assert_eq!(status.uid(), 0, "{proc}/environ belongs to root");
    assert_not_in_environment(&daemon, READ_SECRET);
    let metrics = http::get(admin, "/metrics").body;
    for name in [
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
    ] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{name}: {line:?}");
    }
}

fn refuses_exposed_files(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let (cert, key) = tdx.write_pem("server", &tdx.issue("server", &Default::default()));
    let settings = fixture
        .settings()
        .set("TEESQL_TLS_CERT", &cert)
        .set("TEESQL_TLS_KEY", &key);
    let set_mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("permissions");
    };
    set_mode(0o644);
    let output = run(settings.sidecar_command(&["serve"]), TIMEOUT);
    assert_eq!(output.status.code(), Some(64));
    let error = lossy(&output.stderr);
    assert!(
        error.contains("server.key") && error.contains("it has the mode 0644"),
        "{error}"
    );
    set_mode(0o600);
    Sidecar::start(&settings);
}

fn launch_token(fixture: &Fixture) {
    let token = "0123456789abcdef0123456789abcdef";
    let digest = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";
    let settings = fixture.settings().set("TEESQL_LAUNCH_TOKEN_SHA256", digest);
    let refused = |settings: &crate::harness::settings::Settings, expected: &str| {
        let output = run(settings.sidecar_command(&["serve"]), TIMEOUT);
        assert_eq!(output.status.code(), Some(64));
        let error = lossy(&output.stderr);
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("76543210"), "{error}");
    };
    refused(&settings, "launch_token: not set");
    let forged = "76543210".repeat(4);
    let wrong = settings.clone().set("TEESQL_LAUNCH_TOKEN", &forged);
    refused(
        &wrong,
        "launch_token: its SHA-256 is not launch_token_sha256",
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    write_private(&file, token);
    let right = settings.set("TEESQL_LAUNCH_TOKEN_FILE", file.to_str().expect("UTF-8"));
    let sidecar = Sidecar::start(&right);
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration reloaded");
}
