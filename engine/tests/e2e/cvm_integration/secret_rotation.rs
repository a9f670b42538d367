//! Tests of cluster secrets that change while clients connect and disconnect.

use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::Signal;

use super::load_duration;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_successfully, write_private};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, unverified_tls as tls};
use crate::libpq_clients::pgbench_database;

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::secret_rotation::rotates_under_pgbench",
        rotates_under_pgbench,
    );
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::secret_rotation::sighup_is_all_or_nothing",
            all_or_nothing,
        );
    }
}

const NEXT_SECRET: &str = "0e3700000e3700000e3700000e3700000e3700000e3700000e3700000e370000";

fn login(tdx: &TdxFixture, sidecar: &Sidecar, secret: &str) -> Result<(), String> {
    let mut client = tls::connect(Some(tdx), sidecar);
    let result = client.login("teesql_read", "via_scram", secret);
    result.map(drop).map_err(|error| error.code)
}

fn run_in_background(bench: Command) -> thread::JoinHandle<String> {
    thread::spawn(|| run_successfully(bench, TIMEOUT * 4))
}

fn rotates_under_pgbench(fixture: &Fixture) {
    let duration = load_duration(Duration::from_secs(2));
    let overlap = duration * 3 / 2 + Duration::from_secs(5);
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let database = pgbench_database(fixture, "secret");
    let file = tdx.path("read-secret");
    write_private(&file, READ_SECRET);
    let settings = tdx
        .agent_settings(fixture)
        .without("TEESQL_READ_SECRET")
        .set("TEESQL_READ_SECRET_FILE", &tdx.path("read-secret"))
        .set("TEESQL_SECRET_OVERLAP", &format!("{}s", overlap.as_secs()));
    let sidecar = Sidecar::start(&settings);
    let bench = |secret| {
        let mut bench = tdx.client(&sidecar, "pgbench", ("teesql_read", secret));
        let seconds = duration.as_secs().to_string();
        bench.args(["-n", "-S", "-C", "-c", "2", "-T", &seconds]);
        bench.env("PGDATABASE", &database);
        bench
    };
    let mut session = tls::session(Some(&tdx), &sidecar);
    let refused = Err("28P01".to_owned());
    assert_eq!(login(&tdx, &sidecar, NEXT_SECRET), refused);

    let old = run_in_background(bench(READ_SECRET));
    fs::write(&file, format!("{NEXT_SECRET}\n")).expect("a file");
    sidecar.signal(Signal::SIGHUP);
    let rotated = Instant::now();
    sidecar.await_log("the change", |line| {
        line["message"]
            == "new cluster secrets in use, the previous ones are accepted until the overlap ends"
    });
    let new = run_in_background(bench(NEXT_SECRET));
    assert_pgbench_succeeded(old);
    assert_pgbench_succeeded(new);
    sidecar.await_log_for(overlap + TIMEOUT, "the end of the overlap", |line| {
        line["message"] == "the previous cluster secrets are no longer accepted"
    });
    assert!(rotated.elapsed() >= overlap - Duration::from_secs(1));
    assert_eq!(login(&tdx, &sidecar, READ_SECRET), refused);
    assert_eq!(login(&tdx, &sidecar, NEXT_SECRET), Ok(()));

    let invalid = "not a secret";
    fs::write(&file, invalid).expect("a file");
    assert_reload_changes_nothing(&tdx, &sidecar);
    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
    session.terminate();
    let output = sidecar.log_lines().join("\n");
    for secret in [READ_SECRET, NEXT_SECRET, invalid] {
        assert!(!output.contains(&secret[..12]), "{output}");
    }
    fixture.cluster().drop_database(&database);
}

fn assert_reload_changes_nothing(tdx: &TdxFixture, sidecar: &Sidecar) {
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_message("configuration not reloaded");
    assert_eq!(login(tdx, sidecar, NEXT_SECRET), Ok(()));
}

fn assert_pgbench_succeeded(bench: thread::JoinHandle<String>) {
    let output = bench.join().expect("pgbench succeeds");
    assert!(
        output.contains("number of failed transactions: 0"),
        "{output}"
    );
}

/// A configuration with a missing password is not applied in part: its policy is not used either.
fn all_or_nothing(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let file = tdx.path("sidecar.toml");
    let certificates = &fixture.harness.certificates;
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let settings = tdx
        .agent_settings(fixture)
        .set("TEESQL_TLS_CERT", &path(&certificates.chain))
        .set("TEESQL_TLS_KEY", &path(&certificates.key))
        .without("TEESQL_PG_PASSWORD_READWRITE")
        .set("TEESQL_CONFIG", &file);
    let write = |password: &str, mrtd: &str| {
        let mrtd = mrtd.repeat(48);
        let text = format!("{password}\nallowed_mrtd = \"{mrtd}\"\n");
        write_private(&file, &text);
    };
    let password = "pg_password_readwrite = \"schreib-nur-zu-4711\"";
    write(password, "11");
    let sidecar = Sidecar::start(&settings);
    assert_eq!(login(&tdx, &sidecar, READ_SECRET), Ok(()));

    write("", "12");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_log("the mistake", |line| {
        let error = line["error"].as_str().unwrap_or_default();
        line["message"] == "configuration not reloaded" && error.contains("teesql_readwrite")
    });
    assert_eq!(login(&tdx, &sidecar, READ_SECRET), Ok(()));
    assert_eq!(sidecar.count_messages("configuration reloaded"), 0);

    write(password, "12");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_messages("configuration reloaded, new policy", 1);
    let refused = tls::connect(Some(&tdx), &sidecar).expect_fatal();
    assert!(refused.message.ends_with(": not_allowed"), "{refused}");
}
