//! Tests of several targets: dead ones, the random order, and CancelRequests.

use std::thread;
use std::time::{Duration, Instant};

use super::lifecycle::Session;
use crate::harness::client::TcpClient;
use crate::harness::fake_server::{BlackHole, ClosedPort, FakeServer};
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::message;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::scrape::Scrape;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::several_targets::a_dead_server_delays_one_connection",
        dead_servers,
    );
    suite.add(
        "forwarder::several_targets::all_dead_servers_are_still_tried",
        all_dead,
    );
    suite.add(
        "forwarder::several_targets::random_order_and_cancel",
        random_order,
    );
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

fn dead_servers(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let (silent, closed) = (BlackHole::open(), ClosedPort::reserve());
    let [silent, closed, good] = [silent.address(), closed.address(), sidecar.address()];
    let targets = format!("{silent},{closed}, {good}");
    let settings = tdx
        .forwarder_settings_to(fixture, targets)
        .set("TEESQL_CONNECT_TIMEOUT", &format!("{CONNECT_TIMEOUT:?}"))
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let forwarder = Forwarder::start(&settings);
    let line = forwarder.await_message("serving HTTP");
    let admin = line["address"].as_str().expect("an address");
    let admin = admin.parse().expect("an address");

    let start = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| Session::open(&forwarder));
        // It is known to be slow after a second.
        thread::sleep(Duration::from_millis(1_500));
        Session::open(&forwarder).assert_responds();
        assert!(!first.is_finished(), "the black hole has answered");
        let mut first = first.join().expect("a session");
        let took = start.elapsed();
        assert!(took >= CONNECT_TIMEOUT, "{took:?}");
        assert!(took < CONNECT_TIMEOUT + TIMEOUT, "{took:?}");
        first.assert_responds();
    });
    // It has a penalty now.
    let start = Instant::now();
    for _ in 0..5 {
        Session::open(&forwarder).assert_responds();
    }
    let took = start.elapsed();
    assert!(took < CONNECT_TIMEOUT, "{took:?}");
    let scrape = Scrape::fetch(admin);
    let attempts = |labels: &str| {
        let series = format!("teesql_forward_target_attempts_total{{{labels}}}");
        scrape.value(&series)
    };
    let silent = attempts(r#"position="1",outcome="failed""#);
    assert!((silent - 1.0).abs() < 0.5, "{silent}");
    assert!(attempts(r#"position="2",outcome="failed""#) >= 1.0);
    let good = attempts(r#"position="3",outcome="connected""#);
    assert!((good - 7.0).abs() < 0.5, "{good}");
}

fn all_dead(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let closed = [(); 2].map(|()| ClosedPort::reserve());
    let targets = closed.each_ref().map(|port| port.address().to_string());
    let settings = tdx.forwarder_settings_to(fixture, targets.join(","));
    let forwarder = Forwarder::start(&settings);
    for attempt in 1..=3 {
        let error = forwarder.open("u").read_final_message().error();
        assert_eq!(error.code, "08001", "{error}");
        forwarder.await_messages("cannot use a server: trying the next one", attempt);
    }
}

/// A CancelRequest does not say which server its session is with.
fn random_order(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let servers = [(); 2].map(|()| FakeServer::proxy_to(sidecar.address()));
    let targets = servers
        .each_ref()
        .map(|server| server.address().to_string());
    let settings = tdx
        .forwarder_settings_to(fixture, targets.join(","))
        .set("TEESQL_LOAD_BALANCE_HOSTS", "random");
    let forwarder = Forwarder::start(&settings);
    let mut sessions = Vec::new();
    poll_until(TIMEOUT, || {
        sessions.push(Session::open(&forwarder));
        let used = servers.iter().all(|server| server.accepted() > 0);
        used.then_some(())
    })
    .expect("both servers are used");
    let accepted = || servers.each_ref().map(FakeServer::accepted);
    let before = accepted();
    let mut cancel = TcpClient::connect(forwarder.address());
    cancel.send(&message::cancel(1, &[0; 4]));
    assert_eq!(cancel.read_to_end(), b"");
    forwarder.await_reason("cancel_forwarded");
    assert_eq!(accepted(), before.map(|count| count + 1));
    for session in &mut sessions {
        session.assert_responds();
    }
}
