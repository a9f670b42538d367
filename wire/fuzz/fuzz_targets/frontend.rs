//! What a client sends inside TLS: a start-up packet, then a password message.
//!
//! Any cut is decided as the whole is; what is read is forwarded and written as it was.
#![no_main]

// Shared with the tests; no target uses all of it.
#[allow(dead_code)]
#[path = "../../tests/protocol/harness.rs"]
mod harness;

use libfuzzer_sys::fuzz_target;
use wire::startup::ProtocolVersion;

fuzz_target!(|data: &[u8]| {
    if let Some((startup, consumed)) = harness::check_startup(data) {
        harness::check_forwarded(&startup);
        harness::request_client_password(&startup, ProtocolVersion::V3_0);
        harness::check_password(&startup, &data[consumed..]);
    }
    // Otherwise a password would hardly ever be reached.
    harness::check_password(&harness::startup("me"), data);
});
