//! Whatever a peer sends, it is refused with a code or admitted; it never panics.

use std::sync::LazyLock;

use attest::certificate::Leaf;
use attest::collateral::Collateral;
use attest::evidence::UnboundEvidence;
use attest::mock::{Certificate, Envelope};
use attest::quote::TdQuote;
use attest::{Denial, Policy, Verifier, examine};
use proptest::prelude::*;

use crate::world::{NOW, world};

struct Peer {
    certificate: Certificate,
    verifier: Verifier,
    collateral: Collateral,
    policy: Policy,
}

static PEERS: LazyLock<Vec<Peer>> = LazyLock::new(|| {
    [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both]
        .map(|envelope| {
            let world = world(|w| w.evidence.envelope = envelope);
            Peer {
                certificate: world.certificate(),
                verifier: world.verifier(),
                collateral: world.collateral(),
                policy: world.policy,
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
fn truncation_at_every_byte() {
    for peer in PEERS.iter() {
        let leaf = peer.certificate.der();
        for len in 0..leaf.len() {
            let denial = examine(&[&leaf[..len]], NOW, &peer.policy).unwrap_err();
            assert_eq!(denial.code(), "malformed_certificate", "cut at {len}");
        }
    }
}

/// One flipped bit anywhere in the evidence is refused. Outside of it the issuer's signature is what
/// would notice, and no root is pinned here: the quote is bound to the key, not to the names.
#[test]
fn every_flipped_bit_of_a_quote() {
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
            // The PEM chain tolerates white space and a root that is not used.
            let in_the_chain = flipped.len() - byte <= quote.pck_chain().len();
            assert!(appraisal.is_err() || in_the_chain, "byte {byte}, bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn flipped_bits(peer in 0..4usize, flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4)) {
        let peer = &PEERS[peer];
        let mut leaf = peer.certificate.der().to_vec();
        for (byte, bit) in flips {
            let byte = byte.index(leaf.len());
            leaf[byte] ^= 1u8 << bit;
        }
        let _ = peer.admit(&[&leaf[..], peer.certificate.chain_der()[1]]);
    }

    #[test]
    fn spliced(peer in 0..4usize, at in any::<prop::sample::Index>(), junk in prop::collection::vec(any::<u8>(), 0..64)) {
        let peer = &PEERS[peer];
        let mut leaf = peer.certificate.der().to_vec();
        let at = at.index(leaf.len());
        let end = leaf.len().min(at + junk.len());
        leaf.splice(at..end, junk);
        let _ = peer.admit(&[leaf]);
    }

    #[test]
    fn anything_at_all(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(Leaf::parse(&bytes).is_err());
        prop_assert!(TdQuote::parse(&bytes).is_err());
        let _ = UnboundEvidence::from_envelope(&bytes);
        for first in [0x00, 0x83] {
            let _ = UnboundEvidence::from_envelope(&[&[first], &bytes[..]].concat());
        }
    }

    #[test]
    fn cut_chains(len in 0..4000usize) {
        let peer = &PEERS[0];
        let [leaf, ca] = peer.certificate.chain_der();
        let ca = &ca[..len.min(ca.len())];
        // No root is pinned: issuers are not looked at.
        prop_assert_eq!(peer.admit(&[leaf, ca]), Ok(()));
    }
}
