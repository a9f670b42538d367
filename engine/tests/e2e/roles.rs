//! Tests that clients of a shared role cannot stop, mislead or reach each other, nor operators.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::cluster::{Cluster, ClusterOptions, Server, unused_port};
use crate::harness::fixture::Fixture;
use crate::harness::http;
use crate::harness::message::{PROTOCOL_3_0, PgError};
use crate::harness::process::{TIMEOUT, lossy, poll_until, run};
use crate::harness::scrape::Scrape;
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{READ_SECRET, READWRITE_SECRET, SUPERUSER_PASSWORD};

pub(crate) fn add(suite: &mut Suite) {
    // All of this is the work of the control thread and of Postgres.
    if !suite.adds_driver_independent() {
        return;
    }
    for server in suite.harness().servers() {
        let label = server.label();
        for (name, test) in TESTS {
            let server = server.clone();
            suite.add(&format!("roles::{label}::{name}"), move |fixture| {
                test(fixture, &server)
            });
        }
    }
}

type Test = fn(&Fixture, &Server);

const TESTS: [(&str, Test); 8] = [
    ("password_set_to_null_heals_itself", heals_password),
    ("stored_settings_do_not_decide", stored_settings),
    ("configured_settings_decide", configured_settings),
    ("frequent_changes_harm_no_other_client", frequent_changes),
    ("blocker_of_provisioning_is_named_and_ended", ends_blocker),
    ("readers_do_not_reach_each_other", separated_readers),
    ("operators_are_not_tricked", operators),
    (
        "statement_of_a_client_that_is_gone_ends",
        abandoned_statement,
    ),
];

const DATABASE: &str = "app";

fn cluster(fixture: &Fixture, server: &Server) -> Cluster {
    let options = ClusterOptions {
        databases: vec![DATABASE],
        ..ClusterOptions::default()
    };
    fixture.harness.private_cluster(server, &options)
}

/// Settings of a sidecar that provisions `cluster`.
fn provisioning(fixture: &Fixture, cluster: &Cluster) -> Settings {
    fixture
        .settings_for(&cluster.address().to_string())
        .set("TEESQL_PROVISION", "true")
        .set("TEESQL_PG_DATABASE", DATABASE)
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
}

fn reader(fixture: &Fixture, sidecar: &Sidecar) -> Result<Client, PgError> {
    log_in(fixture, sidecar, "teesql_read", READ_SECRET, &[])
}

/// Sessions of readers begin read-only. A client can change that.
fn make_writable(reader: &mut Client) {
    reader
        .query("set default_transaction_read_only = off")
        .expect("a setting of the session");
}

fn writer(fixture: &Fixture, sidecar: &Sidecar) -> Client {
    let session = log_in(fixture, sidecar, "teesql_readwrite", READWRITE_SECRET, &[]);
    session.expect("a writer's session")
}

fn operator(fixture: &Fixture, sidecar: &Sidecar, parameters: &[(&str, &str)]) -> Client {
    let session = log_in(fixture, sidecar, "postgres", SUPERUSER_PASSWORD, parameters);
    session.expect("an operator's session")
}

fn log_in(
    fixture: &Fixture,
    sidecar: &Sidecar,
    role: &str,
    secret: &str,
    parameters: &[(&str, &str)],
) -> Result<Client, PgError> {
    let mut client = fixture.client(sidecar.address());
    let identity = [("user", role), ("database", DATABASE)];
    let response = client.start_with(PROTOCOL_3_0, &[&identity[..], parameters].concat());
    client.authenticate(secret, response)?;
    Ok(client)
}

/// Waits until the sidecar has read the settings of Postgres, so that new sessions get them.
fn await_server_settings(fixture: &Fixture, sidecar: &Sidecar) {
    poll_until(TIMEOUT, || {
        let mut client = reader(fixture, sidecar).ok()?;
        let source = "select source from pg_settings where name = 'statement_timeout'";
        (client.query_value(source) == "client").then_some(())
    })
    .expect("settings of the server in new sessions");
}

