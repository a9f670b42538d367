//! Tests of Debian's libpq clients: psql, pgbench, pg_dump and pg_restore.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::fixture::Fixture;
use crate::harness::libpq::PSQL_BARE;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully, spawn};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{
    Credentials, PasswordEncryption, READ_SECRET, READER, SUPERUSER, WRITER, WRONG_SECRET, libpq,
};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("psql::connects_as_every_role", every_role);
    suite.add(
        "psql::verifies_the_server_and_refuses_plaintext",
        verify_full_and_plaintext,
    );
    suite.add("psql::large_objects", large_objects);
    suite.add("psql::listen_notify", listen_notify);
    suite.add("psql::copy_and_errors", copy_and_errors);
    suite.add("psql::ctrl_c_cancels_in_plaintext", ctrl_c);
    suite.add("pgbench::every_query_protocol", pgbench);
    suite.add("pg_dump::dump_and_restore", dump_and_restore);
}

/// `program` with a connection to the sidecar in libpq's environment.
pub(crate) fn client(
    fixture: &Fixture,
    sidecar: &Sidecar,
    program: &str,
    credentials: Credentials<'_>,
    database: &str,
) -> Command {
    let ca = &fixture.harness.certificates.ca;
    libpq::verify_full_command(program, sidecar.port(), credentials, database, ca)
}

/// A psql that stops at the first error and prints bare values.
fn psql(fixture: &Fixture, credentials: Credentials<'_>, database: &str) -> Command {
    let mut psql = client(fixture, &fixture.sidecar(), "psql", credentials, database);
    psql.args(PSQL_BARE);
    psql
}

fn every_role(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
        for credentials in [READER, WRITER, SUPERUSER, (READER.0, WRITER.1)] {
            let mut psql = client(fixture, &sidecar, "psql", credentials, "via_scram");
            psql.args(["-X", "-A", "-t", "-c", "select current_user"]);
            assert_eq!(run_successfully(psql, TIMEOUT).trim(), credentials.0);
        }
        for (role, secret) in [
            (READER.0, WRONG_SECRET),
            (WRITER.0, READ_SECRET),
            ("unknown_role", WRITER.1),
            (SUPERUSER.0, READ_SECRET),
        ] {
            let mut psql = client(fixture, &sidecar, "psql", (role, secret), "via_scram");
            psql.args(["-X", "-c", "select 1"]);
            let output = run(psql, TIMEOUT);
            let text = lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{role}: {text}");
            let refusal = "FATAL:  authentication_failed: password authentication failed";
            assert_eq!(text.lines().count(), 1, "{role}: {text}");
            assert!(text.trim_end().ends_with(refusal), "{role}: {text}");
        }
    }
}

fn verify_full_and_plaintext(fixture: &Fixture) {
    let mut encrypted = psql(fixture, READER, "via_scram");
    encrypted.args(["-c", "\\conninfo"]);
    let text = run_successfully(encrypted, TIMEOUT);
    assert!(text.contains("TLSv1.3"), "{text}");

    // libpq requests GSS encryption first where it can.
    for mode in ["prefer", "disable"] {
        let mut gss = psql(fixture, READER, "via_scram");
        gss.env("PGGSSENCMODE", mode).args(["-c", "select 1"]);
        assert_eq!(run_successfully(gss, TIMEOUT), "1\n", "gssencmode={mode}");
    }
    let mut plain = psql(fixture, READER, "via_scram");
    plain.env("PGSSLMODE", "disable").args(["-c", "select 1"]);
    let output = run(plain, TIMEOUT);
    let text = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("FATAL:  TLS is required: this server takes no plaintext"),
        "{text}"
    );
    assert!(
        text.contains("HINT:  Connect with sslmode=require or stronger."),
        "{text}"
    );

    let mut wrong_name = psql(fixture, READER, "via_scram");
    wrong_name
        .env("PGHOST", "elsewhere")
        .args(["-c", "select 1"]);
    let text = lossy(&run(wrong_name, TIMEOUT).stderr);
    assert!(
        text.contains("does not match host name \"elsewhere\""),
        "{text}"
    );
}

