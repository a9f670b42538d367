//! Tests with a Postgres that is down, out of connections, or not provisioned: the client receives the
//! reason, and the sidecar serves other clients.

mod auto;

use crate::harness::client::{Client, CloseKind};
use crate::harness::cluster::ClusterOptions;
use crate::harness::fake_server::{
    ClosedPort, FakeServer, accept_login, read_message, read_startup,
};
use crate::harness::fixture::Fixture;
use crate::harness::message::PgError;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{
    PasswordEncryption, READ_SECRET, READWRITE_SECRET, SUPERUSER_PASSWORD, message,
};
use crate::login::refused;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "upstream::reports_unreachable_postgres",
        unreachable_postgres,
    );
    suite.add("upstream::reports_connection_limit", connection_limit);
    suite.add(
        "upstream::reports_connection_limit_of_database",
        connection_limit_of_database,
    );
    suite.add("upstream::reports_unknown_database", unknown_database);
    suite.add(
        "upstream::reports_roles_that_are_not_provisioned",
        roles_not_provisioned,
    );
    suite.add(
        "upstream::reports_wrong_injected_password",
        wrong_injected_password,
    );
    suite.add("upstream::reports_missing_hba_entry", no_hba_entry);
    suite.add("upstream::connects_to_unix_socket", unix_socket);
    suite.add(
        "upstream::forwards_close_during_session",
        closes_during_session,
    );
    suite.add(
        "upstream::forwards_error_of_terminated_backend",
        terminated_backend,
    );
    auto::add(suite);
}

pub(crate) fn failed(code: &str, text: &str) -> PgError {
    PgError {
        severity: "FATAL".to_owned(),
        code: code.to_owned(),
        message: format!("pg_auth_inject failed: {text}"),
    }
}

/// Tries to log in. Returns the error and the reason code in the log.
pub(crate) fn refusal(
    fixture: &Fixture,
    sidecar: &Sidecar,
    role: &str,
    secret: &str,
    database: &str,
) -> (PgError, String) {
    let mut client = fixture.client(sidecar.address());
    let error = client
        .login(role, database, secret)
        .expect_err("the login is refused");
    let line = sidecar.await_connection_end(client.local_address());
    assert_eq!(line["level"], "WARN", "{line}");
    (error, line["reason"].as_str().expect("a code").to_owned())
}

fn unreachable_postgres(fixture: &Fixture) {
    let closed = ClosedPort::reserve();
    let refused_address = closed.address().to_string();
    let no_socket = fixture.harness.unique_path("no.sock");
    for (upstream, text) in [
        (
            refused_address.as_str(),
            "cannot connect to Postgres: connection refused",
        ),
        (
            no_socket.to_str().expect("UTF-8"),
            "cannot connect to Postgres: no such socket",
        ),
    ] {
        let sidecar = Sidecar::start(&fixture.settings_for(upstream));
        let (error, reason) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, "d");
        assert_eq!(error, failed("57P03", text));
        assert_eq!(reason, "upstream_unreachable");
        // A client with a wrong secret does not learn of the outage.
        let mut client = fixture.client(sidecar.address());
        let error = client.login("teesql_read", "d", "wrong").err();
        assert_eq!(error, Some(refused()));
    }
}

/// All connections are in use: Postgres refuses before it requests a password.
fn connection_limit(fixture: &Fixture) {
    let options = ClusterOptions {
        settings: vec!["max_connections=4", "superuser_reserved_connections=0"],
        databases: vec!["app"],
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let sidecar = Sidecar::start(&fixture.settings_for(&cluster.address().to_string()));
    let mut sessions = Vec::new();
    let error = loop {
        let mut client = fixture.client(sidecar.address());
        match client.login("teesql_read", "app", READ_SECRET) {
            Ok(_) => sessions.push(client),
            Err(error) => break error,
        }
        assert!(
            sessions.len() <= 4,
            "Postgres accepts more than max_connections"
        );
    };
    assert_eq!(error.code, "53300", "{error}");
    assert_eq!(
        error.message,
        "pg_auth_inject failed: sorry, too many clients already (SQLSTATE 53300)"
    );
    for session in &mut sessions {
        assert_eq!(session.query_value("select 1"), "1");
    }
    sessions.drain(..).for_each(Client::terminate);
    cluster.await_result(
        "select count(*) from pg_stat_activity where usename = 'teesql_read'",
        "0",
    );
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "app", READ_SECRET)
        .expect("a free connection again");
}

/// Postgres refuses after authentication: the client receives Postgres's error.
fn connection_limit_of_database(fixture: &Fixture) {
    let database = fixture.harness.unique_name("limited");
    let cluster = fixture.cluster();
    cluster.admin_sql(&format!("create database {database} connection limit 0"));
    let (error, reason) = refusal(
        fixture,
        &fixture.sidecar(),
        "teesql_read",
        READ_SECRET,
        &database,
    );
    assert_eq!(error.code, "53300", "{error}");
    assert_eq!(
        error.message,
        format!("too many connections for database \"{database}\"")
    );
    assert_eq!(reason, "upstream_refused_session");
    cluster.admin_sql(&format!("drop database {database}"));
}

fn unknown_database(fixture: &Fixture) {
    let (error, reason) = refusal(
        fixture,
        &fixture.sidecar(),
        "teesql_read",
        READ_SECRET,
        "nowhere",
    );
    assert_eq!(error.code, "3D000", "{error}");
    assert_eq!(error.message, "database \"nowhere\" does not exist");
    assert_eq!(reason, "upstream_refused_session");
}