fn heals_password(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let sidecar = Sidecar::start(&provisioning(fixture, &cluster));
    let admin = sidecar.admin_address();
    let mut attacker = reader(fixture, &sidecar).expect("a reader's session");
    let repairs = "teesql_provision_repairs_total{what=\"password\"}";
    let before = Scrape::fetch(admin).value(repairs);
    make_writable(&mut attacker);
    attacker
        .query("alter role teesql_read password null")
        .expect("a role may change its password");
    // A reader is refused, unless the comparison that is due every few seconds came first.
    if let Err(error) = reader(fixture, &sidecar) {
        assert_eq!(error.code, "08004", "{error}");
    }
    // As under load: every reader tries again.
    let start = Instant::now();
    poll_until(TIMEOUT, || reader(fixture, &sidecar).ok()).expect("readers come back");
    let lasted = start.elapsed();
    assert!(lasted < Duration::from_secs(10), "{lasted:?}");
    let line = sidecar.await_message("repaired a role in Postgres");
    assert_eq!(line["difference"], "teesql_read: has no password");
    let sessions = line["sessions"].as_str().expect("sessions");
    assert!(sessions.contains("(teesql_read, since "), "{sessions}");
    assert_eq!(Scrape::fetch(admin).value(repairs), before + 1.0);
    assert_eq!(attacker.query_value("select 1"), "1");
    http::await_ready(admin);
}

/// Nothing repairs the settings here.
fn stored_settings(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let settings = fixture
        .settings_for(&cluster.address().to_string())
        .set("TEESQL_PG_DATABASE", DATABASE);
    cluster.admin_sql("alter database app set lock_timeout = '7s'");
    let sidecar = Sidecar::start(&settings);
    let mut attacker = writer(fixture, &sidecar);
    for role in ["teesql_readwrite", "teesql_readwrite in database app"] {
        for setting in [
            "standard_conforming_strings = off",
            "search_path = nowhere",
            "statement_timeout = '1ms'",
            "lock_timeout = '1ms'",
            "default_transaction_read_only = on",
            "datestyle = 'German'",
            "exit_on_error = on",
        ] {
            let sql = format!("alter role {role} set {setting}");
            attacker.query(&sql).expect("a role may store settings");
        }
    }
    await_server_settings(fixture, &sidecar);
    let mut session = writer(fixture, &sidecar);
    for (setting, value) in [
        ("standard_conforming_strings", "on"),
        ("search_path", "\"$user\", public"),
        ("statement_timeout", "0"),
        ("lock_timeout", "7s"),
        ("default_transaction_read_only", "off"),
        ("datestyle", "ISO, MDY"),
        ("exit_on_error", "off"),
    ] {
        assert_eq!(
            session.query_value(&format!("show {setting}")),
            value,
            "{setting}"
        );
    }
    // RESET does not lead back to what is stored.
    session.query("reset all").expect("reset");
    assert_eq!(
        session.query_value("show standard_conforming_strings"),
        "on"
    );
    // What a client sets itself is its own.
    let own = [
        ("DateStyle", "SQL, DMY"),
        ("options", "-c search_path=mine --lock-timeout=9s"),
    ];
    let own = log_in(
        fixture,
        &sidecar,
        "teesql_readwrite",
        READWRITE_SECRET,
        &own,
    );
    let mut own = own.expect("a session");
    for (setting, value) in [
        ("search_path", "mine"),
        ("lock_timeout", "9s"),
        ("datestyle", "SQL, DMY"),
        ("statement_timeout", "0"),
    ] {
        assert_eq!(
            own.query_value(&format!("show {setting}")),
            value,
            "{setting}"
        );
    }
    let mut reader = reader(fixture, &sidecar).expect("a reader's session");
    assert_eq!(
        reader.query_value("show default_transaction_read_only"),
        "on"
    );
}

