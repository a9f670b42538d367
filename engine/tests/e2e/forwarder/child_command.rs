//! Tests of `teesql-forward … -- command`: environment, signals and exit code of the child process.

use std::fs;
use std::net::TcpListener;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;

use crate::harness::READER;
use crate::harness::fake_server::ClosedPort;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, poll_until, run, signal, spawn, wait,
};
use crate::harness::settings::Settings;
use crate::harness::suite::{NEW_PID_NAMESPACE, Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forwarder::child_command::returns_exit_codes", exit_codes);
    suite.add(
        "forwarder::child_command::sets_the_environment",
        environment,
    );
    suite.add(
        "forwarder::child_command::nothing_leads_around_the_forwarder",
        nothing_leads_around,
    );
    suite.add(
        "forwarder::child_command::accepts_spellings_of_the_dsn",
        spellings,
    );
    suite.add(
        "forwarder::child_command::ignores_the_dsn_of_another_database",
        other_database,
    );
    suite.add(
        "forwarder::child_command::logs_before_the_driver_is_told",
        logs_before_the_driver,
    );
    suite.add("forwarder::child_command::forwards_signals", signals);
    suite.add_requiring(
        &[Requirement::PidNamespace],
        "forwarder::child_command::reaps_orphans_as_init",
        reaps_orphans,
    );
    suite.add("forwarder::child_command::runs_psql", psql);
    suite.add(
        "forwarder::child_command::reports_invalid_settings",
        invalid_settings,
    );
}

fn settings_with_quiet_log(tdx: &TdxFixture, fixture: &Fixture) -> Settings {
    tdx.forwarder_settings_to(fixture, "db.example:5433")
        .set("TEESQL_LOG", "warn")
}

fn sh(settings: &Settings, script: &str) -> Output {
    run(
        settings.forwarder_command(&["--", "sh", "-c", script]),
        TIMEOUT,
    )
}

fn exit_codes(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let socket = tdx.path("sock");
    fs::create_dir(&socket).expect("a folder");
    let settings = settings_with_quiet_log(&tdx, fixture).set("TEESQL_FORWARD_LISTEN", &socket);
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("test -S \"$PGHOST/.s.PGSQL.5432\"", 0),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let output = sh(&settings, script);
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
        let sockets = fs::read_dir(&socket).expect("a folder").count();
        assert_eq!(sockets, 0, "{script}: the socket was not removed");
    }
    let none = run(
        settings.forwarder_command(&["--", "/no/such/program"]),
        TIMEOUT,
    );
    assert_eq!(none.status.code(), Some(127));
    let stderr = lossy(&none.stderr);
    assert!(
        stderr.contains("/no/such/program: No such file or directory"),
        "{stderr}"
    );
    // A failed start leaves no socket either.
    let agent = settings
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &tdx.path("missing.sock"))
        .set("TEESQL_START_TIMEOUT", "200ms");
    assert_eq!(sh(&agent, "exit 0").status.code(), Some(69));
    assert_eq!(fs::read_dir(&socket).expect("a folder").count(), 0);
}

const VARIABLES: [&str; 7] = [
    "DATABASE_URL",
    "PGHOST",
    "PGPORT",
    "PGSSLMODE",
    "PGUSER",
    "PGPASSWORD",
    "PGDATABASE",
];

/// The variables in the environment of the command, with the port as `PORT`.
fn child_environment(settings: &Settings) -> Vec<String> {
    let output = sh(settings, "env");
    let text = lossy(&output.stdout);
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or("-").to_owned()
    };
    let port = value("PGPORT");
    VARIABLES
        .map(|name| value(name).replace(&port, "PORT"))
        .to_vec()
}

