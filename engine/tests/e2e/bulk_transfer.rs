//! Tests of transfers of a gigabyte, and of single messages of 200 MB, in each direction. Checksums
//! are compared.

use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use crate::harness::fixture::Fixture;
use crate::harness::message::query;
use crate::harness::process::{run_successfully, spawn, wait};
use crate::harness::suite::Suite;
use crate::harness::{READER, WRITER};
use crate::libpq_clients::client;

/// How long a gigabyte may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(240);

/// 1 GiB in rows of 1,920 characters and a newline, which is too short for Postgres to compress
/// them. All rows differ, so that the checksum detects lost, duplicated and swapped data.
const ROWS: &str = "select repeat(md5(n::text), 60) from generate_series(1, 559000) n";

/// One row of 200 MiB.
const ROW: &str =
    "select string_agg(repeat(md5(n::text), 100), '') from generate_series(1, 65536) n";

/// The checksums of the two when they are read from Postgres directly.
static ROWS_CHECKSUM: OnceLock<String> = OnceLock::new();
static ROW_CHECKSUM: OnceLock<String> = OnceLock::new();

pub(crate) fn add(suite: &mut Suite) {
    suite.add("bulk_transfer::copies_1_gb_out", |fixture| {
        copy_out(fixture, ROWS, &ROWS_CHECKSUM)
    });
    suite.add("bulk_transfer::copies_1_gb_in", copy_in);
    suite.add("bulk_transfer::returns_row_of_200_mb", |fixture| {
        copy_out(fixture, ROW, &ROW_CHECKSUM)
    });
    suite.add("bulk_transfer::accepts_query_of_200_mb", query_of_200_mb);
}

fn copy_to_md5sum(query: &str) -> [String; 2] {
    [
        "-c".to_owned(),
        format!("\\copy ({query}) to program 'md5sum'"),
    ]
}

fn direct_checksum(
    fixture: &Fixture,
    query: &str,
    checksum: &'static OnceLock<String>,
) -> &'static str {
    checksum.get_or_init(|| {
        let mut psql = fixture.cluster().psql("via_scram");
        psql.args(copy_to_md5sum(query));
        run_successfully(psql, TIMEOUT)
    })
}

fn copy_out(fixture: &Fixture, query: &str, checksum: &'static OnceLock<String>) {
    let mut psql = client(fixture, &fixture.sidecar(), "psql", READER, "via_scram");
    psql.args(["-X", "-q"]).args(copy_to_md5sum(query));
    assert_eq!(
        run_successfully(psql, TIMEOUT),
        direct_checksum(fixture, query, checksum)
    );
}

fn copy_in(fixture: &Fixture) {
    let table = fixture.harness.unique_name("bulk");
    let mut source = fixture.cluster().psql("via_scram");
    source
        .args(["-c", &format!("copy ({ROWS}) to stdout")])
        .stdout(Stdio::piped());
    let mut source = spawn(source).expect("psql starts");
    let mut sink = client(fixture, &fixture.sidecar(), "psql", WRITER, "via_scram");
    sink.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    sink.args(["-c", &format!("create unlogged table {table} (row text)")]);
    sink.args(["-c", &format!("copy {table} from stdin")]);
    sink.stdin(source.stdout.take().expect("a pipe"));
    run_successfully(sink, TIMEOUT);
    assert!(wait(&mut source, TIMEOUT).expect("psql exits").success());

    let mut back = fixture.cluster().psql("via_scram");
    back.args(["-c", "set synchronize_seqscans = off"]);
    back.args(copy_to_md5sum(&format!("select row from {table}")));
    let stored = run_successfully(back, TIMEOUT);
    fixture
        .cluster()
        .sql("via_scram", &format!("drop table {table}"));
    assert_eq!(stored, direct_checksum(fixture, ROWS, &ROWS_CHECKSUM));
}

/// Sends one message of 200 MB, of which Postgres computes the checksum.
fn query_of_200_mb(fixture: &Fixture) {
    const PATTERN: &str = "0123456789abcdefghijklmnopqrstuv";
    const TIMES: usize = 6_553_600;
    let mut client = fixture.client(fixture.sidecar().address());
    client
        .login(WRITER.0, "via_scram", WRITER.1)
        .expect("the login succeeds");
    let literal = PATTERN.repeat(TIMES);
    let sql = format!("select md5('{literal}') = md5(repeat('{PATTERN}', {TIMES}))");
    client.send(&query(&sql));
    client.expect(b'T');
    assert_eq!(client.expect(b'D').columns(), [Some("t".to_owned())]);
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}
