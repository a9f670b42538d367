//! Tests of logins, for each combination of role, secret, Postgres' authentication method, TLS
//! negotiation and protocol version.

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::Server;
use crate::harness::fixture::Fixture;
use crate::harness::message::{PROTOCOL_3_0, PROTOCOL_3_2, PgError};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::{
    AuthSettings, PasswordEncryption, READ_PASSWORD, READ_SECRET, READWRITE_PASSWORD,
    READWRITE_SECRET, SUPERUSER_PASSWORD, WRONG_SECRET,
};

/// Role, presented secret, and whether the login succeeds.
const CASES: &[(&str, &str, bool)] = &[
    ("teesql_read", READ_SECRET, true),
    ("teesql_read", READWRITE_SECRET, true),
    ("teesql_read", WRONG_SECRET, false),
    ("teesql_read", READ_PASSWORD, false),
    ("teesql_read", "", false),
    ("teesql_readwrite", READWRITE_SECRET, true),
    ("teesql_readwrite", READ_SECRET, false),
    ("teesql_readwrite", WRONG_SECRET, false),
    ("teesql_readwrite", READWRITE_PASSWORD, false),
    ("teesql_readwrite", SUPERUSER_PASSWORD, false),
    ("postgres", SUPERUSER_PASSWORD, true),
    ("postgres", READWRITE_SECRET, false),
    ("postgres", READ_SECRET, false),
    ("postgres", WRONG_SECRET, false),
    ("unknown_role", READWRITE_SECRET, false),
    ("unknown_role", WRONG_SECRET, false),
    ("TEESQL_READ", READ_SECRET, false),
    ("teesql_read ", READ_SECRET, false),
];

const METHODS: [(&str, PasswordEncryption, AuthSettings); 5] = [
    ("trust", PasswordEncryption::Scram, AuthSettings::Weak),
    ("password", PasswordEncryption::Scram, AuthSettings::Weak),
    ("md5", PasswordEncryption::Md5, AuthSettings::Weak),
    ("scram", PasswordEncryption::Scram, AuthSettings::Weak),
    ("scram", PasswordEncryption::Scram, AuthSettings::Scram),
];

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.harness().servers() {
        for (method, encryption, auth) in METHODS {
            for negotiation in TlsNegotiation::ALL {
                for (version, protocol) in [(PROTOCOL_3_0, "3.0"), (PROTOCOL_3_2, "3.2")] {
                    let label = server.label();
                    let client = match auth {
                        AuthSettings::Scram => "client_scram",
                        AuthSettings::Weak => "client_password",
                    };
                    let name = format!(
                        "login::{label}::{method}::{client}::{negotiation}::protocol_{protocol}"
                    );
                    let server = server.clone();
                    suite.add(&name, move |fixture| {
                        let sidecar = fixture.sidecar_with(&server, encryption, auth);
                        every_role_and_secret(
                            fixture,
                            &sidecar,
                            &server,
                            method,
                            negotiation,
                            version,
                        );
                    });
                }
            }
        }
    }
    if suite.harness().postgres18.is_err() {
        suite.add_requiring(&[Requirement::Pg18], "login::pg18", |_| {
            unreachable!("PostgreSQL 18 is missing")
        });
    }
    suite.add("login::roles_have_their_privileges", privileges);
    suite.add("login::tls_versions_and_groups", tls_versions_and_groups);
    suite.add(
        "login::startup_parameters_reach_postgres",
        startup_parameters,
    );
    suite.add("login::accepts_gssenc_request_first", gssenc_request_first);
}

/// The refusal of a login, which is the same for every reason.
pub(crate) fn refused() -> PgError {
    PgError {
        severity: "FATAL".to_owned(),
        code: "28P01".to_owned(),
        message: "authentication_failed: password authentication failed".to_owned(),
    }
}

/// Tries all [`CASES`] with one combination of the other parameters.
fn every_role_and_secret(
    fixture: &Fixture,
    sidecar: &Sidecar,
    server: &Server,
    method: &str,
    negotiation: TlsNegotiation,
    version: u32,
) {
    let database = format!("via_{method}");
    for &(role, secret, succeeds) in CASES {
        let case = format!("{role:?} with {:.8}…", secret);
        let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
        let response = client.start_with(version, &[("user", role), ("database", &database)]);
        let negotiated = version.min(server.protocol());
        let expected = (negotiated != version).then(|| (negotiated, Vec::new()));
        assert_eq!(response.negotiation, expected, "{case}");

        let outcome = client.authenticate(secret, response);
        if !succeeds {
            assert_eq!(outcome.err(), Some(refused()), "{case}");
            continue;
        }
        let response = outcome.unwrap_or_else(|e| panic!("{case}: {e}"));
        let key_length = if negotiated >= PROTOCOL_3_2 { 32 } else { 4 };
        assert_eq!(response.key.len(), key_length, "{case}");
        let identity = "select concat_ws(' ', session_user, current_database(), pg_backend_pid())";
        assert_eq!(
            client.query_value(identity),
            format!("{role} {database} {}", response.pid),
            "{case}"
        );
        let version = response
            .parameters
            .iter()
            .find(|(name, _)| name == "server_version");
        let (_, version) = version.unwrap_or_else(|| panic!("{case}: no server_version"));
        assert!(
            version.starts_with(&server.major.to_string()),
            "{case}: {version}"
        );
        client.terminate();
    }
}

