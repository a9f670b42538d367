//! Tests of `--follow`: sessions with the old leader end when the new one answers.

use attest::manifest::UnsignedManifest;
use attest::mock::Evidence;

use super::leader_manifest::{draft, settings, signed};
use super::lifecycle::Session;
use crate::harness::fake_server::{ClosedPort, FakeServer};
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::name_server::NameServer;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;

impl Session {
    fn expect_leader_change(mut self) {
        let error = self.0.read_final_message().error();
        assert_eq!(error.code, "57P01", "{error}");
        let text = "terminating connection: the cluster has a new leader";
        assert_eq!(error.message, text);
    }
}

pub(crate) fn add(suite: &mut Suite) {
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::follow::ends_sessions_with_the_old_leader",
        ends_sessions,
    );
}

fn ends_sessions(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let first = tdx.start_attested_sidecar(fixture);
    let other_instance = Evidence {
        instance_id: vec![0xb0; 20],
        ..Evidence::default()
    };
    let (cert, key) = tdx.write_pem("second", &tdx.issue("second", &other_instance));
    let of_second = tdx
        .attested_sidecar_settings(fixture)
        .set("TEESQL_TLS_CERT", &cert)
        .set("TEESQL_TLS_KEY", &key);
    let second = Sidecar::start(&of_second);
    let dns = NameServer::start(&signed(&draft(first.port(), 1)));
    let settings = settings(&tdx, fixture, &dns)
        .set("TEESQL_FOLLOW", "true")
        .set("TEESQL_SHARDS", "2");
    let forwarder = Forwarder::start(&settings);
    let mut old = [(); 4].map(|()| Session::open(&forwarder));

    let second_leads = |port, epoch| {
        signed(&UnsignedManifest {
            leader_instance: "b0".repeat(20).parse().expect("an instance"),
            ..draft(port, epoch)
        })
    };
    // The new leader does not run yet.
    let closed = ClosedPort::reserve();
    dns.publish(&second_leads(closed.address().port(), 2));
    let line = forwarder
        .await_message("the new leader cannot be used yet: sessions stay with the old one");
    assert_eq!(line["reason"], "server_unreachable", "{line}");
    for session in &mut old {
        session.assert_responds();
    }
    // Nor is it the instance that the manifest names.
    dns.publish(&second_leads(first.port(), 3));
    let is_mismatch = |line: &serde_json::Value| line["reason"] == "leader_mismatch";
    forwarder.await_log("leader_mismatch", is_mismatch);
    for session in &mut old {
        session.assert_responds();
    }

    dns.publish(&second_leads(second.port(), 4));
    for session in old {
        session.expect_leader_change();
    }
    forwarder.await_reason("leader_changed");
    let mut new = Session::open(&forwarder);
    new.assert_responds();

    // The same leader at another address. No connection begins, so that it is the watch that finds it.
    let moved = FakeServer::proxy_to(second.address());
    dns.publish(&second_leads(moved.address().port(), 5));
    let name = |port: u16| format!("leader.teesql.test:{port}");
    let moved = name(moved.address().port());
    forwarder.await_log("the new address", |line| {
        line["message"] == "server found" && line["server"] == moved.as_str()
    });
    // The shards handle what they are told in order: with the next leader they are done with that one.
    dns.publish(&signed(&draft(first.port(), 6)));
    new.expect_leader_change();
    let ends_for = |leader: String| {
        move |line: &serde_json::Value| line["message"] == ENDING && line["leader"] == *leader
    };
    // A line is written after what it tells of has happened.
    forwarder.await_log("the next leader", ends_for(name(first.port())));
    let lines = forwarder.log_lines();
    let mut lines = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok());
    let ended_for_moved = lines.any(|line| ends_for(moved.clone())(&line));
    assert!(!ended_for_moved, "the same instance is the same leader");
}

const ENDING: &str = "the cluster has a new leader, ending the sessions with the old one";
