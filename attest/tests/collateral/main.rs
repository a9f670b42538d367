//! The collateral store from outside: its rules, a PCCS that misbehaves, disks that break.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not the helpers beside them.
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
use attest::mock::{CollateralOptions, Pki};

/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn pki() -> Pki {
    Pki::new(&[7; 32]).unwrap()
}

/// What the mock "Intel" has signed at `now`.
fn fresh(now: u64) -> Collateral {
    pki()
        .parsed_collateral(&CollateralOptions::at(now))
        .unwrap()
}
