//! Names of members: each belongs to one VM, whatever the configuration of another one says.

use attest::mock::Evidence;
use serde_json::{Value, json};
use wire::link::{BOOT_ID_LEN, BootId};

use super::refusals::refused;
use super::{
    Member, answer, connect, exchange, instance, member, members, raw_link, request,
    request_of_boot,
};
use crate::harness::cluster::unused_ports;
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(super) fn add(suite: &mut Suite) {
    suite.add("links::a_name_belongs_to_one_vm", one_vm);
    suite.add("links::need_an_instance_id", no_instance_id);
}

/// The configuration of another VM with the name of the first member.
fn namesake(fixture: &Fixture, tdx: &TdxFixture, list: &str) -> Member {
    let namesake = member(fixture, tdx, list, ("a", unused_ports(1)));
    let (cert, key) = tdx.write_pem("namesake", &tdx.issue("namesake", &instance(b'x')));
    namesake
        .set("TEESQL_TLS_CERT", &cert)
        .set("TEESQL_TLS_KEY", &key)
}

fn cluster(sidecar: &Sidecar) -> Value {
    http::get(sidecar.admin_address(), "/cluster").json()
}

fn one_vm(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let list = b.settings.get("TEESQL_CLUSTER_MEMBERS");
    let other = namesake(fixture, &tdx, &list);
    let (first, second) = (a.start(), b.start());
    let mut kept = a.connect(1);
    exchange(&mut kept, b"hello").expect("an echo");

    let third = other.start();
    refuse_the_namesake(&other, &third, &second);
    drop(third);
    refuse_other_claims(&tdx, &second);
    exchange(&mut kept, b"unharmed").expect("an echo");

    // The same the other way round: at the address of the first member there is another VM.
    drop(first);
    let other = other.set("TEESQL_LISTEN", &a.settings.get("TEESQL_LISTEN"));
    let third = other.start();
    assert!(exchange(&mut b.connect(0), b"hello").is_err());
    second.await_log("the refusal of the other VM", |line| {
        line["reason"] == "link_member_conflict" && line["direction"] == "opened"
    });
    drop(third);

    // The first one may restart.
    let _first = a.start();
    poll_until(TIMEOUT, || exchange(&mut a.connect(1), b"again").ok())
        .expect("its name is its own");
}

/// Both members say who is refused, and why.
fn refuse_the_namesake(other: &Member, third: &Sidecar, second: &Sidecar) {
    assert!(exchange(&mut other.connect(1), b"hello").is_err());
    let line = third.await_reason("link_member_conflict");
    assert_eq!(line["message"], "link not opened", "{line}");
    assert_eq!(line["member"], "b", "{line}");
    let line = second.await_reason("link_member_conflict");
    assert_eq!(line["direction"], "accepted", "{line}");
    let [holder, claimant] = [b'a', b'x'].map(|byte| hex::encode([byte; 20]));
    assert_eq!(line["instance"], claimant, "{line}");
    let detail = line["detail"].as_str().expect("a text");
    assert!(
        detail.contains(&holder) && detail.contains(&claimant),
        "{line}"
    );

    assert_eq!(cluster(second)["members"][0]["instance"], holder);
    assert_eq!(cluster(second)["name_refused_by"], json!([]));
    let reason = http::await_unready(third.admin_address(), "cluster", "name_conflict");
    assert!(reason.contains("member b says that the name a"), "{reason}");
    let seen = cluster(third);
    assert_eq!(seen["name_refused_by"], json!(["b"]), "{seen}");
    assert_eq!(seen["errors"][0], "name_conflict", "{seen}");
    assert_eq!(seen["members"][0]["instance"], claimant, "{seen}");
}

/// VMs that prove what a member proves, and call themselves as they like.
fn refuse_other_claims(tdx: &TdxFixture, second: &Sidecar) {
    let as_first = || raw_link(Some((tdx, "a")), second.address());
    let as_other = || raw_link(Some((tdx, "namesake")), second.address());
    let claim = |mut link: crate::harness::client::Client, bytes: &[u8]| {
        link.send(bytes);
        answer(&mut link)
    };
    // The VM itself.
    let right = request(b"a", b"b", b"echo");
    assert_eq!(claim(as_first(), &right), Some(0));
    // A copy of it, which has its instance id, but runs in another kernel.
    let copied = BootId::new([7; BOOT_ID_LEN]);
    let copied = request_of_boot(b"a", b"b", b"echo", copied);
    assert_eq!(claim(as_first(), &copied), Some(8));
    // A copy with another name, and one with the name of the accepting member.
    assert_eq!(claim(as_first(), &request(b"c", b"b", b"echo")), Some(8));
    assert_eq!(claim(as_other(), &request(b"b", b"b", b"echo")), Some(8));
    // Another VM, with another name.
    assert_eq!(claim(as_other(), &request(b"c", b"b", b"echo")), Some(0));
}

/// Without an instance id a VM cannot be told apart from others, so that it has no name.
fn no_instance_id(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let nameless = Evidence {
        instance_id: Vec::new(),
        ..Evidence::default()
    };
    let (cert, key) = tdx.write_pem("nameless", &tdx.issue("nameless", &nameless));
    let a = a.set("TEESQL_TLS_CERT", &cert).set("TEESQL_TLS_KEY", &key);
    let (first, second) = (a.start(), b.start());
    first.await_log("the missing instance id", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("proves no instance id") && line["level"] == "ERROR"
    });
    let checks = http::get(first.admin_address(), "/ready").json();
    let checks = checks["checks"].as_array().expect("checks").clone();
    let evidence = checks.iter().find(|check| check["name"] == "evidence");
    let reason = evidence.expect("a check")["reason"].to_string();
    assert!(reason.contains("no_instance_id"), "{reason}");
    // It is refused before its request is read, in both directions.
    let mut link = raw_link(Some((&tdx, "nameless")), second.address());
    refused(&mut link, &second, b"", 2, "link_not_a_member");
    assert!(exchange(&mut connect(b.echo), b"hello").is_err());
    let line = second.await_log("the refusal of the nameless", |line| {
        line["reason"] == "link_not_a_member" && line["direction"] == "opened"
    });
    assert_eq!(line["member"], "a", "{line}");
}
