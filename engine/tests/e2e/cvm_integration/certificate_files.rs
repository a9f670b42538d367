//! PEM files that are replaced while the sidecar runs.

use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::admin;
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    if suite.is_last_driver() {
        suite.add("citizen::pem_files_are_watched", watched);
    }
}

/// A certificate and its key, in PEM, and the former in DER.
struct Pair {
    cert: String,
    key: String,
    der: Vec<u8>,
}

fn pair(until: i32) -> Pair {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("a certificate");
    Pair {
        cert: cert.pem(),
        key: key.serialize_pem(),
        der: cert.der().to_vec(),
    }
}

/// Puts a file in place as programs that renew certificates do.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a file");
    fs::rename(&beside, path).expect("a rename");
}

fn watched(fixture: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("tls.pem"), folder.path().join("tls.key"));
    let put_both = |with: &Pair| {
        put(&cert, &with.cert);
        put(&key, &with.key);
    };
    let (first, second, third) = (pair(2099), pair(2099), pair(2099));
    put_both(&first);
    let settings = fixture
        .settings()
        .set("TEESQL_TLS_CERT", cert.to_str().expect("UTF-8"))
        .set("TEESQL_TLS_KEY", key.to_str().expect("UTF-8"))
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let address = admin(&sidecar);
    let shows = |wanted: &Pair| tls::shown(sidecar.address())[0].as_ref() == wanted.der;
    assert!(shows(&first));
    let mut session = tls::enter(None, &sidecar);
    let await_shown = |wanted: &Pair| poll_until(TIMEOUT, || shows(wanted).then_some(()));
    // What cannot be used is said once, and what was in use stays.
    let refused = |words: &str| {
        sidecar.await_log(words, |line| {
            let error = line["error"].as_str().unwrap_or_default();
            line["message"] == "the certificate's files have changed, and are not used"
                && error.contains(words)
        });
        assert!(shows(&second), "after {words}");
    };

    put_both(&second);
    await_shown(&second).expect("the replaced files are used");
    put(&cert, "not PEM at all");
    refused("not a PEM certificate");
    put_both(&pair(2020));
    refused("it has expired");
    put_both(&second);
    put(&key, &first.key);
    refused("does not go with its key");
    fs::remove_file(&cert).expect("a file");
    refused("cannot be read");
    put_both(&third);
    await_shown(&third).expect("a good pair is used after all");

    assert_eq!(session.ask("select 'unharmed'"), "unharmed");
    http::await_ready(address);
    let scrape = Scrape::of(address);
    let renewals = |outcome| {
        scrape.value(&format!(
            "teesql_identity_renewals_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert!(renewals("failed") >= 4.0);
    assert_eq!(renewals("ok"), 2.0);
}