fn configured_settings(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let settings = fixture
        .settings_for(&cluster.address().to_string())
        .set(
            "TEESQL_ROLE_SETTINGS_READWRITE",
            r"-c work_mem=3MB -c search_path=app,\ public",
        )
        .set(
            "TEESQL_ROLE_SETTINGS_READ",
            "-c default_transaction_read_only=off",
        );
    let sidecar = Sidecar::start(&settings);
    cluster.admin_sql("alter role teesql_readwrite set work_mem = '9MB'");
    let mut session = writer(fixture, &sidecar);
    assert_eq!(session.query_value("show work_mem"), "3MB");
    assert_eq!(session.query_value("show search_path"), "app, public");
    let mut reader = reader(fixture, &sidecar).expect("a reader's session");
    assert_eq!(
        reader.query_value("show default_transaction_read_only"),
        "off"
    );
    assert_eq!(reader.query_value("show work_mem"), "4MB");
}

fn frequent_changes(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let sidecar = Sidecar::start(&provisioning(fixture, &cluster));
    let admin = sidecar.admin_address();
    await_server_settings(fixture, &sidecar);
    let mut attacker = reader(fixture, &sidecar).expect("a reader's session");
    make_writable(&mut attacker);
    let repairs = "teesql_provision_repairs_total{what=\"settings\"}";
    let before = Scrape::fetch(admin).value(repairs);
    let start = Instant::now();
    let (mut changes, mut logins) = (0_u32, 0_u32);
    // Changes until two repairs have been made, which no other client notices.
    while Scrape::fetch(admin).value(repairs) < before + 2.0 {
        assert!(
            start.elapsed() < TIMEOUT,
            "{changes} changes, {logins} logins"
        );
        for n in 0..20 {
            let sql = format!("alter role teesql_read set statement_timeout = {}", 1 + n);
            // A repair may update the same row at the same time.
            let _ = attacker.query(&sql);
            changes += 1;
        }
        let mut other = reader(fixture, &sidecar).expect("another reader's session");
        assert_eq!(other.query_value("show statement_timeout"), "0");
        logins += 1;
    }
    let repaired = Scrape::fetch(admin).value(repairs) - before;
    let seconds = start.elapsed().as_secs_f64();
    assert!(
        repaired <= seconds + 2.0,
        "{repaired} repairs in {seconds} s"
    );
    assert!(changes >= 20);
}

fn ends_blocker(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let plain = fixture.settings_for(&cluster.address().to_string());
    let first = Sidecar::start(&plain);
    let mut blocker = reader(fixture, &first).expect("a reader's session");
    make_writable(&mut blocker);
    for sql in ["begin", "alter role teesql_read password null"] {
        blocker.query(sql).expect("a role may change its password");
    }
    let pid = blocker.query_value("select pg_backend_pid()");
    // Something to repair.
    cluster.admin_sql("alter role teesql_readwrite connection limit 5");
    let named = format!("provisioning waits for a lock of pid {pid} (teesql_read, since 20");
    // The command gives up, and says what it waited for.
    let command = run(cluster.provision_command(DATABASE), TIMEOUT);
    let error = lossy(&command.stderr);
    assert_eq!(command.status.code(), Some(69), "{error}");
    assert!(error.contains(&named), "{error}");
    let admin = SocketAddr::from(([127, 0, 0, 1], unused_port()));
    let second = provisioning(fixture, &cluster)
        .set("TEESQL_PROVISION_BLOCKER_TIMEOUT", "4s")
        .set("TEESQL_ADMIN_LISTEN", &admin.to_string());
    let second = Sidecar::spawn(&second);
    poll_until(TIMEOUT, || TcpStream::connect(admin).ok()).expect("HTTP");
    http::await_unready(admin, "roles", &named);
    let line = second.await_message("ended a session that blocked provisioning");
    assert_eq!(line["pid"].to_string(), pid, "{line}");
    assert_eq!(line["role"], "teesql_read", "{line}");
    second.await_message("listening");
    assert_eq!(blocker.expect_fatal().code, "57P01");
    http::await_ready(admin);
}

