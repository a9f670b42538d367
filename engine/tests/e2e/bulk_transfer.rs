//! A gigabyte each way, and single rows of 200 MB, compared by checksum.

use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use crate::harness::message::query;
use crate::harness::process::{run_successfully, spawn, wait};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{READ_SECRET, READWRITE_SECRET};
use crate::libpq_clients::client;

/// How long a gigabyte may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(240);

/// 1 GiB in rows of 1,920 characters and a newline, below the size from which
/// Postgres would compress them. Each row has a pattern of its own: a piece that
/// is lost, doubled or swapped shows.
const ROWS: &str = "select repeat(md5(n::text), 60) from generate_series(1, 559000) n";

/// One row of 200 MiB.
const ROW: &str =
    "select string_agg(repeat(md5(n::text), 100), '') from generate_series(1, 65536) n";

/// What `md5sum` says of them when Postgres is asked without the sidecar.
static ROWS_SUM: OnceLock<String> = OnceLock::new();
static ROW_SUM: OnceLock<String> = OnceLock::new();

pub(crate) fn add(suite: &mut Suite) {
    suite.add("bulk::copy_1_gb_out", |fixture| {
        out(fixture, ROWS, &ROWS_SUM)
    });
    suite.add("bulk::copy_1_gb_in", copy_in);
    suite.add("bulk::row_of_200_mb_out", |fixture| {
        out(fixture, ROW, &ROW_SUM)
    });
    suite.add("bulk::row_of_200_mb_in", row_in);
}

fn to_md5sum(what: &str) -> [String; 2] {
    [
        "-c".to_owned(),
        format!("\\copy ({what}) to program 'md5sum'"),
    ]
}

fn direct(fixture: &Fixture, what: &str, sum: &'static OnceLock<String>) -> &'static str {
    sum.get_or_init(|| {
        let mut psql = fixture.cluster().psql("via_scram");
        psql.args(to_md5sum(what));
        run_successfully(psql, TIMEOUT)
    })
}

fn out(fixture: &Fixture, what: &str, sum: &'static OnceLock<String>) {
    let reader = ("teesql_read", READ_SECRET);
    let mut psql = client(fixture, &fixture.sidecar(), "psql", reader, "via_scram");
    psql.args(["-X", "-q"]).args(to_md5sum(what));
    assert_eq!(run_successfully(psql, TIMEOUT), direct(fixture, what, sum));
}

fn copy_in(fixture: &Fixture) {
    let table = fixture.harness.unique_name("bulk");
    let writer = ("teesql_readwrite", READWRITE_SECRET);
    let mut source = fixture.cluster().psql("via_scram");
    source
        .args(["-c", &format!("copy ({ROWS}) to stdout")])
        .stdout(Stdio::piped());
    let mut source = spawn(source).expect("psql starts");
    let mut sink = client(fixture, &fixture.sidecar(), "psql", writer, "via_scram");
    sink.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    sink.args(["-c", &format!("create unlogged table {table} (row text)")]);
    sink.args(["-c", &format!("copy {table} from stdin")]);
    sink.stdin(source.stdout.take().expect("a pipe"));
    run_successfully(sink, TIMEOUT);
    assert!(wait(&mut source, TIMEOUT).expect("it ends").success());

    let mut back = fixture.cluster().psql("via_scram");
    back.args(["-c", "set synchronize_seqscans = off"]);
    back.args(to_md5sum(&format!("select row from {table}")));
    let stored = run_successfully(back, TIMEOUT);
    fixture
        .cluster()
        .sql("via_scram", &format!("drop table {table}"));
    assert_eq!(stored, direct(fixture, ROWS, &ROWS_SUM));
}

/// One message of 200 MB from the client, and its checksum by Postgres.
fn row_in(fixture: &Fixture) {
    const PIECE: &str = "0123456789abcdefghijklmnopqrstuv";
    const TIMES: usize = 6_553_600;
    let mut client = fixture.client(fixture.sidecar().address());
    client
        .login("teesql_readwrite", "via_scram", READWRITE_SECRET)
        .expect("the login succeeds");
    let literal = PIECE.repeat(TIMES);
    let sql = format!("select md5('{literal}') = md5(repeat('{PIECE}', {TIMES}))");
    client.send(&query(&sql));
    client.expect(b'T');
    assert_eq!(client.expect(b'D').columns(), [Some("t".to_owned())]);
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}