fn environment(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = settings_with_quiet_log(&tdx, fixture);
    let plain = "postgresql://127.0.0.1:PORT/?sslmode=disable";
    assert_eq!(
        child_environment(&settings),
        [plain, "127.0.0.1", "PORT", "disable", "-", "-", "-"]
    );
    // Role, password and database are kept with all their special characters. TLS settings are
    // replaced.
    let url = "postgres://a%40b:p%2Fw%3A%23%20%25@db.example:5433/my%20db?application_name=x%26y&sslmode=verify-full&sslrootcert=/ca.pem&channel_binding=require";
    let given = settings
        .clone()
        .without("TEESQL_TARGET")
        .set("DATABASE_URL", url)
        .set("PGSERVICE", "elsewhere")
        .set("PGHOSTADDR", "192.0.2.1")
        .set("PGSSLCERTMODE", "require")
        .set("PGCHANNELBINDING", "require")
        .set("PGREQUIREAUTH", "scram-sha-256");
    let local = "postgres://a%40b:p%2Fw%3A%23%20%25@127.0.0.1:PORT/my%20db?application_name=x%26y&sslmode=disable";
    assert_eq!(
        child_environment(&given),
        [
            local,
            "127.0.0.1",
            "PORT",
            "disable",
            "a@b",
            "p/w:# %",
            "my db"
        ]
    );
    let left = sh(
        &given,
        "env | grep -E '^PG(SERVICE|HOSTADDR|SSLCERT|CHANNEL|REQUIRE)'",
    );
    assert_eq!(
        lossy(&left.stdout),
        "PGREQUIREAUTH=scram-sha-256\n",
        "{left:?}"
    );
    // The user's own variables take precedence over the DSN.
    assert_eq!(
        child_environment(&given.clone().set("PGUSER", "me"))[4],
        "me"
    );
    let folder = tdx.path("s");
    fs::create_dir(&folder).expect("a folder");
    let local = format!("{folder}/.s.PGSQL.6543");
    let unix = child_environment(&given.set("TEESQL_FORWARD_LISTEN", &local));
    assert!(unix[0].starts_with("postgres://a%40b:"), "{unix:?}");
    assert!(unix[0].contains("@localhost:PORT/my%20db?"), "{unix:?}");
    let host = folder.replace('/', "%2F");
    assert!(
        unix[0].contains(&format!("&host={host}&sslmode=disable")),
        "{unix:?}"
    );
    assert_eq!(unix[1], folder);
}

/// With each of these URIs libpq would connect elsewhere if the forwarder only edited them. psql reads `DATABASE_URL` itself
/// here.
fn nothing_leads_around(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("non-blocking");
    let port = elsewhere.local_addr().expect("an address").port();
    let services = tdx.path("services.conf");
    fs::write(
        &services,
        format!("[elsewhere]\nhost=127.0.0.1\nport={port}\n"),
    )
    .expect("a file");
    let psql = "psql -XAtc 'select current_user' \"$DATABASE_URL\"";
    let run_with = |query: &str| {
        let url = format!(
            "postgresql://{}:{}@{}/via_scram?{query}",
            READER.0,
            READER.1,
            sidecar.address()
        );
        let settings = tdx
            .forwarder_settings(fixture)
            .set("TEESQL_TARGET", &sidecar.address().to_string())
            .set("DATABASE_URL", &url)
            .set("PGSERVICEFILE", &services);
        sh(&settings, psql)
    };
    for query in [
        format!("hostaddr=127.0.0.1&port={port}"),
        format!("%68ostaddr=127.0.0.1&%70ort={port}"),
        format!("hos%74=127.0.0.1&por%74={port}"),
        format!("host=127.0.0.1:{port}"),
        "sslcertmode=require&channel_binding=require".to_owned(),
        "gssencmode=require&sslnegotiation=direct&target_session_attrs=any".to_owned(),
    ] {
        let output = run_with(&query);
        assert_eq!(
            lossy(&output.stdout),
            "teesql_read\n",
            "{query}: {output:?}"
        );
    }
    for (query, text) in [
        ("service=elsewhere", "service= is not supported"),
        ("servic%65=elsewhere", "service= is not supported"),
        ("servicefile=/f", "servicefile= is not supported"),
        ("hostname=127.0.0.1", "hostname= is not a known parameter"),
        ("require_auth=none", "require_auth= excludes SCRAM-SHA-256"),
        (
            "dbname=host%3D127.0.0.1",
            "the name of the database has a =",
        ),
    ] {
        let output = run_with(query);
        let stderr = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{query}: {stderr}");
        assert!(stderr.contains(text), "{query}: {stderr}");
    }
    for (name, value) in [
        ("PGREQUIREAUTH", "gss"),
        ("PGDATABASE", "host=192.0.2.1 dbname=postgres"),
        ("PGDATABASE", "postgresql://192.0.2.1/postgres"),
    ] {
        let settings = tdx
            .forwarder_settings_to(fixture, sidecar.address())
            .set(name, value);
        let output = sh(&settings, "exit 0");
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(lossy(&output.stderr).contains(name), "{output:?}");
    }
    let attempt = elsewhere.accept().map(|(_, peer)| peer);
    assert!(
        attempt.is_err(),
        "a connection around the forwarder: {attempt:?}"
    );
}