fn separated_readers(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let sidecar = Sidecar::start(&provisioning(fixture, &cluster));
    let mut victim = reader(fixture, &sidecar).expect("a reader's session");
    let pid = victim.query_value("select pg_backend_pid()");
    let mut attacker = reader(fixture, &sidecar).expect("a reader's session");
    for sql in [
        &format!("select pg_terminate_backend({pid})"),
        &format!("select pg_cancel_backend({pid})"),
        "select query from pg_stat_activity",
        "select pg_stat_get_backend_activity(1)",
    ] {
        let error = attacker.query(sql).expect_err(sql);
        assert_eq!(error.code, "42501", "{sql}: {error}");
    }
    // Not even where transactions may write.
    attacker
        .query("set session characteristics as transaction read write")
        .expect("a session may choose");
    for sql in [
        "select lo_create(0)",
        "select lo_creat(-1)",
        "select lo_from_bytea(0, 'x')",
        "select lo_put(1, 0, 'x')",
        "select lo_unlink(1)",
    ] {
        let error = attacker.query(sql).expect_err(sql);
        assert_eq!(error.code, "42501", "{sql}: {error}");
    }
    for database in ["postgres", "template1", "operator"] {
        let mut client = fixture.client(sidecar.address());
        let error = client.login("teesql_read", database, READ_SECRET);
        assert_eq!(error.expect_err(database).code, "42501", "{database}");
    }
    assert_eq!(victim.query_value("select 1"), "1");
    let mut writer = writer(fixture, &sidecar);
    assert_eq!(writer.query_value("select lo_create(4711)"), "4711");
}

fn operators(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let sidecar = Sidecar::start(&provisioning(fixture, &cluster));
    let mut attacker = writer(fixture, &sidecar);
    for sql in [
        "create table bait (id int)",
        "create function grab(oid, int) returns bool language plpgsql as $$ begin
           execute 'alter role teesql_readwrite superuser'; return true; end $$",
        "create operator public.= (leftarg = oid, rightarg = int, function = grab)",
        "create function spring() returns trigger language plpgsql as $$ begin
           execute 'alter role teesql_readwrite superuser'; return new; end $$",
        "create trigger spring before insert on bait for each row execute function spring()",
    ] {
        attacker
            .query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let superuser = "select rolsuper::text from pg_roles where rolname = 'teesql_readwrite'";
    let mut session = operator(fixture, &sidecar, &[]);
    assert_eq!(session.query_value("show search_path"), "pg_catalog");
    let innocent = "select count(*)::text from pg_class where oid = 1259";
    assert_eq!(session.query_value(innocent), "1");
    assert_eq!(session.query_value(superuser), "false");
    // The recipe for work on clients' tables: with the rights of their owner.
    session
        .query("set role teesql_readwrite")
        .expect("set role");
    let error = session.query("insert into public.bait values (1)");
    assert_eq!(error.expect_err("the trigger fails").code, "42501");
    session.query("reset role").expect("reset role");
    assert_eq!(session.query_value(superuser), "false");
    // An operator who asks for another path gets it.
    let mut session = operator(fixture, &sidecar, &[("options", "-c search_path=public")]);
    assert_eq!(session.query_value("show search_path"), "public");
}

fn abandoned_statement(fixture: &Fixture, server: &Server) {
    let cluster = cluster(fixture, server);
    let settings = fixture
        .settings_for(&cluster.address().to_string())
        .set("TEESQL_CLIENT_CHECK_INTERVAL", "500ms");
    let sidecar = Sidecar::start(&settings);
    let mut client = reader(fixture, &sidecar).expect("a reader's session");
    let marker = fixture.harness.unique_name("abandoned");
    // Busy, rather than waiting for something that notices the closed socket.
    let sql = format!(
        "select count(*) as {marker} from generate_series(1, 1000000) a, generate_series(1, 1000000) b"
    );
    client.send(&crate::harness::message::query(&sql));
    let count = format!(
        "select count(*) from pg_stat_activity where usename = 'teesql_read' \
         and state = 'active' and query like '%as {marker}%'"
    );
    cluster.await_result(&count, "1");
    client.disconnect();
    cluster.await_result(&count, "0");
}
