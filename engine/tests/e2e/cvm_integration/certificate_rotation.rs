//! A certificate that is renewed every second, under load.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::{TdxFixture, admin, duration, long};
use crate::harness::READ_SECRET;
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};
use crate::libpq_clients::initialised;

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "citizen::a_certificate_a_second_under_pgbench",
        under_pgbench,
    );
}

fn under_pgbench(fixture: &Fixture) {
    let lasts = duration(Duration::from_secs(8));
    let tdx = TdxFixture::new();
    let _agent = tdx.agent();
    let database = initialised(fixture, "rotated");
    // Renewed after two thirds, in whole seconds: after one.
    let settings = tdx.settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_CERTIFICATE_VALIDITY", "2s"));
    let address = admin(&sidecar);
    let mut bench = tdx.client(&sidecar, "pgbench", ("teesql_read", READ_SECRET));
    let seconds = lasts.as_secs().to_string();
    bench.args(["-n", "-S", "-C", "-c", "4", "-j", "2", "-T", &seconds]);
    bench.env("PGDATABASE", &database);
    if !long() {
        // A busy machine may take longer than what is left of such a certificate:
        // its dates are libpq's business only where somebody looks on.
        bench.env("PGSSLMODE", "require");
        bench.env_remove("PGSSLROOTCERT");
    }
    sidecar.await_log("a renewal", |line| {
        line["message"] == "new certificate in use"
    });
    let mut session = tls::enter(Some(&tdx), &sidecar);
    let bench = thread::spawn(move || run_successfully(bench, lasts + TIMEOUT));
    let (begun, mut leaves) = (Instant::now(), BTreeSet::new());
    while !bench.is_finished() {
        leaves.insert(tls::shown(sidecar.address())[0].to_vec());
        assert_eq!(session.ask("select 'still here'"), "still here");
        thread::sleep(Duration::from_millis(200));
    }
    let said = bench.join().expect("pgbench succeeds");
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    let wanted = usize::try_from(begun.elapsed().as_secs() / 3).expect("small");
    assert!(
        leaves.len() >= wanted,
        "{} leaves in {lasts:?}",
        leaves.len()
    );
    let scrape = Scrape::of(address);
    let ok = scrape.value("teesql_identity_renewals_total{outcome=\"ok\"}");
    assert!(ok + 1.0 >= leaves.len() as f64, "{ok} renewals");
    let failed = scrape.value("teesql_identity_renewals_total{outcome=\"failed\"}");
    assert_eq!(failed, 0.0);
    http::await_ready(address);
    session.terminate();
    fixture.cluster().drop_database(&database);
    if long() {
        eprintln!("{}: {} certificates\n{said}", fixture.driver, leaves.len());
    }
}
