//! Tests of simulator mode: which clients need no password, and the defaults of its settings.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use crate::harness::client::{Client, TcpClient};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, startup};
use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, run, run_successfully};
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, SUPERUSER_PASSWORD, http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::simulator_mode::superuser_needs_no_password",
        superuser_needs_no_password,
    );
    suite.add(
        "cvm_integration::simulator_mode::trusts_local_connections_only",
        trusts_local_connections_only,
    );
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::simulator_mode::refuses_to_listen_beyond_loopback",
            refuses_to_listen_beyond_loopback,
        );
        suite.add(
            "cvm_integration::simulator_mode::attestation_ends_passwordless_logins",
            attestation_ends_passwordless_logins,
        );
        suite.add(
            "cvm_integration::simulator_mode::check_prints_its_defaults",
            check_prints_its_defaults,
        );
    }
}

/// The settings of a developer: none for attestation.
fn settings(tdx: &TdxFixture, fixture: &Fixture) -> Settings {
    tdx.agent_settings(fixture)
        .without("TEESQL_REQUIRE_CLIENT_ATTESTATION")
        .without("TEESQL_GUEST_AGENT")
        .without("TEESQL_PCCS")
        .without("TEESQL_DANGEROUS_TDX_ROOT_CA")
        .set("DSTACK_SIMULATOR_ENDPOINT", &tdx.path("dstack.sock"))
}

/// A psql that never prompts for a password.
fn psql(line: &str) -> Command {
    let mut psql = pdeathsig_command("psql", "KILL", None);
    psql.args(["-X", "-q", "-A", "-t", "-w", "-c", "select current_user"]);
    psql.arg(line).env_remove("PGPASSWORD");
    psql
}

fn superuser_needs_no_password(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let sidecar = Sidecar::start(&settings(&tdx, fixture));
    let address = sidecar.admin_address();
    let port = sidecar.port();
    let line = format!("host=localhost port={port} user=postgres sslmode=require dbname=postgres");
    assert_eq!(run_successfully(psql(&line), TIMEOUT), "postgres\n");
    let reader = format!("host=localhost port={port} user=teesql_read dbname=via_scram");
    let output = lossy(&run(psql(&reader), TIMEOUT).stderr);
    assert!(output.contains("no password supplied"), "{output}");
    let mut psql = psql(&reader);
    psql.env("PGPASSWORD", READ_SECRET);
    assert_eq!(run_successfully(psql, TIMEOUT), "teesql_read\n");

    let line = sidecar.await_message("listening");
    assert_eq!(line["mode"], "simulator");
    sidecar.await_log("a warning", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.starts_with("simulator mode: ")
    });
    for role in ["postgres", "teesql_read"] {
        let line = sidecar.await_log(role, |line| {
            line["role"] == role && line.get("reason").is_some()
        });
        assert_eq!(line["mode"], "simulator", "{line}");
    }
    http::await_ready(address);
    for target in ["/ready", "/attestation"] {
        let json = http::get(address, target).json();
        assert_eq!(json["mode"], "simulator", "{json}");
    }
}

/// Logs in as superuser, with a password request if `password` is set, and returns the user of the
/// session.
fn log_in_superuser(mut client: Client, password: Option<&str>) -> String {
    match password {
        None => {
            let start = [("user", "postgres"), ("database", "postgres")];
            client.send(&startup(PROTOCOL_3_0, &start));
            client
                .await_ready(Default::default())
                .expect("no password request");
        }
        Some(password) => {
            let login = client.login("postgres", "postgres", password);
            login.expect("the password is accepted");
        }
    }
    client.query_value("select current_user")
}

fn proxy_v2_header(rest: &[u8]) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n", rest].concat()
}

