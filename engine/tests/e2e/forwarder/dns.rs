//! A target by name.

use super::drivers::READER;
use crate::harness::forwarder::{Forwarder, Settings};
use crate::harness::name_server::NameServer;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::recording_server::{self as recorder, Recorder};
use crate::harness::suite::{Fixture, Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add_requiring(&[Requirement::Knot], "forward::dns::by_name", by_name);
    suite.add_requiring(&[Requirement::Knot], "forward::dns::failures", failures);
    suite.add_requiring(
        &[Requirement::Knot],
        "forward::dns::a_name_that_moves",
        moves,
    );
}

fn settings(
    tdx: &TdxFixture,
    fixture: &Fixture,
    dns: &NameServer,
    name: &str,
    port: u16,
) -> Settings {
    tdx.settings_to(fixture, format!("{name}:{port}"))
        .set("TEESQL_DNS_SERVER", &dns.address())
}

/// Of two addresses the first is dead.
fn by_name(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = crate::harness::sidecar::Sidecar::start(
        &tdx.sidecar_settings(fixture)
            .set("TEESQL_LISTEN", "127.0.0.1:0"),
    );
    let dns = NameServer::start("db A 127.0.0.1\ntwo A 127.0.0.9\ntwo A 127.0.0.1\n");
    for name in ["db.teesql.test", "two.teesql.test"] {
        let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns, name, sidecar.port()));
        for _ in 0..4 {
            assert_eq!(forwarder.ask(READER), "1\n");
        }
    }
    // The name, not the address, is the SNI.
    let config = recorder::config(&tdx.issue("s", &attest::mock::Evidence::default()));
    let server = Recorder::tls(move |_| config.clone());
    let settings = settings(
        &tdx,
        fixture,
        &dns,
        "db.teesql.test",
        server.address().port(),
    );
    let forwarder = Forwarder::start(&settings);
    let mut session = crate::harness::client::TcpClient::connect(forwarder.address());
    session.send(&crate::harness::message::startup(
        crate::harness::message::PROTOCOL_3_0,
        &[("user", "u")],
    ));
    session.expect_prefix(b"R");
    assert_eq!(server.names(), [(Some("db.teesql.test".to_owned()), false)]);
}

fn failures(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let mut dns = NameServer::start("db A 127.0.0.1\nempty TXT nothing\n");
    let refused = |forwarder: &Forwarder, code: &str, text: &str| {
        let said = forwarder.ask(READER);
        assert!(said.contains(&format!("FATAL:  {text}")), "{code}: {said}");
        forwarder.await_reason(code);
    };
    for (name, code, text) in [
        (
            "nobody.teesql.test",
            "no_address",
            "nobody.teesql.test has no address",
        ),
        (
            "empty.teesql.test",
            "no_address",
            "empty.teesql.test has no address",
        ),
        (
            "db.broken.test",
            "dns_failed",
            "cannot resolve db.broken.test: ",
        ),
        (
            "db.other.test",
            "dns_failed",
            "cannot resolve db.other.test: ",
        ),
    ] {
        refused(
            &Forwarder::start(&settings(&tdx, fixture, &dns, name, 5433)),
            code,
            text,
        );
    }
    let down = Forwarder::start(&settings(&tdx, fixture, &dns, "db.teesql.test", 5433));
    dns.freeze();
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| refused(&down, "dns_failed", "cannot resolve db.teesql.test: "));
        }
    });
    // One question for all who wait, or two; not eight in a row.
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(25), "{took:?}");
    dns.stop();
    refused(&down, "dns_failed", "cannot resolve db.teesql.test: ");
}

fn moves(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let mut dns = NameServer::start("db 300 A 127.0.0.1\n");
    let sidecar = crate::harness::sidecar::Sidecar::start(
        &tdx.sidecar_settings(fixture)
            .set("TEESQL_LISTEN", "127.0.0.1:0"),
    );
    let forwarder = Forwarder::start(&settings(
        &tdx,
        fixture,
        &dns,
        "db.teesql.test",
        sidecar.port(),
    ));
    assert_eq!(forwarder.ask(READER), "1\n");
    // Its TTL is not over, and it fails: asked again at once, not from memory.
    let port = sidecar.port();
    drop(sidecar);
    let elsewhere = tdx
        .sidecar_settings(fixture)
        .set("TEESQL_LISTEN", &format!("127.0.0.2:{port}"));
    let sidecar = crate::harness::sidecar::Sidecar::start(&elsewhere);
    dns.publish("db 1 A 127.0.0.2\n");
    assert_eq!(forwarder.ask(READER), "1\n");
    // Over after a second: followed without any failure.
    let here = tdx
        .sidecar_settings(fixture)
        .set("TEESQL_LISTEN", &format!("127.0.0.3:{port}"));
    let third = crate::harness::sidecar::Sidecar::start(&here);
    dns.publish("db 1 A 127.0.0.3\n");
    poll_until(TIMEOUT, || {
        assert_eq!(forwarder.ask(READER), "1\n");
        let ended = third
            .log_lines()
            .iter()
            .any(|line| line.contains("client_closed"));
        ended.then_some(())
    })
    .expect("the TTL is minded");
    drop(sidecar);
    // A name server that is down keeps nobody from a server that is up.
    dns.stop();
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(forwarder.ask(READER), "1\n");
    forwarder.await_log("it says so", |line| {
        line["message"] == "using the last address"
    });
}
