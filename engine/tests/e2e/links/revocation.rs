//! Links that end: a member that the policy names no more, and a drain.

use std::fs;
use std::io::Read;

use attest::mock::Evidence;
use nix::sys::signal::Signal;

use super::{answer, exchange, instance, members, raw_link, request};
use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, startup};
use crate::harness::scrape::await_scrape;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::unverified_tls;

pub(super) fn add(suite: &mut Suite) {
    suite.add("links::end_with_the_policy_and_the_drain", ends);
}

/// The next version of the application, as a member or as a client.
fn policy(tdx: &TdxFixture, keys: &str) -> String {
    let path = tdx.path("policy.toml");
    let text = format!(
        "[[os]]\nname = \"mock\"\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n\
         [[peer]]\nname = \"client\"\napp_id = \"{}\"\nos = \"mock\"\n\
         [[peer]]\nname = \"next version\"\napp_id = \"{}\"\nos = \"mock\"\n{keys}\n",
        "11".repeat(48),
        "21".repeat(48),
        "22".repeat(48),
        "a1".repeat(20),
        "a2".repeat(20),
    );
    fs::write(&path, text).expect("policy.toml");
    path
}

fn ends(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let path = policy(&tdx, "member = true");
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let a = a
        .set("TEESQL_POLICY_FILE", &path)
        .set("TEESQL_REVOCATION_GRACE", "off")
        .set("TEESQL_DRAIN_TIMEOUT", "1s");
    let (first, second) = (a.start(), b.start());
    let next = Evidence {
        app_id: vec![0xa2; 20],
        ..instance(b'n')
    };
    tdx.write_pem("next", &tdx.issue("next", &next));
    let mut link = raw_link(Some((&tdx, "next")), first.address());
    // Its name is not in the list: members may be added one after the other.
    link.send(&request(b"next", b"a", b"echo"));
    assert_eq!(answer(&mut link), Some(0));
    let mut kept = b.connect(0);
    exchange(&mut kept, b"hello").expect("an echo");
    let mut opened = a.connect(1);
    exchange(&mut opened, b"hello").expect("an echo");
    let mut client = unverified_tls::session(Some(&tdx), &first);
    // A member is no client unless its entry says so.
    let mut config = unverified_tls::config_of(Some((&tdx, "next")));
    config.alpn_protocols.clear();
    let login = Client::connect_with(config, first.address(), TlsNegotiation::Raw);
    let mut login = login.expect("TLS");
    let parameters = [("user", "teesql_read"), ("database", "via_scram")];
    login.send(&startup(PROTOCOL_3_0, &parameters));
    assert_eq!(login.expect_fatal().code, "28000");

    // The entry is a client's from now on.
    policy(&tdx, "");
    first.signal(Signal::SIGHUP);
    assert_eq!(answer(&mut link), None);
    let line = first.await_connection_end(link.local_address());
    assert_eq!(line["reason"], "app_not_allowed", "{line}");
    assert_eq!(line["message"], "link ended with an error", "{line}");
    let revoked = "teesql_links_ended_total{direction=\"accepted\",reason=\"attestation_revoked\"}";
    await_scrape(first.admin_address(), |scrape| scrape.value(revoked) == 1.0);
    let mut again = raw_link(Some((&tdx, "next")), first.address());
    assert_eq!(answer(&mut again), Some(2));
    // Members that prove what this one proves are listed nowhere, and stay.
    exchange(&mut kept, b"unharmed").expect("an echo");
    exchange(&mut opened, b"unharmed").expect("an echo");
    assert_eq!(client.query_value("select 1"), "1");

    first.signal(Signal::SIGTERM);
    first.await_message("drain timeout reached, terminating the remaining sessions");
    assert!(first.await_exit().success());
    for (link, direction) in [(&mut kept, "accepted"), (&mut opened, "opened")] {
        let end = link.read(&mut [0]).expect_err("no orderly end");
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        first.await_log("the end of a link", |line| {
            line["reason"] == "shutdown" && line["direction"] == direction
        });
    }
    second.assert_running();
}
