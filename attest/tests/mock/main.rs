//! The mock TDX from outside: what it makes verifies in dcap-qvl, and what it makes wrong does not.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not the helpers beside them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod certificate;
mod refusals;
mod verifies;

use attest::mock::{CollateralOptions, Pki, Platform, PlatformOptions};
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};

const SEED: [u8; 32] = [7; 32];
/// 2027-01-15.
const NOW: u64 = 1_800_000_000;

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
