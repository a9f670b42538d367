//! Tests that the log contains no secret, even at trace level.

use nix::sys::signal::Signal;

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::fixture::Fixture;
use crate::harness::message::{self, PROTOCOL_3_2, query, tagged};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{
    AuthSettings, PasswordEncryption, READ_SECRET, READWRITE_SECRET, SECRETS, SUPERUSER_PASSWORD,
    WRONG_SECRET,
};

/// Markers in places that a careless log statement would print.
const SQL: &str = "sql_marker_48151623";
const PARAMETER: &str = "parameter_marker_48151623";
const ROLE: &str = "role_marker_48151623";
const BODY: &str = "body_marker_48151623";

pub(crate) fn add(suite: &mut Suite) {
    suite.add("log_secrecy::json_log_has_no_secrets", |fixture| {
        log_has_no_secrets(fixture, "json")
    });
    suite.add("log_secrecy::text_log_has_no_secrets", |fixture| {
        log_has_no_secrets(fixture, "text")
    });
}

fn log_has_no_secrets(fixture: &Fixture, format: &str) {
    for server in fixture.harness.servers() {
        for (database, encryption, auth) in [
            ("via_trust", PasswordEncryption::Scram, AuthSettings::Weak),
            (
                "via_password",
                PasswordEncryption::Scram,
                AuthSettings::Weak,
            ),
            ("via_md5", PasswordEncryption::Md5, AuthSettings::Weak),
            ("via_scram", PasswordEncryption::Scram, AuthSettings::Scram),
        ] {
            let upstream = fixture
                .harness
                .cluster(&server, encryption)
                .address()
                .to_string();
            let audit = fixture.harness.unique_path("audit");
            let mut settings = fixture
                .settings_for(&upstream)
                .set("TEESQL_LOG", "trace")
                .set("TEESQL_AUDIT_LOG", audit.to_str().expect("UTF-8"));
            if auth == AuthSettings::Weak {
                settings = settings.with_weak_auth();
            }
            let sidecar = Sidecar::start_with_log_format(&settings, format);
            send_marked_traffic(fixture, &sidecar, database);
            sidecar.signal(Signal::SIGTERM);
            sidecar.await_exit();
            assert_no_secrets(&sidecar.log_lines());
            let audit = std::fs::read_to_string(audit).expect("an audit log");
            assert_no_secrets(&audit.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }
}

/// Logins, queries, refusals and malformed messages, all with markers.
fn send_marked_traffic(fixture: &Fixture, sidecar: &Sidecar, database: &str) {
    for (role, secret) in [
        ("teesql_read", READ_SECRET),
        ("teesql_read", READWRITE_SECRET),
        ("teesql_readwrite", READWRITE_SECRET),
        ("postgres", SUPERUSER_PASSWORD),
        ("teesql_read", WRONG_SECRET),
        ("postgres", READ_SECRET),
        (ROLE, READWRITE_SECRET),
        // Role and secret swapped.
        (READ_SECRET, "teesql_read"),
    ] {
        let mut client = Client::connect(&fixture.harness, sidecar.address(), TlsNegotiation::Raw);
        let parameters = [
            ("user", role),
            ("database", database),
            ("application_name", PARAMETER),
            ("_pq_.x", PARAMETER),
        ];
        let response = client.start_with(PROTOCOL_3_2, &parameters);
        if client.authenticate(secret, response).is_ok() {
            client.query(&format!("select '{SQL}'")).expect("a row");
            client
                .query(&format!("select {SQL}"))
                .expect_err("no such column");
            client.terminate();
        }
    }
    let mut client = fixture.client(sidecar.address());
    client.start("teesql_read", database);
    client.send(&query(BODY));
    client.expect_fatal();
    let mut client = fixture.client(sidecar.address());
    client.start("teesql_read", database);
    client.send(&tagged(
        b'p',
        [READ_SECRET, "\0", BODY, "\0"].concat().as_bytes(),
    ));
    client.expect_fatal();
    let mut client = fixture.client(sidecar.address());
    client.send(&message::untagged(BODY.as_bytes()));
    client.expect_fatal();
}

fn assert_no_secrets(lines: &[String]) {
    assert!(
        lines.len() > 10,
        "a log has more than {} lines",
        lines.len()
    );
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let list = |text: &str| {
        let numbers: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        numbers.join(", ")
    };
    let markers = SECRETS.into_iter().chain([SQL, PARAMETER, ROLE, BODY]);
    for marker in markers {
        // As text, escaped, in upper case, as hex, and as Debug of a byte slice. A part of a secret
        // must not appear either.
        let part: String = marker.chars().take(10).collect();
        for form in [
            part.clone(),
            part.to_uppercase(),
            hex(&part),
            list(&part),
            format!("{part:?}"),
        ] {
            let form = form.trim_matches('"');
            for line in lines {
                assert!(
                    !line.contains(form),
                    "{marker:?} appears as {form:?} in: {line}"
                );
            }
        }
    }
}
