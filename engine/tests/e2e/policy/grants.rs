//! What an entry of the policy grants: roles, databases and a number of sessions.

use std::fs;

use attest::mock::{Certificate, Evidence};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{app, peer, write_policy};
use crate::attestation_gate::connect;
use crate::harness::client::StartupResponse;
use crate::harness::fixture::Fixture;
use crate::harness::message::{self, PROTOCOL_3_0};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{Credentials, READER, SUPERUSER, WRITER, WRONG_SECRET};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "policy::roles_and_databases_are_granted",
        roles_and_databases,
    );
    suite.add("policy::sessions_of_an_entry_are_limited", max_sessions);
    suite.add(
        "policy::refused_sessions_take_no_place_of_others",
        refused_sessions,
    );
    suite.add("policy::audit_log_names_the_entry", names_in_audit_log);
    suite.add("policy::superuser_can_be_closed", superuser);
}

/// Code and message of a refused login; `Ok` if it succeeds.
fn login(
    fixture: &Fixture,
    sidecar: &Sidecar,
    certificate: &Certificate,
    (role, secret): Credentials<'_>,
    database: &str,
) -> Result<(), (String, String)> {
    let mut client = connect(fixture, sidecar, certificate);
    client.send(&message::startup(
        PROTOCOL_3_0,
        &[("user", role), ("database", database)],
    ));
    // A request for a proof of the secret, unless the role is not granted.
    let first = client.read().expect("a response");
    if first.tag == b'E' {
        let error = first.error();
        return Err((error.code, error.message));
    }
    let response = StartupResponse {
        mechanisms: first.mechanisms(),
        ..StartupResponse::default()
    };
    match client.authenticate(secret, response) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.code, error.message)),
    }
}

fn not_granted(what: &str) -> Result<(), (String, String)> {
    let text = format!("role_not_granted: the policy does not grant this {what} to this client");
    Err(("28000".to_owned(), text))
}

fn wrong_secret() -> Result<(), (String, String)> {
    let text = "authentication_failed: password authentication failed";
    Err(("28P01".to_owned(), text.to_owned()))
}

fn roles_and_databases(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let policy = write_policy(
        &tdx,
        &[
            peer(
                "reports",
                "a1",
                "roles = \"teesql_read\"\ndatabases = [\"via_scram\"]",
            ),
            peer("api", "a2", ""),
            peer("operators", "a3", "roles = [\"postgres\"]"),
        ],
    );
    let settings = tdx.production_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_POLICY_FILE", &policy));
    let [reports, api, operators] =
        [0xa1, 0xa2, 0xa3].map(|byte| tdx.issue(&format!("app {byte}"), &app(byte)));
    let login = |certificate, credentials, database| {
        login(fixture, &sidecar, certificate, credentials, database)
    };
    assert_eq!(login(&reports, READER, "via_scram"), Ok(()));
    assert_eq!(login(&reports, WRITER, "via_scram"), not_granted("role"));
    assert_eq!(login(&reports, READER, "postgres"), not_granted("database"));
    sidecar.await_reason("role_not_granted");
    // The right secret makes no difference, nor does a wrong one.
    let (role, _) = WRITER;
    assert_eq!(
        login(&reports, (role, WRONG_SECRET), "via_scram"),
        not_granted("role")
    );
    assert_eq!(
        login(&reports, ("unknown", WRONG_SECRET), "via_scram"),
        wrong_secret()
    );
    // Without `roles`, the two cluster roles.
    assert_eq!(login(&api, READER, "via_scram"), Ok(()));
    assert_eq!(login(&api, WRITER, "via_scram"), Ok(()));
    assert_eq!(login(&api, SUPERUSER, "via_scram"), not_granted("role"));
    assert_eq!(login(&operators, SUPERUSER, "via_scram"), Ok(()));
    assert_eq!(login(&operators, READER, "via_scram"), not_granted("role"));
}

fn names_in_audit_log(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let policy = write_policy(&tdx, &[peer("orders api", "a1", "")]);
    let audit_log = tdx.path("audit.log");
    let settings = (tdx.production_settings(fixture))
        .set("TEESQL_POLICY_FILE", &policy)
        .set("TEESQL_AUDIT_LOG", &audit_log);
    let sidecar = Sidecar::start(&settings);
    let certificate = tdx.issue("api", &app(0xa1));
    let logged_in = login(fixture, &sidecar, &certificate, READER, "via_scram");
    assert_eq!(logged_in, Ok(()));
    let grant = poll_until(TIMEOUT, || {
        let text = fs::read_to_string(&audit_log).unwrap_or_default();
        let mut lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["event"] == "role_grant")
    })
    .expect("a role grant in the audit log");
    assert_eq!(grant["peer"], "orders api", "{grant}");
    assert_eq!(grant["os"], "mock", "{grant}");
}

