//! Tests of the role of a cluster's member: where logins go, waiting for a leader, and fencing.
//!
//! Patroni is a fake; both Postgres servers are real, one is a streaming standby of the other, and a link leads from its
//! sidecar to the other's.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::client::{Client, StartupResponse, TlsNegotiation};
use crate::harness::cluster::{Cluster, ClusterOptions, unused_port, unused_ports};
use crate::harness::fake_patroni::{Behavior, FakePatroni};
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::message::{self, PgError, query};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::unverified_tls;
use crate::harness::{READ_SECRET, READWRITE_PASSWORD, READWRITE_SECRET, SUPERUSER_PASSWORD};

pub(crate) fn add(suite: &mut Suite) {
    // All of this is the work of the control thread and of logins.
    if suite.adds_driver_independent() {
        suite.add("cluster_role::standby_serves_writers", standby);
        suite.add("cluster_role::leader_is_fenced", fencing);
    }
}

pub(crate) const DATABASE: &str = "app";

/// Streaming replication over the Unix socket.
const HBA: &str = "local replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";

pub(crate) fn primary(fixture: &Fixture) -> Cluster {
    let primary = fixture.private_cluster(&ClusterOptions {
        settings: vec!["wal_level=replica", "max_wal_senders=4", "hot_standby=on"],
        hba: Some(HBA),
        databases: vec![DATABASE],
    });
    primary.sql(DATABASE, "create table public.noted (what text)");
    primary
}

/// Settings of the sidecars of the members, each in front of one of `servers`. The other members reach it by links.
pub(crate) fn members<const N: usize>(
    fixture: &Fixture,
    tdx: &TdxFixture,
    servers: [&Cluster; N],
) -> [Settings; N] {
    let ports = ["a", "b"].map(|name| (name, unused_ports(1)));
    let list = ports.map(|(name, port)| format!("{name}=localhost:{port}"));
    let list = list.join(",");
    let mut ports = ports.into_iter();
    servers.map(|server| {
        let (name, port) = ports.next().expect("not more members than servers");
        let services = format!("postgres={}:{}", server.address().port(), unused_ports(2));
        let settings = fixture.settings_for(&server.address().to_string());
        tdx.member_settings(settings, name, &list)
            .set("TEESQL_LISTEN", &format!("127.0.0.1:{port}"))
            .set("TEESQL_PG_DATABASE", DATABASE)
            .set("TEESQL_CLUSTER_SERVICES", &services)
            .set("TEESQL_CLUSTER_PATRONI", "off")
    })
}

/// Settings of a member whose Patroni is a fake.
pub(crate) fn with_patroni(settings: Settings, patroni: &FakePatroni) -> Settings {
    settings
        .set("TEESQL_CLUSTER_PATRONI", &patroni.url())
        .set("TEESQL_CLUSTER_FENCE_AFTER", "2s")
        // Nothing may depend on the time that a busy machine takes.
        .set("TEESQL_CLUSTER_LEADER_WAIT", "60s")
        // Waiting for a leader does not count.
        .set("TEESQL_LOGIN_TIMEOUT", "20s")
}

/// Starts a member, which other members can reach when this returns.
pub(crate) fn start(settings: &Settings) -> Sidecar {
    let sidecar = Sidecar::start(settings);
    sidecar.await_message("members of the cluster prove the same as this sidecar");
    sidecar
}

struct Session {
    client: Client,
    response: StartupResponse,
}

/// An attested client: members of a cluster accept no others.
fn client(tdx: &TdxFixture, sidecar: SocketAddr) -> Client {
    let config = unverified_tls::config_of(Some((tdx, "client")));
    Client::connect_with(config, sidecar, TlsNegotiation::SslRequest).expect("TLS")
}

