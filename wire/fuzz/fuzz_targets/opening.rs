//! The plaintext bytes before TLS: a policy in the first byte, then what the client sends.
//!
//! Any cut is decided as the whole is, in time, and only ever once.
#![no_main]

// Shared with the tests; no target uses all of it.
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
