//! Leader manifests from DNS.
//!
//! The signed text of a parsed manifest must parse to the same manifest, and no signature must be accepted
//! as the trusted signer's.
#![no_main]

use attest::manifest::{EthAddress, MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN, Manifest, ManifestError, ManifestPolicy, join_chunks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let chunks: Vec<&[u8]> = data.chunks(255).collect();
    let Ok(txt) = join_chunks(&chunks) else {
        return;
    };
    let Ok(unverified) = Manifest::parse(&txt) else {
        return;
    };
    assert!(txt.len() <= MAX_MANIFEST_LEN && txt.split(';').count() <= MAX_MANIFEST_FIELDS);
    let text = unverified.signed_text();
    let mut pairs = txt.split(';');
    let signature = pairs.find(|pair| pair.starts_with("sig=")).unwrap();
    let again = Manifest::parse(&format!("{text};{signature}"));
    assert_eq!(again.as_ref(), Ok(&unverified));
    let trust = ManifestPolicy {
        max_validity: None,
        ..ManifestPolicy::for_signer(EthAddress([0; 20]))
    };
    let refused = unverified.verify(&trust, 0);
    assert!(matches!(refused, Err(ManifestError::Signature { .. })));
});
