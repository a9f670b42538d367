//! A guest agent, or a Postgres, that is not there yet when the sidecar starts.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use attest::agent::STANDARD_SOCKETS;
use nix::sys::signal::Signal;

use super::TdxFixture;
use crate::harness::READ_SECRET;
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::{ClusterOptions, unused_port};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::{Settings, Sidecar};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::agent_comes_later", comes_later);
    if suite.is_last_driver() {
        suite.add("citizen::sigterm_while_waiting", sigterm);
        suite.add("citizen::postgres_comes_later", postgres_comes_later);
    }
}

/// Ports that are known before it listens.
fn waiting(settings: Settings) -> (Sidecar, SocketAddr, SocketAddr) {
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

/// Nobody is kept waiting where nobody could be answered.
fn assert_closed(listen: SocketAddr) {
    let refused = TcpStream::connect(listen).expect_err("a closed door");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// Where somebody listens already, nobody else may join in.
fn assert_taken(settings: &Settings, listen: SocketAddr) {
    let rival = settings.clone().set("TEESQL_LISTEN", &listen.to_string());
    let rival = Sidecar::spawn(&rival);
    assert_eq!(
        rival.await_exit().code(),
        Some(71),
        "{:?}",
        rival.log_lines()
    );
}

fn comes_later(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx.settings(fixture);
    let (sidecar, listen, admin) = waiting(settings.clone());
    let reason = http::await_unready(admin, "identity", "no guest agent");
    assert!(reason.contains(&tdx.path("dstack.sock")), "{reason}");
    assert_eq!(http::get(admin, "/health").status, 200);
    assert_eq!(http::get(admin, "/attestation").status, 503);
    assert_eq!(http::get(admin, "/metrics").status, 200);
    assert_closed(listen);
    // What would end it by default is obeyed when it can be.
    sidecar.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(sidecar.is_running(), "{:?}", sidecar.log_lines());

    let _agent = tdx.agent();
    let line = sidecar.await_log("listening", |line| line["message"] == "listening");
    assert_eq!(line["address"], listen.to_string());
    sidecar.await_log("the reload", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("configuration reloaded")
    });
    http::await_ready(admin);
    let config = tls::config(Some(&tdx));
    let opened = Client::open_with(config, listen, TlsNegotiation::SslRequest);
    let mut client = opened.expect("TLS");
    client
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("it serves");
    assert_taken(&settings, listen);
    assert_eq!(client.ask("select 1"), "1");
}

fn sigterm(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // In dstack's usual places: on a machine that has none of them.
        let settings = tdx.settings(fixture).without("TEESQL_GUEST_AGENT");
        let (sidecar, _, admin) = waiting(settings);
        if !STANDARD_SOCKETS.iter().any(|path| Path::new(path).exists()) {
            let reason = http::await_unready(admin, "identity", "no guest agent");
            for path in STANDARD_SOCKETS {
                assert!(reason.contains(path), "{reason}");
            }
        }
        let begun = Instant::now();
        sidecar.signal(signal);
        let status = sidecar.await_exit();
        assert_eq!(
            status.code(),
            Some(0),
            "{signal}: {:?}",
            sidecar.log_lines()
        );
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{signal}: {took:?}");
    }
}

/// Roles cannot be set up in a Postgres that is not there.
fn postgres_comes_later(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let options = ClusterOptions {
        databases: vec!["via_scram"],
        ..ClusterOptions::default()
    };
    let cluster = fixture
        .harness
        .private_cluster(&fixture.harness.installed, &options);
    cluster.stop(Signal::SIGINT);
    let settings = tdx
        .with_agent(fixture.settings_for(&cluster.address().to_string()))
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_PG_DATABASE", "via_scram");
    let (sidecar, listen, admin) = waiting(settings);
    http::await_unready(admin, "postgres", "cannot connect");
    let reasons = http::unready(admin);
    let of_identity = reasons.iter().any(|(name, _)| name == "identity");
    assert!(!of_identity, "the certificate is there: {reasons:?}");
    assert_closed(listen);
    cluster.start();
    sidecar.await_log("listening", |line| line["message"] == "listening");
    http::await_ready(admin);
}
