//! Tests of a certificate that is renewed every second under load.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::{is_long_run, load_duration};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::{READ_SECRET, http, unverified_tls as tls};
use crate::libpq_clients::pgbench_database;

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "cvm_integration::certificate_rotation::renews_every_second_under_pgbench",
        renews_every_second_under_pgbench,
    );
}

fn renews_every_second_under_pgbench(fixture: &Fixture) {
    let duration = load_duration(Duration::from_secs(8));
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let database = pgbench_database(fixture, "rotated");
    // Renewed after two thirds of the validity, in whole seconds: after one second.
    let settings = tdx.agent_settings(fixture);
    let sidecar = Sidecar::start(&settings.set("TEESQL_CERTIFICATE_VALIDITY", "2s"));
    let address = sidecar.admin_address();
    let mut bench = tdx.client(&sidecar, "pgbench", ("teesql_read", READ_SECRET));
    let seconds = duration.as_secs().to_string();
    bench.args(["-n", "-S", "-C", "-c", "4", "-j", "2", "-T", &seconds]);
    bench.env("PGDATABASE", &database);
    if !is_long_run() {
        // On a busy machine a handshake may take longer than the rest of the validity: libpq checks
        // the dates in the long version only.
        bench.env("PGSSLMODE", "require");
        bench.env_remove("PGSSLROOTCERT");
    }
    sidecar.await_message("new certificate in use");
    let mut session = tls::session(Some(&tdx), &sidecar);
    let bench = thread::spawn(move || run_successfully(bench, duration + TIMEOUT));
    let (start, mut leaves) = (Instant::now(), BTreeSet::new());
    while !bench.is_finished() {
        leaves.insert(tls::presented_chain(sidecar.address())[0].to_vec());
        assert_eq!(session.query_value("select 'still here'"), "still here");
        thread::sleep(Duration::from_millis(200));
    }
    let output = bench.join().expect("pgbench succeeds");
    assert!(
        output.contains("number of failed transactions: 0"),
        "{output}"
    );
    let min = usize::try_from(start.elapsed().as_secs() / 3).expect("small");
    assert!(
        leaves.len() >= min,
        "{} leaves in {duration:?}",
        leaves.len()
    );
    let scrape = Scrape::fetch(address);
    let ok = scrape.value("teesql_identity_renewals_total{outcome=\"ok\"}");
    assert!(ok + 1.0 >= leaves.len() as f64, "{ok} renewals");
    let failed = scrape.value("teesql_identity_renewals_total{outcome=\"failed\"}");
    assert_eq!(failed, 0.0);
    http::await_ready(address);
    session.terminate();
    fixture.cluster().drop_database(&database);
    if is_long_run() {
        eprintln!(
            "{}: {} certificates\n{output}",
            fixture.variant.driver,
            leaves.len()
        );
    }
}
