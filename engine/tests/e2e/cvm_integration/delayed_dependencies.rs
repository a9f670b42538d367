//! Tests with a guest agent or a Postgres that starts after the sidecar.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use attest::agent::STANDARD_SOCKETS;
use nix::sys::signal::Signal;

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::{ClusterOptions, unused_port};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::delayed_dependencies::waits_for_the_agent",
        waits_for_the_agent,
    );
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::delayed_dependencies::exits_on_signal_while_waiting",
            exits_on_signal,
        );
        suite.add(
            "cvm_integration::delayed_dependencies::waits_for_postgres",
            waits_for_postgres,
        );
    }
}

/// Spawns a sidecar on known ports and waits until it serves HTTP. Returns the address for clients
/// and that of the HTTP server.
fn spawn_waiting(settings: Settings) -> (Sidecar, SocketAddr, SocketAddr) {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (listen, admin) = (local(unused_port()), local(unused_port()));
    let settings = settings
        .set("TEESQL_LISTEN", &listen.to_string())
        .set("TEESQL_ADMIN_LISTEN", &admin.to_string());
    let sidecar = Sidecar::spawn(&settings);
    let up = poll_until(TIMEOUT, || TcpStream::connect(admin).ok());
    up.unwrap_or_else(|| panic!("no HTTP: {:?}", sidecar.log_lines()));
    (sidecar, listen, admin)
}

/// Clients are refused, not kept waiting, while none can be served.
fn assert_refuses_connections(listen: SocketAddr) {
    let refused = TcpStream::connect(listen).expect_err("a refused connection");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// A second sidecar cannot listen on the same address.
fn assert_address_in_use(settings: &Settings, listen: SocketAddr) {
    let second = settings.clone().set("TEESQL_LISTEN", &listen.to_string());
    let second = Sidecar::spawn(&second);
    assert_eq!(
        second.await_exit().code(),
        Some(71),
        "{:?}",
        second.log_lines()
    );
}

fn waits_for_the_agent(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx.agent_settings(fixture);
    let (sidecar, listen, admin) = spawn_waiting(settings.clone());
    let reason = http::await_unready(admin, "identity", "no guest agent");
    assert!(reason.contains(&tdx.path("dstack.sock")), "{reason}");
    assert_eq!(http::get(admin, "/health").status, 200);
    assert_eq!(http::get(admin, "/attestation").status, 503);
    assert_eq!(http::get(admin, "/metrics").status, 200);
    assert_refuses_connections(listen);
    // SIGHUP does not end it: the configuration is reloaded once it has started.
    sidecar.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(sidecar.is_running(), "{:?}", sidecar.log_lines());

    let _agent = tdx.start_agent();
    let line = sidecar.await_message("listening");
    assert_eq!(line["address"], listen.to_string());
    sidecar.await_log("the reload", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("configuration reloaded")
    });
    http::await_ready(admin);
    let config = tls::config(Some(&tdx));
    let opened = Client::connect_with(config, listen, TlsNegotiation::SslRequest);
    let mut client = opened.expect("TLS");
    client.login_reader();
    assert_address_in_use(&settings, listen);
    assert_eq!(client.query_value("select 1"), "1");
}

fn exits_on_signal(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // The standard sockets of dstack, which most machines do not have.
        let settings = tdx.agent_settings(fixture).without("TEESQL_GUEST_AGENT");
        let (sidecar, _, admin) = spawn_waiting(settings);
        if !STANDARD_SOCKETS.iter().any(|path| Path::new(path).exists()) {
            let reason = http::await_unready(admin, "identity", "no guest agent");
            for path in STANDARD_SOCKETS {
                assert!(reason.contains(path), "{reason}");
            }
        }
        let start = Instant::now();
        sidecar.signal(signal);
        let status = sidecar.await_exit();
        assert_eq!(
            status.code(),
            Some(0),
            "{signal}: {:?}",
            sidecar.log_lines()
        );
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{signal}: {took:?}");
    }
}

/// Provisioning waits for Postgres.
fn waits_for_postgres(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    cluster.stop(Signal::SIGINT);
    let settings = tdx
        .with_agent(fixture.settings_for(&cluster.address().to_string()))
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_PG_DATABASE", "via_scram");
    let (sidecar, listen, admin) = spawn_waiting(settings);
    http::await_unready(admin, "postgres", "cannot connect");
    let reasons = http::unready(admin);
    let identity_unready = reasons.iter().any(|(name, _)| name == "identity");
    assert!(
        !identity_unready,
        "the certificate is available: {reasons:?}"
    );
    assert_refuses_connections(listen);
    cluster.start();
    sidecar.await_message("listening");
    http::await_ready(admin);
}
