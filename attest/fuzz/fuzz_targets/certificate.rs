//! Evidence from a peer. The first byte selects whether the rest is a leaf, an envelope or a quote.
//!
//! Parsed values must be slices of the input and within their caps, and parsing must be deterministic.
#![no_main]

use attest::certificate::Leaf;
use attest::chain::{Chain, KmsRoot};
use attest::evidence::UnboundEvidence;
use attest::quote::TdQuote;
use attest::{Denial, Policy, examine};
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind {
        0 => check_leaf(bytes),
        1 => check_envelope(bytes),
        2 => check_quote(bytes),
        _ => {}
    }
});

fn check_leaf(der: &[u8]) {
    let Ok(leaf) = Leaf::parse(der) else {
        return;
    };
    assert!(der.windows(leaf.spki().len()).any(|window| window == leaf.spki()));
    match examine(&[der], NOW, &Policy::default()) {
        Ok(evidence) => {
            assert_eq!(evidence.not_after(), leaf.not_after());
            assert!(evidence.chain().matches(&[der]));
            let _ = evidence.collateral_key();
        }
        Err(denial) => assert!(Denial::CODES.contains(&denial.code())),
    }
    // The leaf as its own issuer.
    if let Ok(root) = KmsRoot::from_der(der) {
        let chain = Chain::copy(&[der, der]).unwrap();
        let _ = chain.verify_up_to(&[root], NOW);
    }
}

fn check_envelope(envelope: &[u8]) {
    if let Ok(evidence) = UnboundEvidence::from_envelope(envelope) {
        check_quote(evidence.quote().as_bytes());
        let _ = evidence.events().prove(evidence.quote().report().rtmr3());
        // Trailing bytes are refused.
        assert!(UnboundEvidence::from_envelope(&[envelope, &[0]].concat()).is_err());
    }
}

fn check_quote(bytes: &[u8]) {
    if let Ok(quote) = TdQuote::parse(bytes) {
        assert_eq!(quote.as_bytes(), bytes);
        let chain = quote.pck_chain();
        assert!(chain.is_empty() || bytes.windows(chain.len()).any(|window| window == chain));
        let _ = quote.collateral_key();
    }
}