fn log_in(tdx: &TdxFixture, sidecar: SocketAddr, role: &str) -> Result<Session, PgError> {
    let secret = match role {
        "teesql_read" => READ_SECRET,
        "teesql_readwrite" => READWRITE_SECRET,
        _ => SUPERUSER_PASSWORD,
    };
    let mut client = client(tdx, sidecar);
    let response = client.login(role, DATABASE, secret)?;
    Ok(Session { client, response })
}

fn session(tdx: &TdxFixture, sidecar: &Sidecar, role: &str) -> Session {
    log_in(tdx, sidecar.address(), role).unwrap_or_else(|error| panic!("{role}: {error}"))
}

impl Session {
    fn is_in_recovery(&mut self) -> bool {
        self.client.query_value("select pg_is_in_recovery()") == "t"
    }

    /// The session has ended with this SQLSTATE and text.
    fn expect_end(mut self, code: &str, text: &str) {
        let error = self.client.expect_fatal();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
}

fn status(admin: SocketAddr, path: &str) -> u16 {
    http::get(admin, path).status
}

fn await_status(admin: SocketAddr, path: &str, expected: u16) {
    poll_until(TIMEOUT, || (status(admin, path) == expected).then_some(())).unwrap_or_else(|| {
        panic!(
            "{path} never had {expected}: {}",
            http::get(admin, "/cluster").body
        )
    });
}

fn await_leader(admin: SocketAddr, leader: &Value) {
    poll_until(TIMEOUT, || {
        (http::get(admin, "/cluster").json()["leader"] == *leader).then_some(())
    })
    .unwrap_or_else(|| {
        panic!(
            "never led by {leader}: {}",
            http::get(admin, "/cluster").body
        )
    });
}

/// A standby with each setting, then its promotion.
fn standby(fixture: &Fixture) {
    let tdx = &TdxFixture::new();
    let leader = primary(fixture);
    let own = fixture.harness.standby_of(&leader, unused_port());
    let patroni = FakePatroni::start("a", Behavior::Leader(Some("b")));
    let [settings, of_leader] = members(fixture, tdx, [&own, &leader]);
    let settings = with_patroni(settings, &patroni);
    let _leader = start(&of_leader);
    other_settings(tdx, &settings, &patroni);

    let sidecar = start(&settings);
    let admin = sidecar.admin_address();
    await_leader(admin, &"b".into());
    let mut writer = session(tdx, &sidecar, "teesql_readwrite");
    let mut operator = session(tdx, &sidecar, "postgres");
    let mut reader = session(tdx, &sidecar, "teesql_read");
    assert!(!writer.is_in_recovery() && !operator.is_in_recovery() && reader.is_in_recovery());
    writer
        .client
        .query("insert into noted values ('carried')")
        .expect("a write");
    assert_eq!(leader.sql(DATABASE, "select what from noted"), "carried");
    roles_of_a_standby(admin);
    operator.client.terminate();
    cancel_reaches_the_leader(tdx, &sidecar, &leader);

    patroni.set(Behavior::Leader(None));
    writer.expect_end("57P01", "the cluster has a new leader");
    assert!(reader.is_in_recovery());
    let address = sidecar.address();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| log_in(tdx, address, "teesql_readwrite"));
        await_scrape(admin, |scrape| {
            scrape.value("teesql_cluster_waiting_logins") == 1.0
        });
        leader.stop(Signal::SIGQUIT);
        assert_eq!(own.sql(DATABASE, "select pg_promote()"), "t");
        patroni.set(Behavior::Leader(Some("a")));
        let mut writer = waiting
            .join()
            .expect("no panic")
            .expect("a session after the promotion");
        assert!(!writer.is_in_recovery());
        writer
            .client
            .query("insert into noted values ('promoted')")
            .expect("a write");
    });
    assert_eq!(reader.client.query_value("select 1"), "1");
    await_status(admin, "/primary", 200);
    let cluster = http::get(admin, "/cluster").json();
    assert_eq!(
        (&cluster["role"], &cluster["timeline"]),
        (&"leader".into(), &2.into()),
        "{cluster}"
    );
    assert_eq!(status(admin, "/replica"), 503);
    assert_eq!(
        Scrape::fetch(admin).value("teesql_cluster_carried_sessions"),
        0.0
    );
}