/// A connection with a PROXY header is not local, whatever the header says.
fn trusts_local_connections_only(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let settings = settings(&tdx, fixture).set("TEESQL_PROXY_PROTOCOL_FROM", "127.0.0.0/8");
    let sidecar = Sidecar::start(&settings);
    assert_eq!(
        log_in_superuser(tls::connect(None, &sidecar), None),
        "postgres"
    );
    let loopback = [127, 0, 0, 1, 127, 0, 0, 1, 0x9c, 0x40, 0x15, 0x39];
    for header in [
        b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 5433\r\n".to_vec(),
        b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 5433\r\n".to_vec(),
        b"PROXY TCP6 ::1 ::1 40000 5433\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        proxy_v2_header(&[0x20, 0x00, 0, 0]),
        proxy_v2_header(&[0x21, 0x00, 0, 0]),
        proxy_v2_header(&[&[0x21, 0x11, 0, 12], &loopback[..]].concat()),
    ] {
        let mut tcp = TcpClient::connect(sidecar.address());
        tcp.send(&header);
        let client = Client::handshake(tls::config(None), tcp).expect("TLS");
        let user = log_in_superuser(client, Some(SUPERUSER_PASSWORD));
        assert_eq!(user, "postgres", "{header:?}");
    }
    drop(sidecar);
    if let Some(address) = non_loopback_address() {
        requires_password_from(&settings.set("TEESQL_LISTEN", "0.0.0.0:0"), address);
    }
}

/// Simulator mode beyond loopback is refused until it is confirmed.
fn refuses_to_listen_beyond_loopback(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = settings(&tdx, fixture).set("TEESQL_LISTEN", "0.0.0.0:0");
    let output = run(settings.sidecar_command(&["serve"]), TIMEOUT);
    assert_eq!(output.status.code(), Some(64));
    let error = lossy(&output.stderr);
    assert!(
        error.contains("in simulator mode: clients from other machines"),
        "{error}"
    );
}

/// Where attestation was asked for, simulator mode does not open the role `postgres`.
fn attestation_ends_passwordless_logins(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let settings = tdx
        .agent_settings(fixture)
        .without("TEESQL_GUEST_AGENT")
        .set("DSTACK_SIMULATOR_ENDPOINT", &tdx.path("dstack.sock"));
    let sidecar = Sidecar::start(&settings);
    let client = tls::connect(Some(&tdx), &sidecar);
    assert_eq!(
        log_in_superuser(client, Some(SUPERUSER_PASSWORD)),
        "postgres"
    );
    let line = sidecar.await_message("listening");
    assert_eq!(line["mode"], "simulator");
    let log = sidecar.log_lines().join("\n");
    assert!(!log.contains("without a password"), "{log}");
}

/// On a listener beyond loopback every connection needs the password, also one from loopback.
fn requires_password_from(settings: &Settings, other: IpAddr) {
    let settings = settings
        .clone()
        .set("TEESQL_ALLOW_UNATTESTED_CLIENTS", "true");
    let sidecar = Sidecar::spawn(&settings);
    let line = sidecar.await_message("listening");
    let address = line["address"].as_str().expect("text");
    let address: SocketAddr = address.parse().expect("an address");
    for local in [other, IpAddr::from([127, 0, 0, 1])] {
        let stream = TcpStream::connect((local, address.port())).expect("the sidecar accepts");
        let stream = TcpClient::from_stream(stream);
        let client = Client::handshake(tls::config(None), stream).expect("TLS");
        let user = log_in_superuser(client, Some(SUPERUSER_PASSWORD));
        assert_eq!(user, "postgres", "{local}");
    }
}

/// An address of this machine that is not loopback, if there is one. Sends nothing.
fn non_loopback_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

fn check_prints_its_defaults(_: &Fixture) {
    // The settings without a default outside simulator mode.
    let secret = "11".repeat(32);
    let secrets = [
        ("TEESQL_READ_SECRET", secret.as_str()),
        ("TEESQL_READWRITE_SECRET", secret.as_str()),
    ];
    let check = |environment: &[(&str, &str)]| {
        let output = run(sidecar_command(&["check"], environment), TIMEOUT);
        let stdout = lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{stdout}");
        (stdout, lossy(&output.stderr))
    };
    let (out, err) = check(&[("DSTACK_SIMULATOR_ENDPOINT", "http://127.0.0.1:8090")]);
    for line in [
        "listen = 127.0.0.1:5433  # default in simulator mode",
        "admin_listen = 127.0.0.1:8080  # default in simulator mode",
        "require_client_attestation = false  # default in simulator mode",
        "plaintext_cancel = true  # default in simulator mode",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    assert!(err.contains("warning: simulator mode: "), "{err}");
    let (out, err) = check(&secrets);
    for line in [
        "listen = 0.0.0.0:5433  # default",
        "require_client_attestation = true  # default",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    assert!(!err.contains("simulator"), "{err}");
    assert!(!out.contains(&secret), "{out}");
}