fn privileges(fixture: &Fixture) {
    let address = fixture.sidecar().address();
    let session = |role, secret| {
        let mut client = fixture.client(address);
        client
            .login(role, "via_scram", secret)
            .expect("the login succeeds");
        client
    };
    let mut reader = session("teesql_read", READWRITE_SECRET);
    let mut writer = session("teesql_readwrite", READWRITE_SECRET);
    let mut superuser = session("postgres", SUPERUSER_PASSWORD);
    // An operator's sessions begin without clients' schemas in the search path.
    superuser
        .query("set search_path = public")
        .expect("a setting of the session");
    let ours = fixture.harness.unique_name("of_writer");
    let theirs = fixture.harness.unique_name("of_superuser");

    let denied = |client: &mut Client, sql: &str| {
        assert_eq!(client.query(sql).expect_err(sql).code, "42501", "{sql}");
    };
    let create = format!("create table {ours} (a serial, b int)");
    // Sessions of readers begin read-only, which a client can change. Privileges it cannot.
    assert_eq!(reader.query(&create).expect_err("read-only").code, "25006");
    reader
        .query("set default_transaction_read_only = off")
        .expect("a setting of the session");
    denied(&mut reader, &create);
    for (client, table) in [(&mut writer, &ours), (&mut superuser, &theirs)] {
        client
            .query(&format!("create table {table} (a serial, b int)"))
            .expect("the role may create tables");
    }
    for table in [&ours, &theirs] {
        for (sql, rows) in [
            (format!("insert into {table} (b) values (1), (2)"), 0),
            (format!("update {table} set b = b + 1"), 0),
            (format!("delete from {table} where b = 2"), 0),
            (format!("select a, b from {table}"), 1),
        ] {
            let found = writer.query(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
            assert_eq!(found.len(), rows, "{sql}");
        }
        assert_eq!(reader.query_value(&format!("select b from {table}")), "3");
        denied(&mut reader, &format!("insert into {table} (b) values (9)"));
        denied(&mut reader, &format!("update {table} set b = 9"));
        denied(&mut reader, &format!("delete from {table}"));
        denied(&mut reader, &format!("truncate {table}"));
        denied(&mut reader, &format!("drop table {table}"));
    }
    denied(&mut writer, &format!("drop table {theirs}"));
    denied(&mut writer, "create role another");
    denied(&mut writer, "set role postgres");
    denied(&mut reader, "set role teesql_readwrite");
    superuser
        .query(&format!("drop table {ours}, {theirs}"))
        .expect("a superuser may drop tables");
}

fn tls_versions_and_groups(fixture: &Fixture) {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    use rustls::version::{TLS12, TLS13};

    let address = fixture.sidecar().address();
    for (version, group) in [
        (&TLS13, kx_group::X25519MLKEM768),
        (&TLS13, kx_group::X25519),
        (&TLS12, kx_group::X25519),
    ] {
        let mut provider = default_provider();
        provider.kx_groups = vec![group];
        for negotiation in TlsNegotiation::ALL {
            let alpn = negotiation.alpn();
            let config =
                fixture
                    .harness
                    .certificates
                    .client_with(provider.clone(), &[version], alpn);
            let mut client = Client::connect_with(config, address, negotiation)
                .unwrap_or_else(|e| panic!("{version:?} {group:?} {negotiation}: {e}"));
            let negotiated = client.tls.conn.alpn_protocol();
            assert_eq!(negotiated, alpn, "{negotiation}");
            client.login_reader();
            assert_eq!(client.tls.conn.protocol_version(), Some(version.version));
            let used = client
                .tls
                .conn
                .negotiated_key_exchange_group()
                .map(|g| g.name());
            assert_eq!(used, Some(group.name()));
            assert_eq!(client.query_value("select 1"), "1");
            client.terminate();
        }
    }
}

fn startup_parameters(fixture: &Fixture) {
    let mut client = fixture.client(fixture.sidecar().address());
    let response = client.start_with(
        PROTOCOL_3_0,
        &[
            ("application_name", "grüße"),
            ("user", "teesql_read"),
            ("options", "-c statement_timeout=4321 -c our.label=a\\ b"),
            ("database", "via_scram"),
            ("client_encoding", "LATIN1"),
            ("DateStyle", "German"),
        ],
    );
    let response = client
        .authenticate(READ_SECRET, response)
        .expect("the login succeeds");
    let parameter = |name: &str| {
        let found = response.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(parameter("client_encoding"), Some("LATIN1"));
    assert_eq!(parameter("DateStyle"), Some("German, DMY"));
    let names = "statement_timeout our.label application_name";
    let values: Vec<String> = names
        .split(' ')
        .map(|name| {
            client.query_value(&format!(
                "select encode(current_setting('{name}')::bytea, 'escape')"
            ))
        })
        .collect();
    assert_eq!(values[..2], ["4321ms", "a b"]);
    assert!(values[2].starts_with("gr"), "{values:?}");
}

fn gssenc_request_first(fixture: &Fixture) {
    use crate::harness::client::TcpClient;
    use crate::harness::message::{GSSENC_REQUEST, SSL_REQUEST};

    let mut tcp = TcpClient::connect(fixture.sidecar().address());
    for (request, response) in [(GSSENC_REQUEST, b"N"), (SSL_REQUEST, b"S")] {
        tcp.send(&request);
        tcp.expect_prefix(response);
    }
    let config = fixture.harness.certificates.client(None);
    let mut client = Client::handshake(config, tcp).expect("the TLS handshake succeeds");
    client
        .login("teesql_readwrite", "via_scram", READWRITE_SECRET)
        .expect("the login succeeds");
    client.terminate();
}
