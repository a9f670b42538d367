//! Debian's own clients: psql, pgbench, pg_dump and pg_restore.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, run, run_successfully, spawn, wait,
};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{
    PasswordEncryption, READ_SECRET, READWRITE_SECRET, SUPERUSER_PASSWORD, WRONG_SECRET,
};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("psql::every_role", every_role);
    suite.add("psql::verify_full_and_plaintext", verify_full_and_plaintext);
    suite.add("psql::large_objects", large_objects);
    suite.add("psql::listen_notify", listen_notify);
    suite.add("psql::copy_and_errors", copy_and_errors);
    suite.add("psql::ctrl_c_in_plaintext", ctrl_c);
    suite.add("pgbench::every_protocol", pgbench);
    suite.add("pg_dump::restored_copy_is_equal", dump_and_restore);
}

/// `program` with a connection to the sidecar in its environment.
pub(crate) fn client(
    fixture: &Fixture,
    sidecar: &Sidecar,
    program: &str,
    (role, secret): (&str, &str),
    database: &str,
) -> Command {
    let mut command = pdeathsig_command(Path::new(program), "KILL", None);
    command
        .env("PGHOST", "localhost")
        .env("PGHOSTADDR", "127.0.0.1")
        .env("PGPORT", sidecar.port().to_string())
        .env("PGUSER", role)
        .env("PGPASSWORD", secret)
        .env("PGDATABASE", database)
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", &fixture.harness.certificates.ca)
        .env("PGGSSENCMODE", "disable");
    command
}

const READER: (&str, &str) = ("teesql_read", READ_SECRET);
const WRITER: (&str, &str) = ("teesql_readwrite", READWRITE_SECRET);
const OPERATOR: (&str, &str) = ("postgres", SUPERUSER_PASSWORD);

/// A psql that stops at the first error and prints bare values.
fn psql(fixture: &Fixture, who: (&str, &str), database: &str) -> Command {
    let mut psql = client(fixture, &fixture.sidecar(), "psql", who, database);
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    psql
}

fn every_role(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
        for who in [READER, WRITER, OPERATOR, (READER.0, WRITER.1)] {
            let mut psql = client(fixture, &sidecar, "psql", who, "via_scram");
            psql.args(["-X", "-A", "-t", "-c", "select current_user"]);
            assert_eq!(run_successfully(psql, TIMEOUT).trim(), who.0);
        }
        for (role, secret) in [
            (READER.0, WRONG_SECRET),
            (WRITER.0, READ_SECRET),
            ("somebody", WRITER.1),
            (OPERATOR.0, READ_SECRET),
        ] {
            let mut psql = client(fixture, &sidecar, "psql", (role, secret), "via_scram");
            psql.args(["-X", "-c", "select 1"]);
            let output = run(psql, TIMEOUT);
            let said = lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{role}: {said}");
            let text = "FATAL:  authentication_failed: password authentication failed";
            assert_eq!(said.lines().count(), 1, "{role}: {said}");
            assert!(said.trim_end().ends_with(text), "{role}: {said}");
        }
    }
}

fn verify_full_and_plaintext(fixture: &Fixture) {
    let mut encrypted = psql(fixture, READER, "via_scram");
    encrypted.args(["-c", "\\conninfo"]);
    let said = run_successfully(encrypted, TIMEOUT);
    assert!(said.contains("TLSv1.3"), "{said}");

    // libpq asks for GSS encryption first where it can; that must not disturb.
    for mode in ["prefer", "disable"] {
        let mut gss = psql(fixture, READER, "via_scram");
        gss.env("PGGSSENCMODE", mode).args(["-c", "select 1"]);
        assert_eq!(run_successfully(gss, TIMEOUT), "1\n", "gssencmode={mode}");
    }
    let mut plain = psql(fixture, READER, "via_scram");
    plain.env("PGSSLMODE", "disable").args(["-c", "select 1"]);
    let output = run(plain, TIMEOUT);
    let said = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("FATAL:  TLS is required: this server takes no plaintext"),
        "{said}"
    );
    assert!(
        said.contains("HINT:  Connect with sslmode=require or stronger."),
        "{said}"
    );

    let mut stranger = psql(fixture, READER, "via_scram");
    stranger.env("PGHOST", "elsewhere").args(["-c", "select 1"]);
    let said = lossy(&run(stranger, TIMEOUT).stderr);
    assert!(
        said.contains("does not match host name \"elsewhere\""),
        "{said}"
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
    let said = run_successfully(import, TIMEOUT * 2);
    let oid = said.split_whitespace().last().expect("an OID").to_owned();
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
    let pid = "select pg_backend_pid() \\gset\n\\o /dev/null\n";
    write!(input, "{pid}listen {channel};\nselect pg_sleep(0);\n").expect("psql reads");
    let listens = "select count(*) from pg_stat_activity where state = 'idle' and query = 'select pg_sleep(0);' and usename = 'teesql_read'";
    // Its last statement is done: it listens.
    let heard = crate::harness::process::poll_until(TIMEOUT, || {
        (fixture.cluster().admin_sql(listens) != "0").then_some(())
    });
    heard.expect("psql comes to its last statement");
    let mut notifier = psql(fixture, WRITER, "via_scram");
    notifier.args(["-c", &format!("notify {channel}, 'hello through TLS'")]);
    run_successfully(notifier, TIMEOUT);
    writeln!(input, "\\o\nselect 1;").expect("psql reads");
    drop(input);
    let output = listener.wait_with_output().expect("psql ends");
    let said = lossy(&output.stdout);
    let wanted = format!(
        "Asynchronous notification \"{channel}\" with payload \"hello through TLS\" received"
    );
    assert!(said.contains(&wanted), "{said}{}", lossy(&output.stderr));
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
        "COPY brought back something else"
    );
    let mut broken = psql(fixture, WRITER, "via_scram");
    let bad = format!("printf '1\\tgood\\nbad\\tbad\\n' | psql -X -c 'copy {table} from stdin'");
    broken.arg("-c").arg("select 1");
    let mut shell = client(fixture, &fixture.sidecar(), "sh", WRITER, "via_scram");
    shell.args(["-c", &bad]);
    let said = lossy(&run(shell, TIMEOUT).stderr);
    assert!(
        said.contains("invalid input syntax for type integer: \"bad\""),
        "{said}"
    );
}

