//! Tests of Postgres passwords that the guest agent derives, and of provisioning at start.

use attest::agent::Method;
use nix::sys::signal::Signal;

use super::derived_key;
use crate::harness::cluster::{ClusterOptions, Server};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully};
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, READWRITE_SECRET, WRONG_SECRET, http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        let name = format!("cvm_integration::derived_passwords::{}", server.label());
        suite.add(&name, move |fixture| derived_passwords(fixture, &server));
    }
    suite.add(
        "cvm_integration::derived_passwords::reports_refused_superuser_password",
        reports_refused_superuser_password,
    );
}

const PATHS: [&str; 3] = ["pg/superuser", "pg/teesql_read", "pg/teesql_readwrite"];

fn without_passwords(settings: Settings) -> Settings {
    settings
        .without("TEESQL_PG_PASSWORD_READ")
        .without("TEESQL_PG_PASSWORD_READWRITE")
        .without("TEESQL_PG_PASSWORD_SUPERUSER")
}

/// Provisions a Postgres that has only its superuser's password.
fn derived_passwords(fixture: &Fixture, server: &Server) {
    let tdx = TdxFixture::new();
    let agent = tdx.start_agent();
    let options = ClusterOptions {
        hba: Some("host all all 127.0.0.1/32 scram-sha-256\n"),
        ..ClusterOptions::default()
    };
    let cluster = fixture.harness.private_cluster(server, &options);
    let [superuser, reader, writer] = PATHS.map(|path| derived_key(&agent, path));
    cluster.admin_sql(&format!("ALTER ROLE postgres PASSWORD '{superuser}'"));
    let requests = agent.requests(Method::GetKey);
    let upstream = cluster.address().to_string();
    let settings = tdx
        .with_agent(fixture.settings_for(&upstream))
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_LOG", "trace");
    let sidecar = Sidecar::start(&without_passwords(settings));
    assert_eq!(agent.requests(Method::GetKey) - requests, PATHS.len());

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
        // The password of a role in Postgres is not accepted from clients.
        ("teesql_read", reader.as_str()),
        ("teesql_readwrite", writer.as_str()),
    ] {
        let mut psql = tdx.psql(&sidecar, (role, secret), "select 1");
        psql.env("PGDATABASE", "postgres");
        let text = lossy(&run(psql, TIMEOUT).stderr);
        assert!(text.contains("password authentication failed"), "{text}");
    }
    // The second start changes nothing.
    let stored = "select rolpassword from pg_authid where rolname like 'teesql%' order by 1";
    let before = cluster.admin_sql(stored);
    assert!(before.starts_with("SCRAM-SHA-256$"), "{before}");
    start_without_changes(&tdx, fixture, &upstream);
    assert_eq!(cluster.admin_sql(stored), before);

    let visible = visible_output(&sidecar) + &cluster.log();
    let secrets = [&superuser, &reader, &writer].map(String::as_str);
    assert!(visible.contains("provisioning repaired a difference"));
    for secret in secrets.into_iter().chain([READ_SECRET, READWRITE_SECRET]) {
        assert!(!visible.contains(&secret[..16]), "a secret is visible");
    }
}

/// Everything that a sidecar shows to others up to its exit: HTTP responses, command line, log.
fn visible_output(sidecar: &Sidecar) -> String {
    let address = sidecar.admin_address();
    let targets = ["/metrics", "/ready", "/attestation"];
    let responses = targets.map(|target| http::get(address, target).body);
    let command_line = sidecar.command_line();
    assert!(command_line.contains("serve"), "{command_line}");
    sidecar.signal(Signal::SIGTERM);
    sidecar.await_exit();
    let lines = sidecar.log_lines();
    assert!(lines.len() > 10, "a log at trace level: {lines:?}");
    responses.concat() + &command_line + &lines.join("\n")
}

fn start_without_changes(tdx: &TdxFixture, fixture: &Fixture, upstream: &str) {
    let settings = tdx
        .with_agent(fixture.settings_for(upstream))
        .set("TEESQL_PROVISION", "true");
    let second = Sidecar::start(&without_passwords(settings));
    let text = second.log_lines().join("\n");
    assert!(!text.contains("provisioning repaired"), "{text}");
}

/// A superuser password that Postgres refuses: the report has the error, and sessions are not
/// affected.
fn reports_refused_superuser_password(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let settings = tdx
        .agent_settings(fixture)
        .set("TEESQL_PG_PASSWORD_SUPERUSER", "not-the-superuser-password");
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    let mut session = tls::session(Some(&tdx), &sidecar);
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
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
    let psql = tdx.psql(&sidecar, ("teesql_read", READ_SECRET), "select 'new'");
    assert_eq!(run_successfully(psql, TIMEOUT), "new\n");
}
