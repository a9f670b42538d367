//! A member that leads publishes itself on a real name server, and a forwarder finds it there: both ends as processes, with
//! nothing signed or written by the test.

use serde_json::Value;

use crate::cluster_role::{self, DATABASE};
use crate::harness::READER;
use crate::harness::cluster::unused_port;
use crate::harness::fake_patroni::{Behavior, FakePatroni};
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::http;
use crate::harness::name_server::{NameServer, TSIG_NAME, TSIG_SECRET, ZONE};
use crate::harness::process::{TIMEOUT, poll_until, run_for_both_outputs, run_successfully};
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::settings::{Settings, sidecar_command};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::{TdxFixture, now};

pub(crate) fn add(suite: &mut Suite) {
    suite.add_requiring(
        &[Requirement::Knot],
        "forwarder::published_leader::is_found_after_a_failover",
        is_found,
    );
}

/// The name server of a member that publishes, with a key that only the guest agent has.
fn publishing(settings: Settings, tdx: &TdxFixture, dns: &NameServer) -> Settings {
    settings
        .set("TEESQL_GUEST_AGENT", &agent(tdx))
        .set("TEESQL_MANIFEST_PUBLISH", "rfc2136")
        .set("TEESQL_MANIFEST_DOMAIN", ZONE)
        .set("TEESQL_MANIFEST_SERVER", &dns.address())
        .set("TEESQL_MANIFEST_TSIG_NAME", TSIG_NAME)
        .set("TEESQL_MANIFEST_TSIG_KEY", TSIG_SECRET)
}

fn agent(tdx: &TdxFixture) -> String {
    format!("unix:{}", tdx.agent_socket().display())
}

fn forwarder(fixture: &Fixture, tdx: &TdxFixture, dns: &NameServer) -> Forwarder {
    let address = sidecar_command(
        &["manifest-address"],
        &[("TEESQL_GUEST_AGENT", agent(tdx).as_str())],
    );
    let signer = run_successfully(address, TIMEOUT);
    let settings = tdx
        .forwarder_settings(fixture)
        .set("TEESQL_CLUSTER", ZONE)
        .set("TEESQL_MANIFEST_SIGNER", signer.trim())
        .set("TEESQL_DNS_SERVER", &dns.address());
    Forwarder::start(&settings)
}

/// The port of the Postgres that a new session through the forwarder is with, or the error.
fn postgres_port(forwarder: &Forwarder) -> String {
    let mut psql = forwarder.client("psql", READER);
    psql.args(["-XAtc", "select inet_server_port()"]);
    psql.env("PGDATABASE", DATABASE);
    run_for_both_outputs(psql, TIMEOUT * 2).trim().to_owned()
}

fn await_published(member: &Sidecar) {
    let until = "teesql_manifest_valid_until_timestamp_seconds";
    await_scrape(member.admin_address(), |scrape| {
        scrape.value(until) > now() as f64
    });
}

fn is_found(fixture: &Fixture) {
    let tdx = &TdxFixture::new();
    let _agent = tdx.start_agent();
    let mut dns = NameServer::start("");
    let first = cluster_role::primary(fixture);
    let second = fixture.harness.standby_of(&first, unused_port());
    let patroni = ["a", "b"].map(|name| FakePatroni::start(name, Behavior::Leader(Some("a"))));
    let [a, b] = cluster_role::members(fixture, tdx, [&first, &second]);
    let [a, b] = [(a, &patroni[0]), (b, &patroni[1])].map(|(settings, patroni)| {
        let settings = cluster_role::with_patroni(settings, patroni);
        cluster_role::start(&publishing(settings, tdx, &dns))
    });
    let forwarder = forwarder(fixture, tdx, &dns);
    await_published(&a);
    assert_eq!(
        postgres_port(&forwarder),
        first.address().port().to_string()
    );
    let of_standby = Scrape::fetch(b.admin_address());
    assert_eq!(of_standby.value("teesql_manifest_leading"), 0.0);

    drop((a, first));
    assert_eq!(second.sql(DATABASE, "select pg_promote()"), "t");
    patroni[1].set(Behavior::Leader(Some("b")));
    await_published(&b);
    let expected = second.address().port().to_string();
    assert_eq!(postgres_port(&forwarder), expected);
    assert_eq!(manifest_check(&b)["reason"], Value::Null);

    // Neither the leader nor the sessions need the name server, and the leader says that it is gone.
    dns.stop();
    patroni[1].set(Behavior::Leader(None));
    await_scrape(b.admin_address(), |scrape| {
        scrape.value("teesql_manifest_leading") == 0.0
    });
    patroni[1].set(Behavior::Leader(Some("b")));
    let check = poll_until(TIMEOUT, || {
        let check = manifest_check(&b);
        check["reason"].is_string().then_some(check)
    })
    .expect("a publication that fails");
    assert_eq!(check["ready"], true, "{check}");
    let reason = check["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("manifest_no_answer: "), "{check}");
    assert_eq!(postgres_port(&forwarder), expected);
}

/// The check `manifest` in `/ready`.
fn manifest_check(member: &Sidecar) -> Value {
    let ready = http::get(member.admin_address(), "/ready").json();
    let checks = ready["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "manifest");
    check.unwrap_or_else(|| panic!("{ready}")).clone()
}
