//! Tests of the Intel Trust Authority client through the public API, with valid and forged tokens.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod http;
mod reasons;
mod tokens;
mod verification;

use std::time::Duration;

use attest::ita::{ApiKey, AppraisedEvidence, Base, Client, ItaError, Options};
use attest::mock::{Fixture, TokenVariant, TrustAuthority};
use attest::{AttestedPeer, BoundEvidence, examine};

const NOW: u64 = Fixture::NOW;
/// Seconds for which a token is valid.
const LIFETIME: u64 = 300;

/// A Trust Authority, its client, and a peer to be appraised.
struct ItaFixture {
    authority: TrustAuthority,
    client: Client,
    peer: Fixture,
    runtime: tokio::runtime::Runtime,
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

impl Default for ItaFixture {
    fn default() -> Self {
        let peer = Fixture::default();
        let authority = TrustAuthority::start(&peer.pki, NOW).unwrap();
        let deadline = Duration::from_secs(20);
        Self {
            client: client(&authority.url(), TrustAuthority::API_KEY, deadline),
            authority,
            peer,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }
}

impl ItaFixture {
    /// The peer's evidence, bound to its certificate.
    fn bound(&self) -> BoundEvidence {
        let certificate = self.peer.certificate();
        examine(&certificate.chain_der(), NOW, &self.peer.policy).unwrap()
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
            .block_on(self.client.verify(&bound, &self.peer.policy, NOW))
    }

    /// The error that a token of this variant causes.
    fn refused(&self, variant: TokenVariant) -> ItaError {
        self.authority.set_token(variant);
        self.appraise().unwrap_err()
    }
}
