//! Cluster secrets that change while clients come and go.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{TdxFixture, duration};
use crate::harness::READ_SECRET;
use crate::harness::process::{TIMEOUT, poll_until, run_successfully};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::unverified_tls as tls;
use crate::libpq_clients::initialised;

pub(super) fn add(suite: &mut Suite) {
    suite.add("citizen::secrets_are_rotated_under_pgbench", rotated);
    if suite.is_last_driver() {
        suite.add("citizen::sighup_is_all_or_nothing", all_or_nothing);
    }
}

const NEXT_SECRET: &str = "0e3700000e3700000e3700000e3700000e3700000e3700000e3700000e370000";

fn login(tdx: &TdxFixture, sidecar: &Sidecar, secret: &str) -> Result<(), String> {
    let mut client = tls::connect(Some(tdx), sidecar);
    let greeted = client.login("teesql_read", "via_scram", secret);
    greeted.map(drop).map_err(|error| error.code)
}

fn messages(sidecar: &Sidecar, message: &str) -> usize {
    let message = format!("\"message\":\"{message}");
    let lines = sidecar.log_lines();
    lines.iter().filter(|line| line.contains(&message)).count()
}

fn run_apart(bench: Command) -> thread::JoinHandle<String> {
    thread::spawn(|| run_successfully(bench, TIMEOUT * 4))
}

fn rotated(fixture: &Fixture) {
    let lasts = duration(Duration::from_secs(2));
    let overlap = lasts * 3 / 2 + Duration::from_secs(5);
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let database = initialised(fixture, "secret");
    let file = tdx.file("read-secret");
    fs::write(&file, READ_SECRET).expect("a file");
    let settings = tdx
        .settings(fixture)
        .without("TEESQL_READ_SECRET")
        .set("TEESQL_READ_SECRET_FILE", &tdx.path("read-secret"))
        .set("TEESQL_SECRET_OVERLAP", &format!("{}s", overlap.as_secs()));
    let sidecar = Sidecar::start(&settings);
    let bench = |secret| {
        let mut bench = tdx.client(&sidecar, "pgbench", ("teesql_read", secret));
        let seconds = lasts.as_secs().to_string();
        bench.args(["-n", "-S", "-C", "-c", "2", "-T", &seconds]);
        bench.env("PGDATABASE", &database);
        bench
    };
    let mut session = tls::enter(Some(&tdx), &sidecar);
    let refused = Err("28P01".to_owned());
    assert_eq!(login(&tdx, &sidecar, NEXT_SECRET), refused);

    let old = run_apart(bench(READ_SECRET));
    fs::write(&file, format!("{NEXT_SECRET}\n")).expect("a file");
    sidecar.signal(Signal::SIGHUP);
    let rotated = Instant::now();
    sidecar.await_log("the change", |line| {
        line["message"]
            == "new cluster secrets in use, the previous ones are accepted until the overlap ends"
    });
    let new = run_apart(bench(NEXT_SECRET));
    for said in [old.join(), new.join()] {
        let said = said.expect("pgbench succeeds");
        assert!(said.contains("number of failed transactions: 0"), "{said}");
    }
    sidecar.await_log_for(overlap + TIMEOUT, "the end of the overlap", |line| {
        line["message"] == "the previous cluster secrets are no longer accepted"
    });
    assert!(rotated.elapsed() >= overlap - Duration::from_secs(1));
    assert_eq!(login(&tdx, &sidecar, READ_SECRET), refused);
    assert_eq!(login(&tdx, &sidecar, NEXT_SECRET), Ok(()));

    // What cannot be read changes nothing.
    fs::write(&file, "not a secret").expect("a file");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_log("a mistake", |line| {
        line["message"] == "configuration not reloaded"
    });
    assert_eq!(login(&tdx, &sidecar, NEXT_SECRET), Ok(()));
    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
    session.terminate();
    let said = sidecar.log_lines().join("\n");
    for secret in [READ_SECRET, NEXT_SECRET, "not a secret"] {
        assert!(!said.contains(&secret[..12]), "{said}");
    }
    fixture.cluster().drop_database(&database);
}

/// A configuration whose passwords cannot be had does not bring its policy either.
fn all_or_nothing(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let file = tdx.file("sidecar.toml");
    let certificates = &fixture.harness.certificates;
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let settings = tdx
        .settings(fixture)
        .set("TEESQL_TLS_CERT", &path(&certificates.chain))
        .set("TEESQL_TLS_KEY", &path(&certificates.key))
        .without("TEESQL_PG_PASSWORD_READWRITE")
        .set("TEESQL_CONFIG", &path(&file));
    let write = |password: &str, mrtd: &str| {
        let mrtd = mrtd.repeat(48);
        let text = format!("{password}\nallowed_mrtd = \"{mrtd}\"\n");
        fs::write(&file, text).expect("sidecar.toml");
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
    assert_eq!(messages(&sidecar, "configuration reloaded"), 0);

    write(password, "12");
    sidecar.signal(Signal::SIGHUP);
    let reloaded = "configuration reloaded, new policy";
    poll_until(TIMEOUT, || {
        (messages(&sidecar, reloaded) == 1).then_some(())
    })
    .expect("a new policy");
    let refused = tls::connect(Some(&tdx), &sidecar).expect_fatal();
    assert!(refused.message.ends_with("mrtd_not_allowed"), "{refused}");
}
