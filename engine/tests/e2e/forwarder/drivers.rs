//! IoDriver, forwarder, sidecar, Postgres: what drivers do, end to end.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{SinkExt, TryStreamExt, stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::{Config, Error, NoTls};

use crate::harness::forwarder::Forwarder;
use crate::harness::process::{TIMEOUT, lossy, spawn, wait};
use crate::harness::suite::{Fixture, Requirement, Suite};
use crate::harness::tdx_fixture::{TdxFixture, told};
use crate::harness::{READ_SECRET, READWRITE_SECRET, WRONG_SECRET};

pub(crate) const READER: (&str, &str) = ("teesql_read", READ_SECRET);
pub(crate) const WRITER: (&str, &str) = ("teesql_readwrite", READWRITE_SECRET);

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::psql_and_pgbench", |fixture| {
        psql_and_pgbench(fixture, None);
    });
    suite.add("forward::over_a_unix_socket", over_a_unix_socket);
    suite.add("forward::copy_and_large_results", copy);
    suite.add("forward::cancel", cancel);
    suite.add("forward::tokio_postgres", tokio);
    suite.add_requiring(&[Requirement::Psycopg], "forward::psycopg", psycopg);
}

/// A forwarder to a sidecar of its own.
pub(crate) struct Way {
    pub(crate) forwarder: Forwarder,
    pub(crate) sidecar: crate::harness::sidecar::Sidecar,
    pub(crate) tdx: TdxFixture,
}