fn roles_of_a_standby(admin: SocketAddr) {
    for (path, expected) in [
        ("/ready", 200),
        ("/replica", 200),
        ("/replica?lag=1TB", 200),
        ("/replica?lag=much", 400),
        ("/read-only", 200),
        ("/primary", 503),
        ("/master", 503),
        ("/read-write", 503),
        ("/leader", 503),
        ("/standby-leader", 503),
    ] {
        assert_eq!(status(admin, path), expected, "{path}");
    }
    let cluster = http::get(admin, "/cluster").json();
    assert_eq!(cluster["member"], "a", "{cluster}");
    assert_eq!(cluster["role"], "replica", "{cluster}");
    assert_eq!(cluster["members"][1]["role"], "leader", "{cluster}");
    assert!(cluster["system_identifier"].is_string(), "{cluster}");
    let scrape = Scrape::fetch(admin);
    assert_eq!(scrape.value("teesql_cluster_role{role=\"replica\"}"), 1.0);
    assert_eq!(scrape.value("teesql_cluster_role{role=\"leader\"}"), 0.0);
    assert_eq!(scrape.value("teesql_cluster_carried_sessions"), 2.0);
    assert!(scrape.value("teesql_cluster_lag_bytes") >= 0.0);
}

fn cancel_reaches_the_leader(tdx: &TdxFixture, sidecar: &Sidecar, leader: &Cluster) {
    let mut sleeper = session(tdx, sidecar, "teesql_readwrite");
    sleeper.client.send(&query("select pg_sleep(3600)"));
    let pid = sleeper.response.pid;
    let waits = format!("select wait_event from pg_stat_activity where pid = {pid}");
    leader.await_result(&waits, "PgSleep");
    let mut canceller = client(tdx, sidecar.address());
    canceller.send(&message::cancel(pid, &sleeper.response.key));
    canceller.expect_close();
    sleeper.client.expect(b'T');
    let error = sleeper.client.expect(b'E').error();
    assert_eq!(error.code, "57014", "{error}");
    sleeper.client.expect(b'Z');
    sleeper.client.terminate();
}

/// Logins on a standby that refuses writers, that serves them itself, and that does not wait for long.
fn other_settings(tdx: &TdxFixture, settings: &Settings, patroni: &FakePatroni) {
    let refusing = settings
        .clone()
        .set("TEESQL_CLUSTER_WRITES_ON_STANDBY", "refuse");
    let refusing = start(&refusing.set("TEESQL_CLUSTER_LEADER_WAIT", "1s"));
    let admin = refusing.admin_address();
    await_leader(admin, &"b".into());
    let refused = |role| {
        log_in(tdx, refusing.address(), role)
            .map(|_| ())
            .expect_err(role)
    };
    let error = refused("teesql_readwrite");
    assert_eq!(error.code, "57P03", "{error}");
    assert!(error.message.ends_with("the leader is b"), "{error}");
    patroni.set(Behavior::TwoLeaders);
    await_leader(admin, &Value::Null);
    let error = refused("postgres");
    assert_eq!(error.code, "57P03", "{error}");
    assert!(
        error.message.contains("no leader of the cluster"),
        "{error}"
    );
    let errors = http::get(admin, "/cluster").json()["errors"].to_string();
    assert!(errors.contains("patroni_two_leaders"), "{errors}");
    patroni.set(Behavior::Leader(Some("b")));
    // The next one has the same ports.
    drop(refusing);

    let local = settings
        .clone()
        .set("TEESQL_CLUSTER_WRITES_ON_STANDBY", "local");
    let local = start(&local);
    await_leader(local.admin_address(), &"b".into());
    assert!(session(tdx, &local, "teesql_readwrite").is_in_recovery());
}