/// Ctrl-C in psql 15 is a CancelRequest in plaintext: refused by default, so that
/// the query runs on, and obeyed where the setting allows it.
fn ctrl_c(fixture: &Fixture) {
    let settings = fixture.settings().set("TEESQL_PLAINTEXT_CANCEL", "true");
    let sidecar = Sidecar::start(&settings);
    let marker = fixture.harness.unique_name("ctrl_c");
    let mut psql = client(fixture, &sidecar, "psql", READER, "via_scram");
    psql.args(["-X", "-c", &format!("select pg_sleep(3600) as {marker}")]);
    psql.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut psql = spawn(psql).expect("psql starts");
    let asleep = format!(
        "select wait_event from pg_stat_activity where query like '%as {marker}' and usename = 'teesql_read'"
    );
    fixture.cluster().await_result(&asleep, "PgSleep");
    kill(
        Pid::from_raw(i32::try_from(psql.id()).expect("a pid")),
        Signal::SIGINT,
    )
    .expect("psql runs");
    let status = wait(&mut psql, TIMEOUT).expect("psql ends");
    let output = psql.wait_with_output().expect("psql ended");
    let said = lossy(&output.stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("ERROR:  canceling statement due to user request"),
        "{said}"
    );
}

/// A database of the trial's own on the shared cluster.
fn own_database(fixture: &Fixture, prefix: &str) -> String {
    let name = fixture.harness.unique_name(prefix);
    fixture.cluster().create_database(&name);
    name
}

pub(crate) fn initialised(fixture: &Fixture, prefix: &str) -> String {
    let database = own_database(fixture, prefix);
    let mut init = client(fixture, &fixture.sidecar(), "pgbench", WRITER, &database);
    init.args(["-i", "-q", "-s", "1", "--foreign-keys"]);
    run_successfully(init, TIMEOUT * 4);
    database
}

fn pgbench(fixture: &Fixture) {
    let database = initialised(fixture, "bench");
    for mode in ["simple", "extended", "prepared"] {
        let mut reads = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
        reads.args(["-n", "-S", "-M", mode, "-c", "8", "-j", "2", "-t", "150"]);
        let said = run_successfully(reads, TIMEOUT * 4);
        assert!(
            said.contains("number of transactions actually processed: 1200/1200"),
            "{said}"
        );
        assert!(said.contains("number of failed transactions: 0"), "{said}");
    }
    let mut writes = client(fixture, &fixture.sidecar(), "pgbench", WRITER, &database);
    writes.args(["-n", "-M", "prepared", "-c", "4", "-t", "50"]);
    let said = run_successfully(writes, TIMEOUT * 4);
    assert!(
        said.contains("number of transactions actually processed: 200/200"),
        "{said}"
    );
    let sums = "select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts), count(*) from pgbench_history";
    assert_eq!(fixture.cluster().sql(&database, sums), "t|200");

    // A pipeline of many queries in one go.
    let script = fixture.harness.unique_path("pipeline");
    let lines = "select 1;\nselect repeat('p', 500);\n".repeat(50);
    fs::write(&script, format!("\\startpipeline\n{lines}\\endpipeline\n")).expect("a file");
    let mut piped = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
    piped
        .args(["-n", "-M", "extended", "-c", "4", "-t", "25", "-f"])
        .arg(&script);
    let said = run_successfully(piped, TIMEOUT * 4);
    assert!(
        said.contains("number of transactions actually processed: 100/100"),
        "{said}"
    );

    // Through the door for every transaction.
    let mut doors = client(fixture, &fixture.sidecar(), "pgbench", READER, &database);
    doors.args(["-n", "-S", "-C", "-c", "4", "-t", "20"]);
    let said = run_successfully(doors, TIMEOUT * 4);
    assert!(
        said.contains("number of transactions actually processed: 80/80"),
        "{said}"
    );
    fixture.cluster().drop_database(&database);
}

const CHECKSUM: &str = "\
select md5(string_agg(t::text, chr(10) order by aid)) from pgbench_accounts t
union all select md5(string_agg(t::text, chr(10) order by tid)) from pgbench_tellers t
union all select md5(string_agg(t::text, chr(10) order by bid)) from pgbench_branches t
union all select count(*)::text from pg_constraint where conrelid::regclass::text like 'pgbench%'";

fn dump_and_restore(fixture: &Fixture) {
    let source = initialised(fixture, "dumped");
    let target = own_database(fixture, "restored");
    let file = fixture.harness.unique_path("dump");
    // Reading is enough for a dump, writing for what it restores.
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
