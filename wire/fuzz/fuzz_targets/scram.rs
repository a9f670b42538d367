//! A client's SCRAM messages inside TLS. The first byte of the input says whether
//! SCRAM-SHA-256-PLUS is offered, the rest is SASLInitialResponse and SASLResponse.
//!
//! The decision does not depend on how the input is split, and a proof opens a role only with the
//! keys of the password.
#![no_main]

// Shared with the tests; no target uses the whole harness.
#[allow(dead_code)]
#[path = "../../tests/protocol/harness.rs"]
mod harness;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wire::scram::server::ServerKeys;
use wire::secret::Password;

static KEYS: LazyLock<[ServerKeys; 2]> = LazyLock::new(|| {
    let salt = harness::scram_challenge(false).salt;
    ["eraser", harness::PASSWORD].map(|text| ServerKeys::derive(&Password::new(text), &salt))
});

fuzz_target!(|data: &[u8]| {
    let Some((offer, bytes)) = data.split_first() else {
        return;
    };
    if let Some(Ok(proof)) = harness::check_scram(offer & 1 != 0, bytes) {
        let mut out = Vec::new();
        let [wrong, right] = &*KEYS;
        assert!(!proof.verify([(wrong, 1.into()), (right, 0.into())], &mut out));
        assert!(out.is_empty());
        let proved = proof.verify([(wrong, 1.into()), (right, 1.into())], &mut out);
        assert_eq!(proved, out.starts_with(b"R"));
    }
});
