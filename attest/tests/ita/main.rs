//! Intel Trust Authority from outside: one that behaves, and one that lies in every way.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod admits;
mod http;
mod reasons;
mod tokens;

use std::time::Duration;

use attest::ita::{ApiKey, AppraisedEvidence, Base, Client, ItaError, Options};
use attest::mock::{
    Certificate, Evidence, Key, LeafOptions, Machine, MachineOptions, Pki, TrustAuthority, Verdict,
};
use attest::{AttestedPeer, BoundEvidence, Policy, examine};

/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
/// Seconds for which a token holds.
const LIFETIME: u64 = 300;
const SEED: [u8; 32] = [7; 32];

/// A Trust Authority, a client of it, and a peer to be judged.
struct World {
    authority: TrustAuthority,
    client: Client,
    machine: MachineOptions,
    evidence: Evidence,
    policy: Policy,
    runtime: tokio::runtime::Runtime,
}

fn pki() -> Pki {
    Pki::new(&SEED).unwrap()
}

fn client(url: &str, key: &str, deadline: Duration) -> Client {
    let options = Options {
        connect_timeout: Duration::from_millis(500),
        deadline,
        ..Options::default()
    };
    Client::new(
        &Base::Url(url.to_owned()),
        ApiKey::new(key).unwrap(),
        options,
    )
    .unwrap()
}

fn world() -> World {
    let authority = TrustAuthority::start(&pki(), NOW).unwrap();
    let deadline = Duration::from_secs(20);
    let url = authority.url();
    World {
        client: client(&url, TrustAuthority::API_KEY, deadline),
        authority,
        machine: MachineOptions::default(),
        evidence: Evidence::default(),
        policy: Policy::default(),
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
    }
}

impl World {
    fn certificate(&self) -> Certificate {
        self.certificate_of(&pki())
    }

    fn certificate_of(&self, pki: &Pki) -> Certificate {
        let key = Key::derive(&SEED, "leader").unwrap();
        let machine = Machine::new(pki, &self.machine).unwrap();
        Certificate::issue(pki, &machine, &key, &self.evidence, &LeafOptions::default()).unwrap()
    }

    /// What the handshake and the cheap part have shown already.
    fn bound(&self) -> BoundEvidence {
        examine(&self.certificate().chain_der(), NOW, &self.policy).unwrap()
    }

    fn appraise_at(&self, now: u64) -> Result<AppraisedEvidence, ItaError> {
        self.runtime
            .block_on(self.client.appraise(&self.bound(), now))
    }

    fn appraise(&self) -> Result<AppraisedEvidence, ItaError> {
        self.appraise_at(NOW)
    }

    fn verify(&self) -> Result<AttestedPeer, ItaError> {
        let bound = self.bound();
        self.runtime
            .block_on(self.client.verify(&bound, &self.policy, NOW))
    }

    /// The refusal of a token that is wrong like this.
    fn refused(&self, verdict: Verdict) -> ItaError {
        self.authority.say(verdict);
        self.appraise().unwrap_err()
    }
}