fn roles_not_provisioned(fixture: &Fixture) {
    let options = ClusterOptions {
        hba: Some(
            "host via_trust all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
        ),
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let settings = fixture.settings_for(&cluster.address().to_string());
    let sidecar = Sidecar::start(&settings.set("TEESQL_POSTGRES_AUTH", "any"));
    for (role, secret) in [
        ("teesql_read", READ_SECRET),
        ("teesql_readwrite", READWRITE_SECRET),
    ] {
        let (error, reason) = refusal(fixture, &sidecar, role, secret, "via_trust");
        assert_eq!(
            error,
            failed(
                "08004",
                &format!("role \"{role}\" does not exist (SQLSTATE 28000)")
            )
        );
        assert_eq!(reason, "postgres_refused");
        // With a password method, Postgres does not say whether the role exists.
        let (error, _) = refusal(fixture, &sidecar, role, secret, "via_scram");
        let text = format!("password authentication failed for user \"{role}\" (SQLSTATE 28P01)");
        assert_eq!(error, failed("08004", &text));
    }
    let mut superuser = fixture.client(sidecar.address());
    superuser
        .login("postgres", "postgres", SUPERUSER_PASSWORD)
        .expect("the superuser exists");
    // Provisioning needs no restart of the sidecar.
    cluster.create_database("app");
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "app", READ_SECRET)
        .expect("the login succeeds");
}

fn wrong_injected_password(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_POSTGRES_AUTH", "any")
        .set("TEESQL_PG_PASSWORD_READ", "not the one");
    let sidecar = Sidecar::start(&settings);
    for database in ["via_password", "via_scram"] {
        let (error, reason) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, database);
        let text = "password authentication failed for user \"teesql_read\" (SQLSTATE 28P01)";
        assert_eq!(error, failed("08004", text), "{database}");
        assert_eq!(reason, "postgres_refused");
    }
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_readwrite", "via_scram", READWRITE_SECRET)
        .expect("another role can log in");
}

fn no_hba_entry(fixture: &Fixture) {
    let options = ClusterOptions {
        hba: Some("host postgres all 127.0.0.1/32 trust\n"),
        ..ClusterOptions::default()
    };
    let cluster = fixture.private_cluster(&options);
    let sidecar = Sidecar::start(&fixture.settings_for(&cluster.address().to_string()));
    let (error, _) = refusal(fixture, &sidecar, "teesql_read", READ_SECRET, "app");
    assert_eq!(error.code, "08004", "{error}");
    let start =
        "pg_auth_inject failed: no pg_hba.conf entry for host \"127.0.0.1\", user \"teesql_read\"";
    assert!(error.message.starts_with(start), "{error}");
    assert!(error.message.ends_with("(SQLSTATE 28000)"), "{error}");
}

fn unix_socket(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let cluster = fixture.harness.cluster(&server, PasswordEncryption::Scram);
        let socket = cluster.socket();
        let sidecar = Sidecar::start(&fixture.settings_for(socket.to_str().expect("UTF-8")));
        for (role, secret) in [
            ("teesql_read", READ_SECRET),
            ("teesql_readwrite", READWRITE_SECRET),
            ("postgres", SUPERUSER_PASSWORD),
        ] {
            let mut client = fixture.client(sidecar.address());
            let response = client
                .login(role, "via_scram", secret)
                .expect("the login succeeds");
            // NULL on a Unix socket.
            let transport = "select coalesce(host(inet_client_addr()), 'socket')";
            assert_eq!(client.query_value(transport), "socket", "{role}");
            let bulk = client.query("select repeat('y', 10000) from generate_series(1, 1000)");
            assert_eq!(bulk.expect("rows").len(), 1000);
            let mut canceller = fixture.client(sidecar.address());
            client.send(&message::query("select pg_sleep(3600)"));
            let asleep = format!(
                "select wait_event from pg_stat_activity where pid = {}",
                response.pid
            );
            cluster.await_result(&asleep, "PgSleep");
            canceller.send(&message::cancel(response.pid, &response.key));
            assert_eq!(canceller.expect_close(), CloseKind::Clean);
            client.expect(b'T');
            assert_eq!(client.expect(b'E').error().code, "57014");
        }
    }
}

/// Postgres closes between two messages of a session: the client sees the end.
fn closes_during_session(fixture: &Fixture) {
    let postgres = FakeServer::start(|mut stream| {
        read_startup(&mut stream)?;
        accept_login(&mut stream)?;
        read_message(&mut stream).map(drop)
    });
    let sidecar = Sidecar::start(&fixture.settings_for_fake(&postgres));
    let mut client = fixture.client(sidecar.address());
    client
        .login("teesql_read", "d", READ_SECRET)
        .expect("the login succeeds");
    client.send(&message::query("select 1"));
    assert_eq!(client.expect_close(), CloseKind::Clean);
    let line = sidecar.await_connection_end(client.local_address());
    assert_eq!(line["reason"], "upstream_closed", "{line}");
}

/// The client receives the error of a terminated backend completely.
fn terminated_backend(fixture: &Fixture) {
    let mut client = fixture.client(fixture.sidecar().address());
    let response = client.login_reader();
    assert_eq!(client.query_value("select 1"), "1");
    fixture
        .cluster()
        .admin_sql(&format!("select pg_terminate_backend({})", response.pid));
    let error = client.expect_fatal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "terminating connection due to administrator command"
    );
}