fn max_sessions(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let policy = write_policy(
        &tdx,
        &[
            peer("small", "a1", "max_sessions = 2"),
            peer("large", "a2", ""),
        ],
    );
    let settings = tdx.production_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_POLICY_FILE", &policy));
    let small = tdx.issue("small", &app(0xa1));
    let other_instance = Evidence {
        instance_id: vec![7; 20],
        ..app(0xa1)
    };
    let other_instance = tdx.issue("small 2", &other_instance);
    let large = tdx.issue("large", &app(0xa2));
    let (role, wrong) = (READER.0, WRONG_SECRET);

    let mut first = connect(fixture, &sidecar, &small);
    first.login_reader();
    // A login that fails takes no place.
    let failed = login(fixture, &sidecar, &small, (role, wrong), "via_scram");
    assert_eq!(failed, wrong_secret());
    let mut second = connect(fixture, &sidecar, &other_instance);
    second.login_reader();
    let full = Err((
        "53300".to_owned(),
        "too many sessions of this client's policy entry".to_owned(),
    ));
    let third = || login(fixture, &sidecar, &small, READER, "via_scram");
    assert_eq!(third(), full);
    sidecar.await_reason("peer_session_limit");
    assert_eq!(
        login(fixture, &sidecar, &large, READER, "via_scram"),
        Ok(())
    );
    // A session that ends makes room, and the others are not affected.
    second.terminate();
    poll_until(TIMEOUT, || third().is_ok().then_some(())).expect("a place");
    // The session that there is counts for the entry that admits its client after a reload.
    write_policy(&tdx, &[peer("tiny", "a1", "max_sessions = 1")]);
    sidecar.signal(Signal::SIGHUP);
    poll_until(TIMEOUT, || (third() == full).then_some(())).expect("no place");
    assert_eq!(first.query_value("select 1"), "1");
    first.terminate();
    poll_until(TIMEOUT, || third().is_ok().then_some(())).expect("a place");
}

/// Clients whose entry is full, and that do not close their connections, take no place of other entries.
fn refused_sessions(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let small = peer("small", "a1", "max_sessions = 1");
    let policy = write_policy(&tdx, &[small, peer("large", "a2", "")]);
    let settings = (tdx.production_settings(fixture))
        .set("TEESQL_POLICY_FILE", &policy)
        .set("TEESQL_MAX_CONNECTIONS", "2");
    let sidecar = Sidecar::start(&settings);
    let small = tdx.issue("small", &app(0xa1));
    let large = tdx.issue("large", &app(0xa2));
    let (role, secret) = READER;
    let mut first = connect(fixture, &sidecar, &small);
    first.login_reader();
    let refused: Vec<_> = (0..3)
        .map(|_| {
            let mut client = connect(fixture, &sidecar, &small);
            let error = client.login(role, "via_scram", secret);
            let text = "too many sessions of this client's policy entry";
            assert_eq!(error.expect_err("the entry is full").message, text);
            client
        })
        .collect();
    assert_eq!(
        login(fixture, &sidecar, &large, READER, "via_scram"),
        Ok(())
    );
    assert_eq!(first.query_value("select 1"), "1");
    drop(refused);
}

fn superuser(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let policy = write_policy(&tdx, &[peer("operators", "a1", "roles = \"any\"")]);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_POLICY_FILE", &policy);
    let client = tdx.issue("operator", &Evidence::default());
    let sidecar = Sidecar::start(&settings);
    let open = login(fixture, &sidecar, &client, SUPERUSER, "via_scram");
    assert_eq!(open, Ok(()));
    let sidecar = Sidecar::start(&settings.set("TEESQL_SUPERUSER_LOGINS", "off"));
    let closed = login(fixture, &sidecar, &client, SUPERUSER, "via_scram");
    assert_eq!(closed, not_granted("role"));
    assert_eq!(
        login(fixture, &sidecar, &client, READER, "via_scram"),
        Ok(())
    );
}
