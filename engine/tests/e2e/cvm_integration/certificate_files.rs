//! Tests of certificate files that are replaced while the sidecar runs.

use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, poll_until, write_private};
use crate::harness::scrape::Scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{http, unverified_tls as tls};

pub(super) fn add(suite: &mut Suite) {
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::certificate_files::reloads_changed_files",
            reloads_changed_files,
        );
    }
}

/// A certificate and its key in PEM, and the certificate in DER.
struct CertificateWithKey {
    cert: String,
    key: String,
    der: Vec<u8>,
}

/// A certificate that expires at the start of this year.
fn self_signed(year: i32) -> CertificateWithKey {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let cert = params.self_signed(&key).expect("a certificate");
    CertificateWithKey {
        cert: cert.pem(),
        key: key.serialize_pem(),
        der: cert.der().to_vec(),
    }
}

/// Replaces a file atomically, as programs that renew certificates do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    write_private(&new, text);
    fs::rename(&new, path).expect("a rename");
}

fn reloads_changed_files(fixture: &Fixture) {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("tls.pem"), folder.path().join("tls.key"));
    let replace_both = |with: &CertificateWithKey| {
        replace(&cert, &with.cert);
        replace(&key, &with.key);
    };
    let (first, second, third) = (self_signed(2099), self_signed(2099), self_signed(2099));
    replace_both(&first);
    let settings = fixture
        .settings()
        .set("TEESQL_TLS_CERT", cert.to_str().expect("UTF-8"))
        .set("TEESQL_TLS_KEY", key.to_str().expect("UTF-8"))
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    let presents = |expected: &CertificateWithKey| {
        tls::presented_chain(sidecar.address())[0].as_ref() == expected.der
    };
    assert!(presents(&first));
    let mut session = tls::session(None, &sidecar);
    let await_presented =
        |expected: &CertificateWithKey| poll_until(TIMEOUT, || presents(expected).then_some(()));
    // Unusable files are logged once, and the current certificate stays in use.
    let expect_refusal = |text: &str| {
        sidecar.await_log(text, |line| {
            let error = line["error"].as_str().unwrap_or_default();
            line["message"] == "the certificate files have changed but cannot be used, keeping the current certificate"
                && error.contains(text)
        });
        assert!(presents(&second), "after {text}");
    };

    replace_both(&second);
    await_presented(&second).expect("the replaced files are used");
    replace(&cert, "not PEM at all");
    expect_refusal("not a PEM certificate");
    replace_both(&self_signed(2020));
    expect_refusal("it has expired");
    replace_both(&second);
    replace(&key, &first.key);
    expect_refusal("does not match its private key");
    fs::remove_file(&cert).expect("a file");
    expect_refusal("cannot be read");
    replace_both(&third);
    await_presented(&third).expect("a valid pair is used afterwards");

    assert_eq!(session.query_value("select 'unaffected'"), "unaffected");
    http::await_ready(address);
    let scrape = Scrape::fetch(address);
    let renewals = |outcome| {
        scrape.value(&format!(
            "teesql_identity_renewals_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert!(renewals("failed") >= 4.0);
    assert_eq!(renewals("ok"), 2.0);
}
