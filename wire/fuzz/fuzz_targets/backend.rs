//! Fuzzes the login to Postgres, from the first message to ReadyForQuery. The first byte of the input is
//! the size of the pieces into which the rest is split.
//!
//! Checks that the outcome does not depend on the split, a method that is not allowed is refused, and
//! the client receives exactly what Postgres sent.
#![no_main]

// Shared with the tests; no target uses the whole harness.
#[allow(dead_code)]
#[path = "../../tests/protocol/harness.rs"]
mod harness;

use libfuzzer_sys::fuzz_target;
use wire::version_probe::{ProbeStep, parse_probe_response};

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else {
        return;
    };
    let outcome = harness::check_login("me", bytes, usize::from(*size));
    harness::check_methods("me", bytes, &outcome);
    if let harness::LoginOutcome::Ready { forwarded, rest, .. } = outcome {
        assert!(bytes.ends_with(&[forwarded, rest].concat()));
    }
    let part = parse_probe_response(&bytes[..bytes.len().min(usize::from(*size))]);
    assert!(part == ProbeStep::Read || part == parse_probe_response(bytes));
});
