//! Tests of client libraries and tools that connect to Postgres through forwarder and sidecar.

use std::fs;
use std::process::Command;

use futures_util::future::try_join_all;
use futures_util::{SinkExt, TryStreamExt, stream};
use tokio_postgres::{Config, Error, NoTls};

use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::libpq::{self, PSQL_BARE};
use crate::harness::process::{TIMEOUT, block_on, run_successfully};
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READER, WRITER, WRONG_SECRET};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forwarder::drivers::psql_and_pgbench", |fixture| {
        psql_and_pgbench(fixture, None);
    });
    suite.add("forwarder::drivers::unix_socket", unix_socket);
    suite.add("forwarder::drivers::copy_and_large_results", copy);
    suite.add("forwarder::drivers::cancel", cancel);
    suite.add("forwarder::drivers::tokio_postgres", tokio_postgres_session);
    suite.add_requiring(
        &[Requirement::Psycopg],
        "forwarder::drivers::psycopg",
        psycopg,
    );
}

/// A forwarder and the sidecar that it connects to.
pub(crate) struct ForwarderAndSidecar {
    pub(crate) forwarder: Forwarder,
    pub(crate) sidecar: crate::harness::sidecar::Sidecar,
    pub(crate) tdx: TdxFixture,
}

impl ForwarderAndSidecar {
    pub(crate) fn start(fixture: &Fixture, extra: &[(&'static str, &str)]) -> Self {
        let tdx = TdxFixture::new();
        let sidecar = tdx.start_attested_sidecar(fixture);
        let mut settings = tdx.forwarder_settings_to(fixture, sidecar.address());
        for (name, value) in extra {
            settings = settings.set(name, value);
        }
        Self {
            forwarder: Forwarder::start(&settings),
            sidecar,
            tdx,
        }
    }
}

/// Runs `command` with a timeout for a busy machine, and returns its standard output.
fn run_client(command: Command) -> String {
    run_successfully(command, TIMEOUT * 4)
}

fn psql_and_pgbench(fixture: &Fixture, listen: Option<&str>) {
    let listen = listen.map(|listen| ("TEESQL_FORWARD_LISTEN", listen));
    let extra: Vec<_> = [("TEESQL_SHARDS", "2")].into_iter().chain(listen).collect();
    let pair = ForwarderAndSidecar::start(fixture, &extra);
    let (host, _) = pair.forwarder.host_and_port();
    assert_eq!(host, listen.map_or("127.0.0.1", |(_, folder)| folder));
    let sockets = pair.forwarder.settled_sockets();
    pair.forwarder.assert_reader_connects();
    // The driver sees the refusal by the sidecar.
    let output = pair.forwarder.psql_select_1((READER.0, WRONG_SECRET));
    assert!(
        output.contains("FATAL:  authentication_failed: password authentication failed"),
        "{output}"
    );
    let database = fixture.harness.unique_name("forwarded");
    fixture.cluster().create_database(&database);
    let bench = |credentials, arguments: &str| {
        let mut bench = pair.forwarder.client("pgbench", credentials);
        bench
            .env("PGDATABASE", &database)
            .args(arguments.split(' '));
        run_client(bench)
    };
    bench(WRITER, "-i -q -s 1");
    for mode in ["simple", "extended", "prepared"] {
        let output = bench(READER, &format!("-n -S -M {mode} -c 8 -j 2 -t 100"));
        assert!(output.contains("actually processed: 800/800"), "{output}");
        assert!(output.contains("failed transactions: 0"), "{output}");
    }
    let output = bench(WRITER, "-n -M prepared -c 4 -t 25");
    assert!(output.contains("actually processed: 100/100"), "{output}");
    let output = bench(READER, "-n -S -C -c 4 -t 10");
    assert!(output.contains("actually processed: 40/40"), "{output}");
    fixture.cluster().drop_database(&database);
    // All of these connections have been closed.
    pair.forwarder.await_sockets(sockets);
}

fn unix_socket(fixture: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    psql_and_pgbench(fixture, Some(path));
}

fn copy(fixture: &Fixture) {
    const ROWS: &str = "select repeat(md5(n::text), 32) from generate_series(1, 10000) n";
    let pair = ForwarderAndSidecar::start(fixture, &[]);
    let direct = fixture
        .cluster()
        .sql("via_scram", &format!("copy ({ROWS}) to stdout"))
        + "\n";
    assert!(direct.len() > 10_000_000);
    let psql = |credentials, arguments: &[&str]| {
        let mut psql = pair.forwarder.client("psql", credentials);
        psql.args(PSQL_BARE);
        psql.args(arguments);
        run_client(psql)
    };
    let out = psql(READER, &["-c", &format!("copy ({ROWS}) to stdout")]);
    assert!(out == direct, "COPY returned different data");
    let file = pair.tdx.path("rows");
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
        "the result has changed"
    );
    let row = "select length(repeat(md5('x'), 1000000)), repeat(md5('x'), 1000000)";
    let row = psql(READER, &["-c", row]);
    assert_eq!(row.len(), "32000000|\n".len() + 32_000_000);
}

/// psql 15 sends a CancelRequest on a second connection, in plaintext to the forwarder, which sends
/// it in TLS to the sidecar.
fn cancel(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[("TEESQL_SHARDS", "2")]);
    let sockets = pair.forwarder.settled_sockets();
    let psql = pair.forwarder.client("psql", READER);
    let marker = fixture.harness.unique_name("cancelled");
    libpq::assert_ctrl_c_cancels(fixture.cluster(), psql, &marker);
    pair.forwarder.await_reason("cancel_forwarded");
    pair.forwarder.await_sockets(sockets);
}