impl Way {
    pub(crate) fn open(fixture: &Fixture, more: &[(&'static str, &str)]) -> Self {
        let tdx = TdxFixture::new();
        let sidecar = tdx.sidecar(fixture);
        let mut settings = tdx.settings_to(fixture, sidecar.address());
        for (name, value) in more {
            settings = settings.set(name, value);
        }
        Self {
            forwarder: Forwarder::start(&settings),
            sidecar,
            tdx,
        }
    }
}

fn psql_and_pgbench(fixture: &Fixture, listen: Option<&str>) {
    let listen = listen.map(|listen| ("TEESQL_FORWARD_LISTEN", listen));
    let more: Vec<_> = [("TEESQL_SHARDS", "2")].into_iter().chain(listen).collect();
    let way = Way::open(fixture, &more);
    let rest = way.forwarder.sockets_at_rest();
    assert_eq!(way.forwarder.ask(READER), "1\n");
    // The sidecar's own refusal passes through.
    let said = way.forwarder.ask((READER.0, WRONG_SECRET));
    assert!(
        said.contains("FATAL:  authentication_failed: password authentication failed"),
        "{said}"
    );
    let database = fixture.harness.unique_name("forwarded");
    fixture.cluster().create_database(&database);
    let bench = |who, arguments: &str| {
        let mut bench = way.forwarder.client("pgbench", who);
        bench
            .env("PGDATABASE", &database)
            .args(arguments.split(' '));
        told(bench)
    };
    bench(WRITER, "-i -q -s 1");
    for mode in ["simple", "extended", "prepared"] {
        let said = bench(READER, &format!("-n -S -M {mode} -c 8 -j 2 -t 100"));
        assert!(said.contains("actually processed: 800/800"), "{said}");
        assert!(said.contains("failed transactions: 0"), "{said}");
    }
    let said = bench(WRITER, "-n -M prepared -c 4 -t 25");
    assert!(said.contains("actually processed: 100/100"), "{said}");
    let said = bench(READER, "-n -S -C -c 4 -t 10");
    assert!(said.contains("actually processed: 40/40"), "{said}");
    fixture.cluster().drop_database(&database);
    // Nothing of all those connections is left.
    way.forwarder.await_sockets(rest);
}

fn over_a_unix_socket(fixture: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    psql_and_pgbench(fixture, Some(path));
    assert!(!folder.path().join("missing").exists());
}

fn copy(fixture: &Fixture) {
    const ROWS: &str = "select repeat(md5(n::text), 32) from generate_series(1, 10000) n";
    let way = Way::open(fixture, &[]);
    let direct = fixture
        .cluster()
        .sql("via_scram", &format!("copy ({ROWS}) to stdout"))
        + "\n";
    assert!(direct.len() > 10_000_000);
    let psql = |who, arguments: &[&str]| {
        let mut psql = way.forwarder.client("psql", who);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        psql.args(arguments);
        told(psql)
    };
    let out = psql(READER, &["-c", &format!("copy ({ROWS}) to stdout")]);
    assert!(out == direct, "COPY out came back changed");
    let file = way.tdx.path("rows");
    fs::write(&file, &direct).expect("a file");
    let table = fixture.harness.unique_name("copied");
    let create = format!("create table {table} (row text)");
    psql(
        WRITER,
        &["-c", &create, "-c", &format!("\\copy {table} from {file}")],
    );
    let stored = format!("select count(*), sum(length(row)) from {table}");
    assert_eq!(psql(READER, &["-c", &stored]), "10000|10240000\n");
    assert!(
        psql(READER, &["-c", ROWS]) == direct,
        "the result came back changed"
    );
    let row = "select length(repeat(md5('x'), 1000000)), repeat(md5('x'), 1000000)";
    let row = psql(READER, &["-c", row]);
    assert_eq!(row.len(), "32000000|\n".len() + 32_000_000);
}

/// psql 15 cancels by a second connection: in plaintext to the forwarder, in TLS
/// to the sidecar.
fn cancel(fixture: &Fixture) {
    let way = Way::open(fixture, &[("TEESQL_SHARDS", "2")]);
    let rest = way.forwarder.sockets_at_rest();
    let marker = fixture.harness.unique_name("cancelled");
    let mut psql = way.forwarder.client("psql", READER);
    psql.args(["-X", "-c", &format!("select pg_sleep(3600) as {marker}")]);
    psql.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut psql = spawn(psql).expect("psql starts");
    let asleep = format!(
        "select wait_event from pg_stat_activity where query like '%as {marker}' and usename = 'teesql_read'"
    );
    fixture.cluster().await_result(&asleep, "PgSleep");
    let pid = Pid::from_raw(i32::try_from(psql.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("psql runs");
    let status = wait(&mut psql, TIMEOUT).expect("psql ends");
    let said = lossy(&psql.wait_with_output().expect("psql ended").stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("ERROR:  canceling statement due to user request"),
        "{said}"
    );
    way.forwarder.await_reason("cancel_forwarded");
    way.forwarder.await_sockets(rest);
}

fn tokio(fixture: &Fixture) {
    let way = Way::open(fixture, &[("TEESQL_SHARDS", "2")]);
    let rest = way.forwarder.sockets_at_rest();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let trial = async { tokio::time::timeout(TIMEOUT * 4, session(&way.forwarder)).await };
    let outcome = runtime.block_on(trial).expect("in time");
    outcome.unwrap_or_else(|e| panic!("{e}: {:?}", e.as_db_error()));
    drop(runtime);
    way.forwarder.await_sockets(rest);
}

async fn connect(config: &Config) -> Result<tokio_postgres::Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn session(forwarder: &Forwarder) -> Result<(), Error> {
    let (host, port) = forwarder.place();
    let mut config = Config::new();
    config.host(host).port(port).dbname("via_scram");
    config.user(WRITER.0).password(WRITER.1);
    let client = connect(&config).await?;
    // A pipeline, COPY both ways, a cancel; then a hundred at once.
    let (a, b) = futures_util::future::try_join(
        client.query_one("select 1::int4", &[]),
        client.query_one("select 'two'", &[]),
    )
    .await?;
    assert_eq!((a.get::<_, i32>(0), b.get::<_, &str>(0)), (1, "two"));
    client.batch_execute("create temp table t (a text)").await?;
    let sink = client.copy_in("copy t from stdin").await?;
    let piece = bytes_of("0123456789abcdef\n".repeat(4096));
    let mut pieces = stream::iter((0..160).map(|_| Ok::<_, Error>(piece.clone())));
    let mut sink = std::pin::pin!(sink);
    sink.send_all(&mut pieces).await?;
    assert_eq!(sink.finish().await?, 160 * 4096);
    let back = client.copy_out("copy t to stdout").await?;
    let back: Vec<_> = back.try_collect().await?;
    let length: usize = back.iter().map(|part| part.len()).sum();
    assert_eq!(length, 160 * 4096 * 17);
    let token = client.cancel_token();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) =
        futures_util::future::join(client.batch_execute("select pg_sleep(3600)"), cancel).await;
    cancelled?;
    let code = slept.expect_err("cancelled").code().cloned();
    assert_eq!(code, Some(tokio_postgres::error::SqlState::QUERY_CANCELED));
    let all = try_join_all((0..100).map(|_| connect(&config))).await?;
    let asked = all
        .iter()
        .map(|client| client.query_one("select 1::int4", &[]));
    let rows = try_join_all(asked).await?;
    assert_eq!(
        rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>(),
        100
    );
    Ok(())
}

fn bytes_of(text: String) -> std::io::Cursor<Vec<u8>> {
    std::io::Cursor::new(text.into_bytes())
}

/// psycopg's own libpq (18): protocol 3.2, PQcancelBlocking, pipelines.
const SCRIPT: &str = r#"
import os, threading, time, psycopg
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as c:
    assert not c.pgconn.ssl_in_use
    assert c.execute("select current_user").fetchone() == ("teesql_readwrite",)
    with c.pipeline():
        cursors = [c.execute("select %s::int", (n,)) for n in range(100)]
    assert [k.fetchone()[0] for k in cursors] == list(range(100))
    data = os.urandom(5_000_000)
    assert c.execute("select %b", (data,)).fetchone()[0] == data
    with c.cursor() as k:
        k.execute("create temp table t (b bytea)")
        with k.copy("copy t (b) from stdin (format binary)") as copy:
            copy.set_types(["bytea"])
            for _ in range(2): copy.write_row((data,))
        with k.copy("copy t to stdout (format binary)") as copy:
            copy.set_types(["bytea"])
            assert [row[0] for row in copy.rows()] == [data, data]
    threading.Timer(0.1, c.cancel_safe).start()
    try:
        c.execute("select pg_sleep(3600)")
    except psycopg.errors.QueryCanceled:
        pass
    else:
        raise AssertionError("not cancelled")
    try:
        psycopg.connect(os.environ["DATABASE_URL"], sslmode="require")
    except psycopg.OperationalError as e:
        assert "server does not support SSL" in str(e), e
    else:
        raise AssertionError("there is no TLS here")
print("done")
"#;

fn psycopg(fixture: &Fixture) {
    let way = Way::open(fixture, &[]);
    let python = std::env::var("TEESQL_TEST_PYTHON").expect("the trial needs it");
    let mut script = way.forwarder.client(&python, WRITER);
    let (host, port) = way.forwarder.place();
    let url = format!(
        "postgresql://{}:{}@{host}:{port}/via_scram?sslmode=disable",
        WRITER.0, WRITER.1
    );
    script.env("DATABASE_URL", url).args(["-B", "-c", SCRIPT]);
    assert_eq!(told(script), "done\n");
}