fn spellings(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let (port, user, secret) = (sidecar.port(), READER.0, READER.1);
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let query = ["-XAtc", "select current_user, current_database()"];
    for url in [
        format!("postgresql://127.0.0.1:{port}/via_scram?user={user}&password={secret}"),
        format!("postgresql:///via_scram?host=127.0.0.1&port={port}&user={user}&password={secret}"),
        format!("postgresql://{user}:{secret}@127.0.0.1:{port}?dbname=via_scram"),
        format!("postgresql+psycopg://{user}:{secret}@127.0.0.1:{port}/via_scram"),
        format!("postgresql+asyncpg://{user}:{secret}@127.0.0.1:{port}/via_scram?ssl=require"),
        // As in libpq, the first server that can be used.
        format!("postgresql://{user}:{secret}@127.0.0.1:{closed},127.0.0.1:{port}/via_scram"),
    ] {
        let settings = tdx.forwarder_settings(fixture).set("DATABASE_URL", &url);
        let output = run(
            settings.forwarder_command(&["--", "psql", query[0], query[1]]),
            TIMEOUT * 2,
        );
        assert_eq!(
            lossy(&output.stdout),
            "teesql_read|via_scram\n",
            "{url}: {output:?}"
        );
    }
    // With a target, the server of the DSN may be a socket.
    let url = format!("postgresql://{user}:{secret}@/via_scram?host=/run/postgresql");
    let socket = tdx.forwarder_settings(fixture).set("DATABASE_URL", &url);
    let refused = sh(&socket, "exit 0");
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(
        lossy(&refused.stderr).contains("names a Unix socket"),
        "{refused:?}"
    );
    let socket = socket.set("TEESQL_TARGET", &sidecar.address().to_string());
    let output = sh(
        &socket,
        "psql -XAtc 'select current_user' \"$DATABASE_URL\"",
    );
    assert_eq!(lossy(&output.stdout), "teesql_read\n", "{output:?}");
}

