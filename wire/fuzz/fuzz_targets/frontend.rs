//! Fuzzes a client's bytes inside TLS: a start-up packet, then a password message.
//!
//! Checks that the decision does not depend on how the input is split, and parameters are forwarded unchanged.
#![no_main]

// Shared with the tests; no target uses the whole harness.
#[allow(dead_code)]
#[path = "../../tests/protocol/harness.rs"]
mod harness;

use libfuzzer_sys::fuzz_target;
use wire::startup::ProtocolVersion;

fuzz_target!(|data: &[u8]| {
    let _ = wire::startup_options::find_settings(data);
    if let Some((startup, consumed)) = harness::check_startup(data) {
        harness::check_added(&startup);
        harness::check_forwarded(&startup);
        harness::request_client_password(&startup, ProtocolVersion::V3_0);
        harness::check_password(&startup, &data[consumed..]);
    }
    // The fuzzer would rarely reach the password otherwise.
    harness::check_password(&harness::startup("me"), data);
});