fn large_objects(fixture: &Fixture) {
    let source = fixture.harness.unique_path("large");
    let back = fixture.harness.unique_path("large");
    let bytes: Vec<u8> = (0..5_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(&source, &bytes).expect("a file");
    let mut import = psql(fixture, WRITER, "via_scram");
    import.args([
        "-c",
        &format!("\\lo_import {}", source.display()),
        "-c",
        "\\echo :LASTOID",
    ]);
    let text = run_successfully(import, TIMEOUT * 2);
    let oid = text.split_whitespace().last().expect("an OID").to_owned();
    let mut export = psql(fixture, WRITER, "via_scram");
    export.args([
        "-c",
        &format!("\\lo_export {oid} {}", back.display()),
        "-c",
        &format!("\\lo_unlink {oid}"),
    ]);
    run_successfully(export, TIMEOUT * 2);
    assert!(
        fs::read(&back).expect("a file") == bytes,
        "the large object came back changed"
    );
}

fn listen_notify(fixture: &Fixture) {
    let channel = fixture.harness.unique_name("channel");
    let mut listener = psql(fixture, READER, "via_scram");
    listener
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut listener = spawn(listener).expect("psql starts");
    let mut input = listener.stdin.take().expect("a pipe");
    // Once the statement after LISTEN is done, the session listens.
    let marker = format!("select 1 as {channel};");
    write!(input, "\\o /dev/null\nlisten {channel};\n{marker}\n").expect("psql reads");
    let listening = format!(
        "select count(*) from pg_stat_activity where state = 'idle' and query = '{marker}'"
    );
    fixture.cluster().await_result(&listening, "1");
    let mut notifier = psql(fixture, WRITER, "via_scram");
    notifier.args(["-c", &format!("notify {channel}, 'hello through TLS'")]);
    run_successfully(notifier, TIMEOUT);
    writeln!(input, "\\o\nselect 1;").expect("psql reads");
    drop(input);
    let output = listener.wait_with_output().expect("psql ends");
    let text = lossy(&output.stdout);
    let wanted = format!(
        "Asynchronous notification \"{channel}\" with payload \"hello through TLS\" received"
    );
    assert!(text.contains(&wanted), "{text}{}", lossy(&output.stderr));
}

fn copy_and_errors(fixture: &Fixture) {
    let table = fixture.harness.unique_name("copied");
    let file = fixture.harness.unique_path("rows");
    let rows: String = (0..100_000).map(|n| format!("{n}\tzeile {n}\n")).collect();
    fs::write(&file, &rows).expect("a file");
    let mut load = psql(fixture, WRITER, "via_scram");
    load.args(["-c", &format!("create table {table} (a int, b text)")]);
    load.args(["-c", &format!("\\copy {table} from {}", file.display())]);
    run_successfully(load, TIMEOUT);
    let mut read = psql(fixture, READER, "via_scram");
    read.args([
        "-c",
        &format!("\\copy (select * from {table} order by a) to stdout"),
    ]);
    assert!(
        run_successfully(read, TIMEOUT) == rows,
        "COPY returned different data"
    );
    let bad = format!("printf '1\\tgood\\nbad\\tbad\\n' | psql -X -c 'copy {table} from stdin'");
    let mut shell = client(fixture, &fixture.sidecar(), "sh", WRITER, "via_scram");
    shell.args(["-c", &bad]);
    let text = lossy(&run(shell, TIMEOUT).stderr);
    assert!(
        text.contains("invalid input syntax for type integer: \"bad\""),
        "{text}"
    );
}

/// Ctrl-C in psql 15 sends a CancelRequest in plaintext, which `plaintext_cancel` allows.
fn ctrl_c(fixture: &Fixture) {
    let settings = fixture.settings().set("TEESQL_PLAINTEXT_CANCEL", "true");
    let sidecar = Sidecar::start(&settings);
    let psql = client(fixture, &sidecar, "psql", READER, "via_scram");
    let marker = fixture.harness.unique_name("ctrl_c");
    libpq::assert_ctrl_c_cancels(fixture.cluster(), psql, &marker);
}

/// Creates a database for one test on the shared cluster.
fn new_database(fixture: &Fixture, prefix: &str) -> String {
    let name = fixture.harness.unique_name(prefix);
    fixture.cluster().create_database(&name);
    name
}

/// Creates a database with the tables of pgbench.
pub(crate) fn pgbench_database(fixture: &Fixture, prefix: &str) -> String {
    let database = new_database(fixture, prefix);
    let mut init = client(fixture, &fixture.sidecar(), "pgbench", WRITER, &database);
    init.args(["-i", "-q", "-s", "1", "--foreign-keys"]);
    run_successfully(init, TIMEOUT * 4);
    database
}

fn pgbench(fixture: &Fixture) {
    let database = pgbench_database(fixture, "bench");
    for mode in ["simple", "extended", "prepared"] {
        let mut reads = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
        reads.args(["-n", "-S", "-M", mode, "-c", "8", "-j", "2", "-t", "150"]);
        let text = run_successfully(reads, TIMEOUT * 4);
        assert!(
            text.contains("number of transactions actually processed: 1200/1200"),
            "{text}"
        );
        assert!(text.contains("number of failed transactions: 0"), "{text}");
    }
    let mut writes = client(fixture, &fixture.sidecar(), "pgbench", WRITER, &database);
    writes.args(["-n", "-M", "prepared", "-c", "4", "-t", "50"]);
    let text = run_successfully(writes, TIMEOUT * 4);
    assert!(
        text.contains("number of transactions actually processed: 200/200"),
        "{text}"
    );
    let sums = "select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts), count(*) from pgbench_history";
    assert_eq!(fixture.cluster().sql(&database, sums), "t|200");

    // A pipeline of 100 queries.
    let script = fixture.harness.unique_path("pipeline");
    let lines = "select 1;\nselect repeat('p', 500);\n".repeat(50);
    fs::write(&script, format!("\\startpipeline\n{lines}\\endpipeline\n")).expect("a file");
    let mut piped = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
    piped
        .args(["-n", "-M", "extended", "-c", "4", "-t", "25", "-f"])
        .arg(&script);
    let text = run_successfully(piped, TIMEOUT * 4);
    assert!(
        text.contains("number of transactions actually processed: 100/100"),
        "{text}"
    );

    // A new connection for every transaction.
    let mut reconnecting = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
    reconnecting.args(["-n", "-S", "-C", "-c", "4", "-t", "20"]);
    let text = run_successfully(reconnecting, TIMEOUT * 4);
    assert!(
        text.contains("number of transactions actually processed: 80/80"),
        "{text}"
    );
    fixture.cluster().drop_database(&database);
}

const CHECKSUM: &str = "\
select md5(string_agg(t::text, chr(10) order by aid)) from pgbench_accounts t
union all select md5(string_agg(t::text, chr(10) order by tid)) from pgbench_tellers t
union all select md5(string_agg(t::text, chr(10) order by bid)) from pgbench_branches t
union all select count(*)::text from pg_constraint where conrelid::regclass::text like 'pgbench%'";

fn dump_and_restore(fixture: &Fixture) {
    let source = pgbench_database(fixture, "dumped");
    let target = new_database(fixture, "restored");
    let file = fixture.harness.unique_path("dump");
    // Read access suffices for pg_dump, and write access for pg_restore.
    let mut dump = client(fixture, &fixture.sidecar(), "pg_dump", READER, &source);
    dump.args(["-Fc", "--no-privileges", "-f"]).arg(&file);
    run_successfully(dump, TIMEOUT * 4);
    let mut restore = client(fixture, &fixture.sidecar(), "pg_restore", WRITER, &target);
    restore.args([
        "--no-owner",
        "--no-privileges",
        "--exit-on-error",
        "-j",
        "2",
        "-d",
        &target,
    ]);
    restore.arg(&file);
    run_successfully(restore, TIMEOUT * 4);
    let (before, after) = (
        fixture.cluster().sql(&source, CHECKSUM),
        fixture.cluster().sql(&target, CHECKSUM),
    );
    assert_eq!(after, before);
    assert!(
        before.lines().count() == 4 && !before.contains("\n\n"),
        "{before}"
    );
    fixture.cluster().drop_database(&source);
    fixture.cluster().drop_database(&target);
}
