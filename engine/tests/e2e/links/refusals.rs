//! Peers and requests that are refused. A member's link and a client's session go on meanwhile. Names that belong to
//! another VM are in `names.rs`.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use attest::mock::Evidence;

use super::{answer, exchange, instance, members, raw_link, request};
use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::unverified_tls;

pub(super) fn add(suite: &mut Suite) {
    suite.add("links::refuse_other_peers_and_bad_requests", refusals);
    suite.add("links::are_limited", limit);
    suite.add("links::need_their_ports_and_the_right_member", wrong_ends);
}

/// Sends `bytes` on a new link, whose refusal both sides must name alike.
pub(super) fn refused(link: &mut Client, member: &Sidecar, bytes: &[u8], expected: u8, code: &str) {
    if !bytes.is_empty() {
        link.send(bytes);
    }
    assert_eq!(answer(link), Some(expected), "{code}");
    assert_eq!(answer(link), None, "{code}: closed");
    let line = member.await_connection_end(link.local_address());
    assert_eq!(line["reason"], code, "{line}");
    assert_eq!(line["kind"], "link", "{line}");
}

fn refusals(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let a = a.set("TEESQL_LOGIN_TIMEOUT", "5s");
    let (first, _second) = (a.start(), b.start());
    let mut kept = b.connect(0);
    exchange(&mut kept, b"hello").expect("an echo");
    let mut client = unverified_tls::session(Some(&tdx), &first);

    // Another application, which may log in here as a client.
    let other = Evidence {
        app_id: vec![0xa2; 20],
        ..instance(b'o')
    };
    tdx.write_pem("other", &tdx.issue("other", &other));
    let mut link = raw_link(Some((&tdx, "other")), first.address());
    // It learns nothing about services: the answer comes before the request.
    refused(&mut link, &first, b"", 2, "link_not_a_member");
    let mut link = raw_link(None, first.address());
    refused(&mut link, &first, b"", 2, "no_certificate");

    // Members, with requests that are refused. Lines of one kind are limited, so each request has a different reason.
    let as_member = || raw_link(Some((&tdx, "b")), first.address());
    let unknown = request(b"b", b"a", b"sshd");
    refused(
        &mut as_member(),
        &first,
        &unknown,
        1,
        "link_unknown_service",
    );
    // As soon as the length was read.
    let code = "link_invalid_service_name";
    refused(&mut as_member(), &first, b"\x01b\x01a\x21", 1, code);
    let code = "link_invalid_member_name";
    refused(&mut as_member(), &first, &[64], 1, code);
    let other = request(b"b", b"c", b"echo");
    refused(&mut as_member(), &first, &other, 7, "link_wrong_member");
    let down = request(b"b", b"a", b"missing");
    refused(
        &mut as_member(),
        &first,
        &down,
        3,
        "link_service_unreachable",
    );
    slow_request(&mut as_member(), &first);
    let mut link = as_member();
    link.send(&request(b"b", b"a", b"echo"));
    assert_eq!(answer(&mut link), Some(0));

    exchange(&mut kept, b"unharmed").expect("an echo");
    assert_eq!(client.query_value("select 1"), "1");
}

/// A request of one byte a second reaches the login deadline.
fn slow_request(link: &mut Client, member: &Sidecar) {
    let started = Instant::now();
    for byte in request(b"b", b"a", b"postgres") {
        if link.try_send(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_secs(1));
        if started.elapsed() > Duration::from_secs(8) {
            break;
        }
    }
    assert_eq!(answer(link), None);
    let line = member.await_connection_end(link.local_address());
    assert_eq!(line["reason"], "login_timeout", "{line}");
}

/// Links have separate places, in each direction.
fn limit(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let a = a.set("TEESQL_CLUSTER_LINKS", "2");
    let a = a.set("TEESQL_MAX_CONNECTIONS", "1");
    let (first, _second) = (a.start(), b.start());
    let mut kept = b.connect(0);
    exchange(&mut kept, b"hello").expect("an echo");
    let mut client = unverified_tls::session(Some(&tdx), &first);
    let mut other = b.connect(0);
    exchange(&mut other, b"hello").expect("an echo");
    let mut link = raw_link(Some((&tdx, "b")), first.address());
    refused(&mut link, &first, b"", 4, "link_too_many");

    // The other direction has places as well.
    let mut opened = [a.connect(1), a.connect(0)];
    for link in &mut opened {
        exchange(link, b"hello").expect("an echo");
    }
    assert!(exchange(&mut a.connect(1), b"hello").is_err());
    drop(opened);
    poll_until(TIMEOUT, || exchange(&mut a.connect(1), b"again").ok()).expect("a place");
    exchange(&mut kept, b"unharmed").expect("an echo");
    assert_eq!(client.query_value("select 1"), "1");
}

/// A port that another process has is an error at start. A link that reaches another member than it was opened to is
/// refused.
fn wrong_ends(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let taken = TcpListener::bind(("127.0.0.1", a.echo + 1)).expect("a port");
    let sidecar = Sidecar::spawn(&a.settings);
    assert!(!sidecar.await_exit().success());
    let text = sidecar.log_lines().join("\n");
    let expected = format!("cannot listen on 127.0.0.1:{}", a.echo + 1);
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("cluster_services"), "{text}");
    drop(taken);

    // The name of the member leads to one that has another.
    let list = b.settings.get("TEESQL_CLUSTER_MEMBERS");
    let b = b.set(
        "TEESQL_CLUSTER_MEMBERS",
        &list.replace("localhost", "other.example"),
    );
    let (first, _second) = (a.start(), b.start());
    assert!(exchange(&mut a.connect(1), b"hello").is_err());
    let line = first.await_reason("link_wrong_member");
    assert_eq!(line["member"], "b", "{line}");

    // A cluster needs attested clients.
    let settings = fixture.settings();
    let settings = [
        "TEESQL_CLUSTER_NAME",
        "TEESQL_CLUSTER_MEMBER",
        "TEESQL_CLUSTER_MEMBERS",
    ]
    .into_iter()
    .fold(settings, |settings, name| {
        settings.set(name, &a.settings.get(name))
    });
    let sidecar = Sidecar::spawn(&settings);
    assert_eq!(sidecar.await_exit().code(), Some(64));
    let text = sidecar.log_lines().join("\n");
    assert!(
        text.contains("links between members are always attested"),
        "{text}"
    );
}
