//! Collateral as JSON, from a PCCS or a file.
//!
//! Parsed collateral must survive a round trip, and must not verify under Intel's root.
#![no_main]

use attest::TrustedRoot;
use attest::collateral::Collateral;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(collateral) = Collateral::from_json(data) else {
        return;
    };
    let json = collateral.to_json().unwrap();
    let again = Collateral::from_json(&json).unwrap();
    assert_eq!(again.digest(), collateral.digest());
    assert_eq!(again.key(), collateral.key());
    let now = collateral.valid_from();
    assert_eq!(collateral.is_valid_at(now), now < collateral.expires_at());
    assert!(collateral.check(TrustedRoot::intel().der(), now).is_err());
});
