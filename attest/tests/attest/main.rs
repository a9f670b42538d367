//! Tests of the verification as a whole, through the public API: recorded evidence, the mock TDX, and
//! property tests.

// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod event_log;
mod policy;
mod policy_file;
mod reasons;

// These need evidence from the mock TDX, or recorded evidence.
#[cfg(feature = "mock")]
mod cache;
#[cfg(feature = "mock")]
mod certificates;
#[cfg(feature = "mock")]
mod chain;
#[cfg(feature = "mock")]
mod conformance;
#[cfg(feature = "mock")]
mod denials;
mod entries;
#[cfg(feature = "mock")]
mod evidence;
#[cfg(feature = "mock")]
mod properties;

use attest::Policy;
use attest::policy::Settings;

#[cfg(feature = "mock")]
const NOW: u64 = attest::mock::Fixture::NOW;

/// The default policy with one change.
fn policy_with(change: impl FnOnce(&mut Settings)) -> Policy {
    let mut settings = Settings::default();
    change(&mut settings);
    Policy::new(settings)
}
