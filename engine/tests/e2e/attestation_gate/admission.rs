//! Tests of which certificates are admitted, and of the reason code of each refusal.

use attest::mock::{
    Binding, Certificate, Envelope, Event, Evidence, Key, LeafOptions, Pki, Platform,
    PlatformLevel, PlatformOptions, QuoteFormat, Resource, Rtmr3, TdReport, Validity,
};

use super::{ADMITTED, connect, refusal};
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, run_successfully};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{SEED, TdxFixture, now};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::accepts_every_envelope",
        accepts_every_envelope,
    );
    suite.add(
        "attestation_gate::refuses_invalid_evidence",
        refuses_invalid_evidence,
    );
    suite.add(
        "attestation_gate::enforces_allow_lists",
        enforces_allow_lists,
    );
    suite.add(
        "attestation_gate::accepts_100_new_clients_at_the_same_time",
        accepts_100_new_clients,
    );
}

fn accepts_every_envelope(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    sidecar.await_log("a warning about the root", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.contains("a root other than Intel's")
    });
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let evidence = Evidence {
            envelope,
            ..Evidence::default()
        };
        let certificate = tdx.issue(&format!("{envelope:?}"), &evidence);
        let output = tdx.psql_select_1(fixture, &sidecar, Some(&certificate));
        assert_eq!(output, ADMITTED, "{envelope:?}");
    }
    assert_eq!(
        tdx.pccs.requests(Resource::TcbInfo),
        1,
        "one fetch for all clients"
    );
}

/// Certificates that must be refused, each with its reason code.
fn bad_certificates(tdx: &TdxFixture) -> Vec<(&'static str, Option<Certificate>)> {
    let mut certificates = vec![
        ("no_certificate", None),
        ("no_evidence", Some(without_evidence(tdx))),
        ("malformed_evidence", Some(with_garbage(tdx))),
    ];
    certificates.extend(
        certificates_with_bad_evidence(tdx)
            .into_iter()
            .chain(certificates_with_bad_dates(tdx))
            .map(|(code, certificate)| (code, Some(certificate))),
    );
    certificates
}

fn without_evidence(tdx: &TdxFixture) -> Certificate {
    let evidence = Evidence {
        envelope: Envelope::None,
        ..Evidence::default()
    };
    tdx.issue("no evidence", &evidence)
}

fn with_garbage(tdx: &TdxFixture) -> Certificate {
    let leaf = LeafOptions {
        attestation: Some(vec![0x85; 300]),
        ..LeafOptions::default()
    };
    tdx.issue_with("garbage", &Evidence::default(), &leaf)
}

fn certificates_with_bad_evidence(tdx: &TdxFixture) -> Vec<(&'static str, Certificate)> {
    let good = Evidence::default;
    let report = |change: fn(&mut TdReport)| {
        let mut evidence = good();
        change(&mut evidence.report);
        evidence
    };
    let victim = Key::derive(&SEED, "victim").expect("a key");
    let replayed = Evidence {
        binding: Binding::Bytes(victim.report_data()),
        ..good()
    };
    let wrong_rtmr3 = Evidence {
        rtmr3: Rtmr3::Bytes([9; 48]),
        ..good()
    };
    let other_pki = Pki::new(&[0xf0; 32]).expect("another PKI");
    let forged = Platform::new(&other_pki, &PlatformOptions::default()).expect("a platform");
    let old = PlatformOptions::with_level(PlatformLevel::OutOfDate);
    let old = Platform::new(&tdx.pki, &old).expect("an outdated platform");
    vec![
        (
            "not_tdx",
            tdx.issue("sgx", &report(|r| r.format = QuoteFormat::SgxV3)),
        ),
        ("unbound_key", tdx.issue("replayer", &replayed)),
        (
            "bad_signature",
            tdx.issue_on(&tdx.pki, &forged, "forged", &good()),
        ),
        (
            "tcb_out_of_date",
            tdx.issue_on(&tdx.pki, &old, "old", &good()),
        ),
        ("debug_td", tdx.issue("debug", &report(|r| r.debug = true))),
        ("event_log_mismatch", tdx.issue("wrong RTMR3", &wrong_rtmr3)),
    ]
}

fn certificates_with_bad_dates(tdx: &TdxFixture) -> [(&'static str, Certificate); 2] {
    let dated = |from, until| {
        let leaf = LeafOptions {
            validity: Validity { from, until },
            ..LeafOptions::default()
        };
        tdx.issue_with("dated", &Evidence::default(), &leaf)
    };
    let (day, year) = (86_400, 365 * 86_400);
    [
        ("expired", dated(now() - year, now() - 2 * day)),
        ("not_yet_valid", dated(now() + 2 * day, now() + year)),
    ]
}

fn refuses_invalid_evidence(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    for (code, certificate) in bad_certificates(&tdx) {
        let output = tdx.psql_select_1(fixture, &sidecar, certificate.as_ref());
        assert!(output.contains(&refusal(code)), "{code}: {output}");
        sidecar.await_log(code, |line| line["reason"] == code);
    }
    // The refusals do not affect a client with valid evidence.
    let good = tdx.issue("good", &Evidence::default());
    assert_eq!(tdx.psql_select_1(fixture, &sidecar, Some(&good)), ADMITTED);
}

fn enforces_allow_lists(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .production_settings(fixture)
        .set("EXPECTED_MRTD", &"11".repeat(48))
        .set("TEESQL_ALLOWED_APP_ID", &"a1".repeat(20))
        .set("TEESQL_KMS_ROOT", &tdx.path("kms.pem"));
    let sidecar = Sidecar::start(&settings);
    // Events that the application adds after boot cannot change its identity.
    let forged = Event::new("app-id", &[0xbb; 20]);
    let extended = Evidence {
        after_ready: vec![forged.clone()],
        ..Evidence::default()
    };
    let extended = tdx.issue("extended", &extended);
    assert_eq!(
        tdx.psql_select_1(fixture, &sidecar, Some(&extended)),
        ADMITTED
    );
    let mut other_app = Evidence {
        app_id: vec![0xbb; 20],
        ..Evidence::default()
    };
    let output = tdx.psql_select_1(fixture, &sidecar, Some(&tdx.issue("app", &other_app)));
    assert!(output.contains(&refusal("not_allowed")), "{output}");
    sidecar.await_reason("app_not_allowed");
    other_app.report.mrtd = [0x12; 48];
    let output = tdx.psql_select_1(fixture, &sidecar, Some(&tdx.issue("mrtd", &other_app)));
    assert!(output.contains(&refusal("not_allowed")), "{output}");
    sidecar.await_reason("mrtd_not_allowed");
}

/// Certificates that the sidecar has not seen before: it verifies each, and refuses none.
fn accepts_100_new_clients(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    let certificates: Vec<_> = (0..100)
        .map(|i| tdx.issue(&format!("client {i}"), &Evidence::default()))
        .collect();
    std::thread::scope(|scope| {
        for certificate in &certificates {
            scope.spawn(|| connect(fixture, &sidecar, certificate).login_reader());
        }
    });
    let psql = tdx.psql_command(fixture, &sidecar, certificates.first());
    assert_eq!(run_successfully(psql, TIMEOUT), ADMITTED);
}
