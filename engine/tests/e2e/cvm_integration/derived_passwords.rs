//! Postgres' passwords, derived by the guest agent, and roles set up at start.

use nix::sys::signal::Signal;

use super::{Method, TdxFixture, admin, derived};
use crate::harness::cluster::{ClusterOptions, Server};
use crate::harness::http;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully};
use crate::harness::sidecar::{Settings, Sidecar};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{READ_SECRET, READWRITE_SECRET, WRONG_SECRET};

pub(super) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        let name = format!("citizen::derived_passwords::{}", server.label());
        suite.add(&name, move |fixture| derived_passwords(fixture, &server));
    }
    suite.add("citizen::superuser_refused", superuser_refused);
}

const PATHS: [&str; 3] = ["pg/superuser", "pg/teesql_read", "pg/teesql_readwrite"];

fn without_passwords(settings: Settings) -> Settings {
    settings
        .without("TEESQL_PG_PASSWORD_READ")
        .without("TEESQL_PG_PASSWORD_READWRITE")
        .without("TEESQL_PG_PASSWORD_SUPERUSER")
}

/// A Postgres that knows nothing but its superuser's password becomes a cluster.
fn derived_passwords(fixture: &Fixture, server: &Server) {
    let tdx = TdxFixture::new();
    let agent = tdx.agent();
    let options = ClusterOptions {
        hba: Some("host all all 127.0.0.1/32 scram-sha-256\n"),
        ..ClusterOptions::default()
    };
    let cluster = fixture.harness.private_cluster(server, &options);
    let [superuser, reader, writer] = PATHS.map(|path| derived(&agent, path));
    cluster.admin_sql(&format!("ALTER ROLE postgres PASSWORD '{superuser}'"));
    // That statement of ours is in the log where it fails only.
    let asked = agent.requests(Method::GetKey);
    let upstream = cluster.address().to_string();
    let settings = tdx
        .with_agent(fixture.settings_for(&upstream))
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_LOG", "trace");
    let sidecar = Sidecar::start(&without_passwords(settings));
    assert_eq!(agent.requests(Method::GetKey) - asked, PATHS.len());

    for (role, secret) in [
        ("teesql_read", READ_SECRET),
        ("teesql_read", READWRITE_SECRET),
        ("teesql_readwrite", READWRITE_SECRET),
        ("postgres", superuser.as_str()),
    ] {
        let mut psql = tdx.psql(&sidecar, (role, secret), "select current_user");
        psql.env("PGDATABASE", "postgres");
        assert_eq!(run_successfully(psql, TIMEOUT).trim(), role);
    }
    for (role, secret) in [
        ("postgres", WRONG_SECRET),
        ("postgres", READWRITE_SECRET),
        // Postgres' own password of a role opens nothing here.
        ("teesql_read", reader.as_str()),
        ("teesql_readwrite", writer.as_str()),
    ] {
        let mut psql = tdx.psql(&sidecar, (role, secret), "select 1");
        psql.env("PGDATABASE", "postgres");
        let said = lossy(&run(psql, TIMEOUT).stderr);
        assert!(said.contains("password authentication failed"), "{said}");
    }
    // The second time there is nothing to do.
    let kept = "select rolpassword from pg_authid where rolname like 'teesql%' order by 1";
    let before = cluster.admin_sql(kept);
    assert!(before.starts_with("SCRAM-SHA-256$"), "{before}");
    starts_with_nothing_to_do(&tdx, fixture, &upstream);
    assert_eq!(cluster.admin_sql(kept), before);

    let seen = everything_seen(&sidecar) + &cluster.log();
    let secrets = [&superuser, &reader, &writer].map(String::as_str);
    for secret in secrets.into_iter().chain([READ_SECRET, READWRITE_SECRET]) {
        assert!(!seen.contains(&secret[..16]), "a secret is seen");
    }
}

/// All that anybody but its owner sees of a sidecar, up to its end.
fn everything_seen(sidecar: &Sidecar) -> String {
    let address = admin(sidecar);
    let targets = ["/metrics", "/ready", "/attestation"];
    let shown = targets.map(|target| http::get(address, target).body);
    let command_line = sidecar.command_line();
    assert!(command_line.contains("serve"), "{command_line}");
    sidecar.signal(Signal::SIGTERM);
    sidecar.await_exit();
    let lines = sidecar.log_lines();
    assert!(lines.len() > 10, "a log at trace level: {lines:?}");
    shown.concat() + &command_line + &lines.join("\n")
}

fn starts_with_nothing_to_do(tdx: &TdxFixture, fixture: &Fixture, upstream: &str) {
    let settings = tdx
        .with_agent(fixture.settings_for(upstream))
        .set("TEESQL_PROVISION", "true");
    let second = Sidecar::start(&without_passwords(settings));
    let said = second.log_lines().join("\n");
    assert!(!said.contains("\"provisioned\""), "{said}");
}

/// A superuser's password that Postgres does not take: the report says so, and
/// nobody's session notices.
fn superuser_refused(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let settings = tdx
        .settings(fixture)
        .set("TEESQL_PG_PASSWORD_SUPERUSER", "not-the-superuser-s");
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    let mut session = crate::harness::unverified_tls::enter(Some(&tdx), &sidecar);
    let report = http::get(address, "/attestation");
    assert_eq!(report.status, 200, "{}", report.body);
    let json = report.json();
    let state = &json["postgres_state"];
    let error = state["error"].as_str().unwrap_or_default();
    assert!(error.contains("28P01"), "{json}");
    assert!(state["wal_lsn"].is_null(), "{json}");
    super::attestation_report::check(&tdx, &json, None);
    assert!(!report.body.contains("not-the-superuser"), "{json}");
    http::await_ready(address);
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
    let psql = tdx.psql(&sidecar, ("teesql_read", READ_SECRET), "select 'new'");
    assert_eq!(run_successfully(psql, TIMEOUT), "new\n");
}
