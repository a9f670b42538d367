//! Fuzzes the plaintext bytes before TLS. The first byte of the input is the policy, the rest is sent by
//! the client.
//!
//! Checks that the decision does not depend on how the input is split, and is made within the documented buffer
//! size.
#![no_main]

// Shared with the tests; no target uses the whole harness.
#[allow(dead_code)]
#[path = "../../tests/protocol/harness.rs"]
mod harness;

use libfuzzer_sys::fuzz_target;
use wire::opening::OpeningPolicy;

fuzz_target!(|data: &[u8]| {
    let Some((switches, bytes)) = data.split_first() else {
        return;
    };
    let policy = OpeningPolicy {
        plaintext_cancel: switches & 1 != 0,
        proxy_protocol: switches & 2 != 0,
    };
    harness::check_opening(policy, bytes);
});