fn other_database(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = settings_with_quiet_log(&tdx, fixture);
    let of_mysql = settings
        .clone()
        .set("DATABASE_URL", "mysql://u:p@db/app?ssl=1");
    let environment = child_environment(&of_mysql);
    assert_eq!(
        environment[..3],
        ["mysql://u:p@db/app?ssl=1", "127.0.0.1", "PORT"]
    );
    // Without a command the DSN is not used.
    for url in [
        "mysql://u@db/app",
        "host=db",
        "postgresql://db/app?service=elsewhere",
    ] {
        let forwarder = Forwarder::start(&settings.clone().set("DATABASE_URL", url));
        assert!(
            forwarder.dsn.starts_with("postgresql://127.0.0.1:"),
            "{url}"
        );
    }
    // With one, it would reach the command.
    let output = sh(&settings.set("DATABASE_URL", "host=db"), "exit 0");
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

/// On one terminal, the forwarder's line comes before the driver's error. Each attempt is a new process, so that the thread
/// that writes the log has to be woken up.
fn logs_before_the_driver(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let closed = ClosedPort::reserve();
    let settings = tdx
        .forwarder_settings_to(fixture, closed.address())
        .set("TEESQL_LOG", "warn");
    for attempt in 0..12 {
        let path = tdx.path(&format!("terminal-{attempt}"));
        let terminal = fs::File::create(&path).expect("a file");
        let mut command = settings.forwarder_command(&["--", "psql", "-Xc", "select 1"]);
        command.stdout(terminal.try_clone().expect("a descriptor"));
        command.stderr(terminal);
        let mut child = spawn(command).expect("the forwarder starts");
        wait(&mut child, TIMEOUT).expect("the forwarder exits");
        let text = fs::read_to_string(&path).expect("the output");
        let line = text.find("\"reason\":\"server_unreachable\"");
        let error = text.find("psql: error");
        assert!(line.is_some() && line < error, "{text}");
    }
}

fn signals(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for (which, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let ready = tdx.path(name);
        let script = format!("trap 'exit 9' {name}; touch {ready}; while :; do sleep 0.05; done");
        let mut command =
            settings_with_quiet_log(&tdx, fixture).forwarder_command(&["--", "sh", "-c", &script]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = spawn(command).expect("the forwarder starts");
        let is_ready = || fs::exists(&ready).unwrap_or(false).then_some(());
        poll_until(TIMEOUT, is_ready).expect("the command runs");
        signal(&child, which);
        let status = wait(&mut child, TIMEOUT).expect("the forwarder exits");
        assert_eq!(status.code(), Some(9), "{name}");
    }
}

/// As the first process of a container, which the kernel makes the parent of all orphans.
fn reaps_orphans(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = settings_with_quiet_log(&tdx, fixture);
    // The inner shells exit before their children, which are orphans then.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.1 &'; done; \
                  for i in $(seq 100); do sleep 0.05; \
                  cat /proc/[0-9]*/stat | grep -q '(sleep)' || break; done; \
                  cat /proc/[0-9]*/stat | grep ' Z ' || echo none";
    let inner = settings.forwarder_command(&["--", "sh", "-c", script]);
    let mut outer = pdeathsig_command("unshare", "KILL", None);
    outer
        .args(NEW_PID_NAMESPACE)
        .args(inner.get_args().skip_while(|a| *a != "--").skip(1));
    outer.env_clear();
    outer.envs(
        inner
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let output = run(outer, TIMEOUT);
    assert_eq!(lossy(&output.stdout), "none\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

/// A command with a DSN only.
fn psql(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let url = format!(
        "postgresql://{}:{}@{}/via_scram?sslmode=require",
        READER.0,
        READER.1,
        sidecar.address()
    );
    let settings = tdx.forwarder_settings(fixture).set("DATABASE_URL", &url);
    let command = [
        "--",
        "psql",
        "-XAtc",
        "select current_user, current_database()",
    ];
    let output = run(settings.forwarder_command(&command), TIMEOUT * 2);
    assert_eq!(
        lossy(&output.stdout),
        "teesql_read|via_scram\n",
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(0));
    // A process that outlives the command loses its connection, because the forwarder has ended.
    let pid_file = tdx.path("pid");
    // A reader sees locks of other sessions, but not their queries.
    let lock = std::process::id();
    let count = format!(
        "select count(*) from pg_locks where locktype = 'advisory' and objid = {lock} and granted"
    );
    // The command ends once its background process has a session.
    let script = format!(
        "psql -Xc 'select pg_sleep(3600) from pg_advisory_lock_shared({lock})' >/dev/null 2>&1 & echo $! >{pid_file}; \
         until [ \"$(psql -XAtc \"{count}\")\" = 1 ]; do sleep 0.05; done"
    );
    let output = run(
        settings.forwarder_command(&["--", "sh", "-c", &script]),
        TIMEOUT,
    );
    assert_eq!(output.status.code(), Some(0));
    let pid = fs::read_to_string(&pid_file).expect("a pid");
    let exited = || (!fs::exists(format!("/proc/{}", pid.trim())).unwrap_or(true)).then_some(());
    poll_until(TIMEOUT, exited).expect("psql exits without its server");
}

fn invalid_settings(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let base = tdx.forwarder_settings(fixture);
    let not_a_uri = "DATABASE_URL is not a URI: expected postgresql://user@host:5433/database";
    let target = "expected HOST:PORT, e.g. db.example:5433";
    for (name, value, text) in [
        (
            "DATABASE_URL",
            "host=db.example password=hunter2",
            not_a_uri,
        ),
        ("DATABASE_URL", "postgres:hunter2", not_a_uri),
        ("DATABASE_URL", "mysql://u:hunter2@h/d", not_a_uri),
        (
            "DATABASE_URL",
            "postgres:///hunter2",
            "DATABASE_URL names no host",
        ),
        ("TEESQL_TARGET", "db.example", target),
        ("TEESQL_TARGET", "db.example:0", target),
        ("TEESQL_TARGET", "::1:5433", target),
        ("TEESQL_TARGET", "[db.example]:x", target),
        ("TEESQL_TARGET", "", ""),
        (
            "TEESQL_FORWARD_LISTEN",
            "0.0.0.0:5432",
            "expected a loopback address",
        ),
        ("TEESQL_VERIFIER", "perhaps", "expected dcap, ita or none"),
        (
            "TEESQL_VERIFIER",
            "ita",
            "Intel Trust Authority API key required. Pass { apiKey } option",
        ),
        ("TEESQL_CLUSTER", "c.example", "manifest_signer"),
    ] {
        let settings = base.clone().set(name, value);
        let output = run(settings.forwarder_command(&[]), TIMEOUT);
        let stderr = lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{name}={value}: {stderr}");
        assert!(stderr.contains(text), "{name}={value}: {stderr}");
        assert!(!stderr.contains("hunter2"), "a secret in: {stderr}");
        assert_eq!(lossy(&output.stdout), "");
    }
    let output = run(base.forwarder_command(&[]), TIMEOUT);
    let stderr = lossy(&output.stderr);
    assert!(
        stderr.contains("no server: use --target, DATABASE_URL or --cluster"),
        "{stderr}"
    );
}
