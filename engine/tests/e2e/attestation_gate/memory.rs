//! Tests of the memory that refused clients with large certificates occupy.

use std::thread;

use attest::mock::{Certificate, Envelope, Event, Evidence, Key, LeafOptions, Pki, Platform};

use super::{ADMITTED, connect, refusal};
use crate::harness::fixture::Fixture;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{SEED, TdxFixture};

pub(super) fn add(suite: &mut Suite) {
    suite.add(
        "attestation_gate::large_certificates_of_refused_clients_are_not_kept",
        large_certificates,
    );
    suite.add("attestation_gate::padding_is_refused", padding);
}

/// Clients before the first measurement, for buffers and caches that do not depend on certificates.
const FIRST: u64 = 60;
/// Clients between the two measurements. Their certificates have 17 MiB.
const CLIENTS: u64 = 300;
/// Size of an event in their certificates, which carry it twice. A Certificate message has at most 64 KiB.
const PADDING: usize = 26 << 10;
/// Clients that connect at the same time.
const THREADS: u64 = 4;
/// How much the resident memory may grow, in KiB.
const MAX_GROWTH: u64 = 6 << 10;

/// Issues certificates of about 60 KB whose quotes are forged.
struct Forger {
    pki: Pki,
    platform: Platform,
    key: Key,
    evidence: Evidence,
}

impl Forger {
    fn new() -> Self {
        let pki = Pki::new(&[0x66; 32]).expect("a PKI");
        Self {
            platform: Platform::new(&pki, &Default::default()).expect("a platform"),
            pki,
            key: Key::derive(&SEED, "stranger").expect("a key"),
            evidence: Evidence {
                envelope: Envelope::V0,
                after_ready: vec![Event::new("padding", &[0x77; PADDING])],
                ..Evidence::default()
            },
        }
    }

    fn issue(&self, number: u64) -> Certificate {
        let leaf = LeafOptions {
            number,
            ..LeafOptions::default()
        };
        Certificate::issue(&self.pki, &self.platform, &self.key, &self.evidence, &leaf)
            .expect("a leaf")
    }
}

fn large_certificates(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    let client = tdx.issue("client", &Evidence::default());
    assert_eq!(
        tdx.psql_select_1(fixture, &sidecar, Some(&client)),
        ADMITTED
    );
    let forger = Forger::new();
    let attack = |numbers: std::ops::Range<u64>| {
        let (forger, sidecar, numbers) = (&forger, &sidecar, &numbers);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    let own = numbers.clone().filter(|number| number % THREADS == thread);
                    for number in own {
                        let certificate = forger.issue(number);
                        assert!(certificate.der().len() > 2 * PADDING);
                        let error = connect(fixture, sidecar, &certificate).expect_fatal();
                        assert_eq!(error.message, "client attestation rejected: bad_signature");
                    }
                });
            }
        });
    };
    attack(1..1 + FIRST);
    let before = sidecar.resident_kib();
    attack(1 + FIRST..1 + FIRST + CLIENTS);
    let grown = sidecar.resident_kib().saturating_sub(before);
    assert!(grown <= MAX_GROWTH, "{grown} KiB more than {before} KiB");
    assert_eq!(
        tdx.psql_select_1(fixture, &sidecar, Some(&client)),
        ADMITTED
    );
}

/// Extensions that nothing reads may have 1 KiB. A client with a long event log is admitted.
fn padding(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = Sidecar::start(&tdx.production_settings(fixture));
    let padded = LeafOptions {
        app_info: Some(vec![0x20; 2 << 10]),
        ..LeafOptions::default()
    };
    let padded = tdx.issue_with("padded", &Evidence::default(), &padded);
    let output = tdx.psql_select_1(fixture, &sidecar, Some(&padded));
    assert!(
        output.contains(&refusal("malformed_certificate")),
        "{output}"
    );
    let long = Evidence {
        envelope: Envelope::V0,
        after_ready: vec![Event::new("padding", &[0x77; PADDING])],
        ..Evidence::default()
    };
    let long = tdx.issue("long", &long);
    assert_eq!(tdx.psql_select_1(fixture, &sidecar, Some(&long)), ADMITTED);
}
