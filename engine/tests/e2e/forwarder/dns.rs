//! Tests of targets that are DNS names: resolution, failures, changed addresses.

use std::time::{Duration, Instant};

use attest::mock::Evidence;

use crate::harness::READER;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::name_server::{NameServer, PartialNameServer};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::recording_server::RecordingServer;
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::dns::works_with_name_servers_that_drop_queries",
        drops_queries,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::dns::resolves_names",
        resolves_names,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::dns::reports_failures",
        failures,
    );
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::dns::follows_changed_addresses",
        follows_changed_addresses,
    );
}

fn settings(
    tdx: &TdxFixture,
    fixture: &Fixture,
    dns: &NameServer,
    name: &str,
    port: u16,
) -> Settings {
    tdx.forwarder_settings_to(fixture, format!("{name}:{port}"))
        .set("TEESQL_DNS_SERVER", &dns.address())
}

/// Names with one address, and with two of which the first refuses connections.
fn resolves_names(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.attested_sidecar_settings(fixture));
    let dns = NameServer::start("db A 127.0.0.1\ntwo A 127.0.0.9\ntwo A 127.0.0.1\n");
    for name in ["db.teesql.test", "two.teesql.test"] {
        let forwarder = Forwarder::start(&settings(&tdx, fixture, &dns, name, sidecar.port()));
        for _ in 0..4 {
            forwarder.assert_reader_connects();
        }
    }
    // The SNI is the name.
    let server = RecordingServer::with_certificate(&tdx.issue("s", &Evidence::default()));
    let settings = settings(
        &tdx,
        fixture,
        &dns,
        "db.teesql.test",
        server.address().port(),
    );
    let forwarder = Forwarder::start(&settings);
    forwarder.open("u").expect_prefix(b"R");
    assert_eq!(
        server.server_names(),
        [(Some("db.teesql.test".to_owned()), false)]
    );
}

/// Name servers without EDNS, and those that never answer AAAA.
fn drops_queries(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.attested_sidecar_settings(fixture));
    for (drops_edns, drops_aaaa) in [(true, false), (false, true), (true, true)] {
        let dns = PartialNameServer::start(drops_edns, drops_aaaa);
        let settings = tdx
            .forwarder_settings_to(fixture, format!("db.teesql.test:{}", sidecar.port()))
            .set("TEESQL_DNS_SERVER", &dns.address());
        let forwarder = Forwarder::start(&settings);
        forwarder.assert_reader_connects();
        // The TTL is over: the forwarder remembers that EDNS does not work.
        std::thread::sleep(Duration::from_millis(1_100));
        let before = dns.edns_queries();
        forwarder.assert_reader_connects();
        let asked = dns.edns_queries() > before;
        assert_eq!(asked, !drops_edns);
    }
}

fn failures(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let mut dns = NameServer::start("db A 127.0.0.1\nempty TXT nothing\n");
    let refused = |forwarder: &Forwarder, code: &str, text: &str| {
        let output = forwarder.psql_select_1(READER);
        assert!(
            output.contains(&format!("FATAL:  {text}")),
            "{code}: {output}"
        );
        forwarder.await_reason(code);
    };
    for (name, code, text) in [
        (
            "missing.teesql.test",
            "no_address",
            "missing.teesql.test has no address",
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
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| refused(&down, "dns_failed", "cannot resolve db.teesql.test: "));
        }
    });
    // All connections share one lookup or two; eight in sequence would take longer.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    dns.stop();
    refused(&down, "dns_failed", "cannot resolve db.teesql.test: ");
}

fn follows_changed_addresses(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let mut dns = NameServer::start("db 300 A 127.0.0.1\n");
    let sidecar = Sidecar::start(&tdx.attested_sidecar_settings(fixture));
    let forwarder = Forwarder::start(&settings(
        &tdx,
        fixture,
        &dns,
        "db.teesql.test",
        sidecar.port(),
    ));
    forwarder.assert_reader_connects();
    // The TTL has not expired, but the connection fails: the forwarder resolves the name again.
    let port = sidecar.port();
    drop(sidecar);
    let elsewhere = tdx
        .attested_sidecar_settings(fixture)
        .set("TEESQL_LISTEN", &format!("127.0.0.2:{port}"));
    let sidecar = Sidecar::start(&elsewhere);
    dns.publish("db 1 A 127.0.0.2\n");
    forwarder.assert_reader_connects();
    // The TTL expires after a second: the forwarder follows without a failed connection.
    let here = tdx
        .attested_sidecar_settings(fixture)
        .set("TEESQL_LISTEN", &format!("127.0.0.3:{port}"));
    let third = Sidecar::start(&here);
    dns.publish("db 1 A 127.0.0.3\n");
    poll_until(TIMEOUT, || {
        forwarder.assert_reader_connects();
        let ended = third
            .log_lines()
            .iter()
            .any(|line| line.contains("client_closed"));
        ended.then_some(())
    })
    .expect("the forwarder respects the TTL");
    drop(sidecar);
    // While the name server is down, the forwarder uses the last address.
    dns.stop();
    std::thread::sleep(Duration::from_millis(1200));
    forwarder.assert_reader_connects();
    forwarder.await_message("cannot query the name server, using the last known address");
}