fn tokio_postgres_session(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[("TEESQL_SHARDS", "2")]);
    let sockets = pair.forwarder.settled_sockets();
    let marker = fixture.harness.unique_name("sleep");
    let sleep = format!("select pg_sleep(3600) as {marker}");
    let outcome = block_on(TIMEOUT * 4, tokio_postgres_queries(&pair.forwarder, &sleep));
    outcome.unwrap_or_else(|e| panic!("{e}: {:?}", e.as_db_error()));
    pair.forwarder.await_sockets(sockets);
}

async fn connect(config: &Config) -> Result<tokio_postgres::Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// `sleep` is a query that sleeps, with a marker that no other query has.
async fn tokio_postgres_queries(forwarder: &Forwarder, sleep: &str) -> Result<(), Error> {
    let (host, port) = forwarder.host_and_port();
    let mut config = Config::new();
    config.host(host).port(port).dbname("via_scram");
    config.user(WRITER.0).password(WRITER.1);
    let client = connect(&config).await?;
    // A pipeline, COPY in both directions, a cancel, then 100 connections at the same time.
    let (a, b) = futures_util::future::try_join(
        client.query_one("select 1::int4", &[]),
        client.query_one("select 'two'", &[]),
    )
    .await?;
    assert_eq!((a.get::<_, i32>(0), b.get::<_, &str>(0)), (1, "two"));
    client.batch_execute("create temp table t (a text)").await?;
    let sink = client.copy_in("copy t from stdin").await?;
    let chunk = bytes_of("0123456789abcdef\n".repeat(4096));
    let mut chunks = stream::iter((0..160).map(|_| Ok::<_, Error>(chunk.clone())));
    let mut sink = std::pin::pin!(sink);
    sink.send_all(&mut chunks).await?;
    assert_eq!(sink.finish().await?, 160 * 4096);
    let back = client.copy_out("copy t to stdout").await?;
    let back: Vec<_> = back.try_collect().await?;
    let length: usize = back.iter().map(|part| part.len()).sum();
    assert_eq!(length, 160 * 4096 * 17);
    let token = client.cancel_token();
    let cancel = async {
        // A role sees the queries of its own sessions only.
        let observer = connect(&config).await?;
        let sleeping =
            "select count(*) from pg_stat_activity where query = $1 and wait_event = 'PgSleep'";
        while observer
            .query_one(sleeping, &[&sleep])
            .await?
            .get::<_, i64>(0)
            == 0
        {
            tokio::task::yield_now().await;
        }
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = futures_util::future::join(client.batch_execute(sleep), cancel).await;
    cancelled?;
    let code = slept.expect_err("cancelled").code().cloned();
    assert_eq!(code, Some(tokio_postgres::error::SqlState::QUERY_CANCELED));
    let all = try_join_all((0..100).map(|_| connect(&config))).await?;
    let queries = all
        .iter()
        .map(|client| client.query_one("select 1::int4", &[]));
    let rows = try_join_all(queries).await?;
    assert_eq!(
        rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>(),
        100
    );
    Ok(())
}

fn bytes_of(text: String) -> std::io::Cursor<Vec<u8>> {
    std::io::Cursor::new(text.into_bytes())
}

/// Uses psycopg's own libpq (18): protocol 3.2, PQcancelBlocking, pipelines.
const SCRIPT: &str = r#"
import os, threading, psycopg
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
    def cancel():
        waiting = "select wait_event from pg_stat_activity where pid = %s"
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as observer:
            while observer.execute(waiting, [c.info.backend_pid]).fetchone() != ("PgSleep",):
                pass
        c.cancel_safe()
    threading.Thread(target=cancel).start()
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
        raise AssertionError("the forwarder does not support TLS")
print("done")
"#;

fn psycopg(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(fixture, &[]);
    let python = std::env::var("TEESQL_TEST_PYTHON").expect("the test requires it");
    let mut script = pair.forwarder.client(&python, WRITER);
    let (host, port) = pair.forwarder.host_and_port();
    let url = format!(
        "postgresql://{}:{}@{host}:{port}/via_scram?sslmode=disable",
        WRITER.0, WRITER.1
    );
    script.env("DATABASE_URL", url).args(["-B", "-c", SCRIPT]);
    assert_eq!(run_client(script), "done\n");
}
