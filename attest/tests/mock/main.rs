//! Tests of the mock TDX with dcap-qvl, an independent verifier: it accepts the mock's output, and refuses
//! each injected fault.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod certificate;
mod faults;
mod quotes;

use attest::mock::{CollateralOptions, Fixture, Pki, Platform, PlatformOptions};
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};

const SEED: [u8; 32] = Fixture::SEED;
const NOW: u64 = Fixture::NOW;

fn pki() -> Pki {
    Pki::new(&SEED).unwrap()
}

fn platform(pki: &Pki) -> Platform {
    Platform::new(pki, &PlatformOptions::default()).unwrap()
}

fn verify(
    pki: &Pki,
    quote: &[u8],
    collateral: &QuoteCollateralV3,
    now: u64,
) -> Result<VerifiedReport, String> {
    QuoteVerifier::new(pki.root_der().to_vec())
        .verify(quote, collateral, now)
        .map_err(|error| format!("{error:#}"))
}

fn fresh(pki: &Pki) -> QuoteCollateralV3 {
    pki.collateral(&CollateralOptions::at(NOW)).unwrap()
}
