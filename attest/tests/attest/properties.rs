//! Property tests: any input from a peer is admitted or denied, and never causes a panic.

use std::sync::LazyLock;

use attest::certificate::Leaf;
use attest::collateral::Collateral;
use attest::evidence::UnboundEvidence;
use attest::mock::{Certificate, Envelope, Fixture};
use attest::quote::TdQuote;
use attest::{Denial, Policy, Verifier, examine};
use proptest::prelude::*;

use crate::NOW;

struct Peer {
    certificate: Certificate,
    verifier: Verifier,
    collateral: Collateral,
    policy: Policy,
}

static PEERS: LazyLock<Vec<Peer>> = LazyLock::new(|| {
    [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both]
        .map(|envelope| {
            let fixture = Fixture::with(|f| f.evidence.envelope = envelope);
            Peer {
                certificate: fixture.certificate(),
                verifier: fixture.verifier(),
                collateral: fixture.issue_collateral(),
                policy: fixture.policy,
            }
        })
        .into()
});

impl Peer {
    fn admit(&self, chain: &[impl AsRef<[u8]>]) -> Result<(), Denial> {
        let evidence = examine(chain, NOW, &self.policy)?;
        self.verifier
            .verify(&evidence, &self.collateral, &self.policy, NOW)
            .map(|_| ())
    }
}

#[test]
fn leaf_truncated_at_any_byte_is_refused() {
    for peer in PEERS.iter() {
        let leaf = peer.certificate.der();
        for len in 0..leaf.len() {
            let denial = examine(&[&leaf[..len]], NOW, &peer.policy).unwrap_err();
            assert_eq!(denial.code(), "malformed_certificate", "cut at {len}");
        }
    }
}

/// Only the quote is tested: the rest of the certificate is protected by the issuer's signature, and no
/// root is pinned here. The quote is bound to the key, and not to the names.
#[test]
fn quote_with_any_flipped_bit_is_refused() {
    let peer = &PEERS[1];
    let quote = peer.certificate.quote().unwrap();
    for byte in 0..quote.len() {
        for bit in [0, 7] {
            let mut flipped = quote.to_vec();
            flipped[byte] ^= 1u8 << bit;
            let Ok(quote) = TdQuote::parse(&flipped) else {
                continue;
            };
            let appraisal = peer
                .verifier
                .appraise(&quote, &peer.collateral, &peer.policy, NOW);
            // PEM tolerates changes to white space and to the root, which is not used.
            let in_the_chain = flipped.len() - byte <= quote.pck_chain().len();
            assert!(appraisal.is_err() || in_the_chain, "byte {byte}, bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn flipped_bits_never_panic(peer in 0..4usize, flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4)) {
        let peer = &PEERS[peer];
        let mut leaf = peer.certificate.der().to_vec();
        for (byte, bit) in flips {
            let byte = byte.index(leaf.len());
            leaf[byte] ^= 1u8 << bit;
        }
        let _ = peer.admit(&[&leaf[..], peer.certificate.chain_der()[1]]);
    }

    #[test]
    fn spliced_leaves_never_panic(peer in 0..4usize, at in any::<prop::sample::Index>(), junk in prop::collection::vec(any::<u8>(), 0..64)) {
        let peer = &PEERS[peer];
        let mut leaf = peer.certificate.der().to_vec();
        let at = at.index(leaf.len());
        let end = leaf.len().min(at + junk.len());
        leaf.splice(at..end, junk);
        let _ = peer.admit(&[leaf]);
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(Leaf::parse(&bytes).is_err());
        prop_assert!(TdQuote::parse(&bytes).is_err());
        let _ = UnboundEvidence::from_envelope(&bytes);
        for first in [0x00, 0x83] {
            let _ = UnboundEvidence::from_envelope(&[&[first], &bytes[..]].concat());
        }
    }

    #[test]
    fn truncated_issuers_are_ignored_without_a_pinned_root(len in 0..4000usize) {
        let peer = &PEERS[0];
        let [leaf, ca] = peer.certificate.chain_der();
        let ca = &ca[..len.min(ca.len())];
        // Without a pinned root, issuers are not parsed.
        prop_assert_eq!(peer.admit(&[leaf, ca]), Ok(()));
    }
}
