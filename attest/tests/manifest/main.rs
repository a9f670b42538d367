//! Tests of the leader manifest through the public API: format, signature, URL, and leader state.

// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod format;
mod leader;
mod properties;
mod records;
mod state;
mod verify;

use attest::manifest::{EthAddress, Manifest, ManifestPolicy, SigningKey, UnsignedManifest};

/// The signed text of the golden manifest: its fields, sorted by name.
const GOLDEN_TEXT: &str = "cluster=0xbd32b609057a1a4569558a571d535c8f1212b097;epoch=42;\
    leader_instance=ea23198e3419ebbb240571a29d0112d9bcbe69c0;\
    leader_url=https://ea23198e3419ebbb240571a29d0112d9bcbe69c0-5433.dstack-base-prod9.phala.network;\
    v=1;valid_until=1713312000";

/// The signature of [`GOLDEN_TEXT`] by [`key`], made with eth-account 0.14 (Python).
const GOLDEN_SIGNATURE: &str = "0x7b187a800cf974db9fe80c5b5ec16c09acfc32b7035d5d169b29245c1f46fbd0\
    7e364be4cf1e6b42619fa1461952e6625ed98c45243db0de882875c30a8b07861c";

/// The address of [`key`], derived with eth-account.
const GOLDEN_SIGNER: &str = "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a";

const VALID_UNTIL: u64 = 1_713_312_000;
/// One second before the golden manifest expires.
const NOW: u64 = VALID_UNTIL - 1;

fn key() -> SigningKey {
    SigningKey::from_hex(&"11".repeat(32)).unwrap()
}

fn trust() -> ManifestPolicy {
    ManifestPolicy::for_signer(key().address())
}

fn draft() -> UnsignedManifest {
    UnsignedManifest {
        cluster: "0xbd32b609057a1a4569558a571d535c8f1212b097"
            .parse()
            .unwrap(),
        leader_instance: "ea23198e3419ebbb240571a29d0112d9bcbe69c0".parse().unwrap(),
        leader_url:
            "https://ea23198e3419ebbb240571a29d0112d9bcbe69c0-5433.dstack-base-prod9.phala.network"
                .parse()
                .unwrap(),
        epoch: 42,
        valid_until: VALID_UNTIL,
    }
}

fn golden() -> String {
    draft().sign(&key()).unwrap()
}

/// The golden manifest with one change, signed and verified one second before it expires.
fn verified(change: impl FnOnce(&mut UnsignedManifest)) -> Manifest {
    let mut draft = draft();
    change(&mut draft);
    let txt = draft.sign(&key()).unwrap();
    let now = draft.valid_until - 1;
    Manifest::parse(&txt)
        .unwrap()
        .verify(&trust(), now)
        .unwrap()
}

fn address(byte: u8) -> EthAddress {
    EthAddress([byte; 20])
}
