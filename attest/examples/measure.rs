//! Measures verification, examination and cache hits, and compares verification with plain dcap-qvl in the
//! same run.
//!
//! `cargo run --release -p attest --features mock --example measure`. `TEESQL_FIXTURES` names the folder of
//! the recorded evidence.

// An example prints, and may panic.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::cache::{Capacity, Epoch, VerdictCache};
use attest::collateral::Collateral;
use attest::mock::Fixture;
use attest::mock::recorded::{self, HARDWARE_NOW, MOCK_NOW};
use attest::quote::TdQuote;
use attest::{Policy, TrustedRoot, Verifier, examine};
use dcap_qvl::verify::QuoteVerifier;

const ROUNDS: usize = 41;

fn time(times: u32, call: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..times).for_each(|_| call());
    start.elapsed() / times
}

fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort();
    rounds[rounds.len() / 2]
}

/// Each of our verifications runs on a new thread, whose signature cache is empty. Both sides alternate, so
/// that they are exposed to the same noise.
fn compare_first(what: &str, mut bare: impl FnMut(), ours: impl Fn() + Sync) {
    let ours_on_a_new_thread =
        || std::thread::scope(|scope| scope.spawn(|| time(1, &mut || ours())).join().unwrap());
    let (bare, ours) = (0..ROUNDS)
        .map(|_| (time(1, &mut bare), ours_on_a_new_thread()))
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let (bare, ours) = (median(bare), median(ours));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("{what}, first on a thread: dcap-qvl {bare:?}, ours {ours:?}, ratio {ratio:.3}");
}

fn main() {
    storm();
    let policy = Policy::default();
    if let Some((quote, collateral)) = recorded::hardware("tdx_quote") {
        let bare = QuoteVerifier::new_prod();
        let bare = || {
            bare.verify(black_box(&quote), collateral.as_qvl(), HARDWARE_NOW)
                .unwrap();
        };
        let verifier = Verifier::new(TrustedRoot::intel());
        let parsed = TdQuote::parse(&quote).unwrap();
        let ours = || {
            verifier
                .appraise(black_box(&parsed), &collateral, &policy, HARDWARE_NOW)
                .unwrap();
        };
        compare_first("hardware quote", bare, ours);
    }
    for folder in ["dstack-mock-v0", "dstack-mock-v1"] {
        let tls_key = recorded::tls_key(folder, "GetTlsKey");
        if let (Some(tls_key), Some(mock)) = (tls_key, recorded::mock(folder)) {
            verification(folder, &tls_key.chain_der(), &mock, &policy);
            lookup(folder, &tls_key.chain_der(), &mock, &policy);
        }
    }
}

/// New certificates of a known platform, as in a storm of new clients.
fn storm() {
    let fixture = Fixture::default();
    let chains: Vec<_> = (0..1000)
        .map(|n| {
            let certificate = fixture.certificate_of(&format!("client {n}"));
            certificate.chain_der().map(<[u8]>::to_vec)
        })
        .collect();
    let collateral = fixture.issue_collateral();
    let policy = Policy::default();
    let verifier = fixture.verifier();
    let bare = QuoteVerifier::new(fixture.pki.root_der().to_vec());
    let (bare, ours) = chains
        .iter()
        .map(|chain| {
            let quote = examine(chain, Fixture::NOW, &policy)
                .unwrap()
                .quote()
                .as_bytes()
                .to_vec();
            let bare = time(1, &mut || {
                bare.verify(black_box(&quote), collateral.as_qvl(), Fixture::NOW)
                    .unwrap();
            });
            let ours = time(1, &mut || {
                let evidence = examine(black_box(chain), Fixture::NOW, &policy).unwrap();
                verifier
                    .verify(&evidence, &collateral, &policy, Fixture::NOW)
                    .unwrap();
            });
            (bare, ours)
        })
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let (bare, ours) = (median(bare), median(ours));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!(
        "1,000 new certificates, known platform: dcap-qvl {bare:?}, ours {ours:?}, ratio {ratio:.3}"
    );
}

fn verification(folder: &str, chain: &[Vec<u8>], mock: &(Verifier, Collateral), policy: &Policy) {
    let (verifier, collateral) = mock;
    let quote = examine(chain, MOCK_NOW, policy)
        .unwrap()
        .quote()
        .as_bytes()
        .to_vec();
    let bare = QuoteVerifier::new(verifier.root().der().to_vec());
    let bare = || {
        bare.verify(black_box(&quote), collateral.as_qvl(), MOCK_NOW)
            .unwrap();
    };
    let ours = || {
        let evidence = examine(black_box(chain), MOCK_NOW, policy).unwrap();
        verifier
            .verify(&evidence, collateral, policy, MOCK_NOW)
            .unwrap();
    };
    compare_first(folder, bare, ours);
}

fn lookup(folder: &str, chain: &[Vec<u8>], mock: &(Verifier, Collateral), policy: &Policy) {
    let (verifier, collateral) = mock;
    let mut examination = || {
        examine(black_box(chain), MOCK_NOW, policy).unwrap();
    };
    let examination = median((0..ROUNDS).map(|_| time(200, &mut examination)).collect());
    println!(
        "{folder}: examine {examination:?}, leaf of {} bytes",
        chain[0].len()
    );

    let evidence = examine(chain, MOCK_NOW, policy).unwrap();
    let peer = Arc::new(
        verifier
            .verify(&evidence, collateral, policy, MOCK_NOW)
            .unwrap(),
    );
    let epoch = Epoch {
        policy: policy.epoch(),
        collateral: 0,
    };
    let mut cache = VerdictCache::new(Capacity::default(), 3600, epoch);
    cache.insert(epoch, evidence.chain(), &Ok(peer), MOCK_NOW);
    let mut hit = || {
        black_box(cache.get(epoch, black_box(chain), MOCK_NOW))
            .unwrap()
            .unwrap();
    };
    let hit = median((0..ROUNDS).map(|_| time(10_000, &mut hit)).collect());
    println!(
        "{folder}: cache hit {hit:?}, chain of {} bytes",
        chain.concat().len()
    );
}
