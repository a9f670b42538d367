//! Tests of collateral through the public API: parsing, the store, a faulty PCCS, and a faulty disk.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod check;
mod disk;
mod fetch;
mod store;

use attest::collateral::Collateral;
use attest::mock::{CollateralOptions, Fixture, Pki};

const NOW: u64 = Fixture::NOW;
const DAY: u64 = 86_400;

fn pki() -> Pki {
    Pki::new(&Fixture::SEED).unwrap()
}

/// Collateral that the mock PKI issued at `now`.
fn fresh(now: u64) -> Collateral {
    pki()
        .parsed_collateral(&CollateralOptions::at(now))
        .unwrap()
}