fn fencing(fixture: &Fixture) {
    let tdx = &TdxFixture::new();
    let own = primary(fixture);
    let patroni = FakePatroni::start("a", Behavior::Leader(Some("a")));
    let [settings] = members(fixture, tdx, [&own]);
    let sidecar = start(&with_patroni(settings, &patroni));
    let admin = sidecar.admin_address();
    let mut reader = session(tdx, &sidecar, "teesql_read");
    await_status(admin, "/primary", 200);
    for path in ["/master", "/read-write", "/leader", "/read-only?lag=0"] {
        assert_eq!(status(admin, path), 200, "{path}");
    }

    let html = "<!DOCTYPE HTML><html>".to_owned();
    let causes = [
        (Behavior::Leader(Some("b")), "lock_lost", ""),
        (Behavior::Leader(None), "lock_lost", ""),
        (Behavior::Hang, "patroni_silent", "patroni_timeout"),
        (Behavior::Endless, "patroni_silent", "patroni_too_large"),
        (
            Behavior::Answer(200, html),
            "patroni_silent",
            "patroni_malformed",
        ),
        (Behavior::TwoLeaders, "", "patroni_two_leaders"),
    ];
    for (behavior, cause, error) in causes {
        let writer = session(tdx, &sidecar, "teesql_readwrite");
        let operator = session(tdx, &sidecar, "postgres");
        let began = Instant::now();
        patroni.set(behavior.clone());
        if cause.is_empty() {
            // Its own lock is confirmed. Another one is not followed.
            await_scrape(admin, |scrape| {
                scrape.value(&format!(
                    "teesql_cluster_watch_errors_total{{reason=\"{error}\"}}"
                )) > 3.0
            });
            assert_eq!(status(admin, "/primary"), 200);
            continue;
        }
        writer.expect_end("57P01", "lost the leader lock");
        operator.expect_end("57P01", "lost the leader lock");
        if cause == "patroni_silent" {
            assert!(began.elapsed() >= Duration::from_secs(1), "{behavior:?}");
        }
        assert_eq!(reader.client.query_value("select 1"), "1", "{behavior:?}");
        let cluster = http::get(admin, "/cluster").json();
        assert_eq!(cluster["fenced"], cause, "{behavior:?}: {cluster}");
        assert!(cluster["errors"].to_string().contains(error), "{cluster}");
        for path in ["/primary", "/leader", "/read-only", "/ready"] {
            assert_eq!(status(admin, path), 503, "{path}");
        }
        patroni.set(Behavior::Leader(Some("a")));
        await_status(admin, "/primary", 200);
    }
    let scrape = Scrape::fetch(admin);
    assert_eq!(
        scrape.value("teesql_cluster_fences_total{cause=\"lock_lost\"}"),
        2.0
    );
    assert_eq!(
        scrape.value("teesql_cluster_fences_total{cause=\"patroni_silent\"}"),
        3.0
    );
    assert_eq!(scrape.value("teesql_cluster_fenced"), 0.0);
    sessions_from_other_members(&own, &patroni, admin);
}

/// Other members' sidecars carry sessions here, which this one does not know.
fn sessions_from_other_members(own: &Cluster, patroni: &FakePatroni, admin: SocketAddr) {
    let mut carried = own.tcp_psql("teesql_readwrite", READWRITE_PASSWORD, DATABASE);
    carried.args(["-c", "select pg_sleep(3600)"]);
    let carried = thread::spawn(move || crate::harness::process::run(carried, TIMEOUT));
    let count = "select count(*) from pg_stat_activity where usename = 'teesql_readwrite'";
    own.await_result(count, "1");
    patroni.set(Behavior::Leader(Some("b")));
    await_status(admin, "/primary", 503);
    own.await_result(count, "0");
    assert!(!carried.join().expect("no panic").status.success());
}
