//! Intel Trust Authority as the judge of a quote, in the place of collateral and dcap-qvl.
//!
//! It takes a quote, checks Intel's signatures and the TCB, and answers with a signed token (a JWT).
//! That replaces [`Verifier::appraise`](crate::Verifier::appraise) and nothing else: whose quote it is,
//! which measurements and which app are allowed, the replay of the event log and the KMS roots are
//! checked here as they are for every other peer, by the same function. So the way is
//!
//! ```text
//! BoundEvidence ─ Client::appraise ─ AppraisedEvidence ─ admit ─ AttestedPeer
//!                 token, its claims are the quote's   attributes, TCB, measurements, RTMR3, identity, roots
//! ```
//!
//! What it must never do: fetch a key from where a token says without looking who that is (a forged
//! token would bring its own key), take an algorithm from the token beyond the two that Intel signs
//! with, or believe a claim that differs from the quote in hand. The token is only believed because
//! its key was fetched over https from Intel's own host; a plain http base is for tests, on loopback.
//!
//! It opens sockets, on any tokio runtime with time and I/O; never on a shard. `now` is an argument.
//! JWTs are verified here with ring, which the crate has already, and not with a JWT library: those
//! read the wall clock, and most of what they can do must not be done. [contract, section 8]

mod algorithm;
mod attributes;
mod base;
mod claims;
mod error;
mod http;
mod jwks;
mod key;
mod token;

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

pub use base::{Base, BaseError, INTEL_EU, INTEL_US};
pub use error::ItaError;
pub use key::{ApiKey, MAX_API_KEY_LEN};

use base::Endpoints;
use claims::Claims;
use jwks::KeySet;
use token::Token;

use crate::binding::BoundEvidence;
pub use crate::limits::{MAX_KEY_SET_LEN, MAX_TOKEN_RESPONSE_LEN};
use crate::policy::Policy;
use crate::verify::{Appraisal, AttestedPeer, admit};

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest time for a TCP and TLS handshake.
    pub connect_timeout: Duration,
    /// Longest time for an appraisal, the fetch of keys included.
    pub deadline: Duration,
    /// How far `nbf` and `iat` may lie in the future: this clock may be slow. `exp` has no such grace.
    pub clock_skew: Duration,
}

impl Default for Options {
    /// 5 s to connect, 10 s in all, one minute of skew.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            clock_skew: Duration::from_secs(60),
        }
    }
}

/// Asks one Trust Authority. The keys that its tokens are signed with are kept between appraisals.
pub struct Client {
    endpoints: Endpoints,
    key: ApiKey,
    http: reqwest::Client,
    options: Options,
    /// Held over a fetch: those who wait for keys share one flight.
    keys: Mutex<Option<KeySet>>,
}

#[derive(Serialize)]
struct AppraisalRequest {
    quote: String,
    token_signing_alg: &'static str,
}

#[derive(Deserialize)]
struct AppraisalResponse {
    token: String,
}

impl Client {
    /// A client of `base`. https is verified, always, with the system's roots; redirects are not
    /// followed, and proxies of the environment are not used.
    ///
    /// # Errors
    /// [`ItaError::Base`]; [`ItaError::Client`] on a system without any trusted root.
    pub fn new(base: &Base, key: ApiKey, options: Options) -> Result<Self, ItaError> {
        Ok(Self {
            endpoints: base.endpoints()?,
            http: http::client(&options)?,
            keys: Mutex::new(None),
            key,
            options,
        })
    }

    /// The whole verification: [`Client::appraise`], then [`AppraisedEvidence::admit`].
    ///
    /// # Errors
    /// [`ItaError`]; a policy's refusal is [`ItaError::Denied`].
    pub async fn verify(
        &self,
        evidence: &BoundEvidence,
        policy: &Policy,
        now: u64,
    ) -> Result<AttestedPeer, ItaError> {
        self.appraise(evidence, now).await?.admit(policy, now)
    }

    /// Has the quote appraised: a token that is genuine, in date at `now` (unix seconds) and about
    /// this very quote. No policy has been asked yet.
    ///
    /// # Errors
    /// Any [`ItaError`] but [`ItaError::Denied`].
    pub async fn appraise(
        &self,
        evidence: &BoundEvidence,
        now: u64,
    ) -> Result<AppraisedEvidence, ItaError> {
        let claims =
            tokio::time::timeout(self.options.deadline, self.request_token(evidence, now)).await;
        let claims = claims.map_err(|_| ItaError::Timeout)??;
        claims.check_dates(now, self.options.clock_skew.as_secs())?;
        Ok(AppraisedEvidence {
            appraisal: claims.appraisal_of(evidence.quote())?,
            evidence: evidence.clone(),
        })
    }

    /// The claims of a token whose signature verifies.
    async fn request_token(&self, evidence: &BoundEvidence, now: u64) -> Result<Claims, ItaError> {
        let request_body = AppraisalRequest {
            quote: BASE64_STANDARD.encode(evidence.quote().as_bytes()),
            token_signing_alg: "PS384",
        };
        let body = serde_json::to_vec(&request_body).map_err(|_| ItaError::MalformedAnswer)?;
        let request = self
            .http
            .post(self.endpoints.attest.clone())
            .header("x-api-key", self.key.header())
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(body);
        let answer = match http::read(request, MAX_TOKEN_RESPONSE_LEN).await {
            Err(ItaError::Status(400)) => return Err(ItaError::QuoteRefused),
            answer => answer?,
        };
        let answer: AppraisalResponse =
            serde_json::from_slice(&answer).map_err(|_| ItaError::MalformedAnswer)?;
        let token = Token::parse(&answer.token)?;
        let from = self.endpoints.keys_url(token.jku());
        let from = from.ok_or(ItaError::UntrustedJku)?;
        self.verify_token(&token, from, now).await
    }

    /// With the keys that are cached; with newly fetched ones if there are none, or the token's is not
    /// among them. So a new key costs one fetch, and one that does not exist no more than that.
    async fn verify_token(
        &self,
        token: &Token<'_>,
        from: Url,
        now: u64,
    ) -> Result<Claims, ItaError> {
        let mut cached = self.keys.lock().await;
        if let Some(keys) = cached.as_ref().filter(|keys| keys.is_fresh_for(&from, now)) {
            match token.verify(keys) {
                Err(ItaError::UnknownKey) => {}
                known => return known,
            }
        }
        let request = self
            .http
            .get(from.clone())
            .header("accept", "application/json");
        let body = http::read(request, MAX_KEY_SET_LEN).await?;
        let keys = cached.insert(KeySet::parse(&body, from, now)?);
        token.verify(keys)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("attest", &self.endpoints.attest.as_str())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Bound evidence with what Trust Authority says of its quote.
///
/// Made by [`Client::appraise`] only. May be kept, and admitted again when the policy has changed.
#[derive(Clone, Debug)]
pub struct AppraisedEvidence {
    evidence: BoundEvidence,
    appraisal: Appraisal,
}

impl AppraisedEvidence {
    /// The evidence.
    #[must_use]
    pub fn evidence(&self) -> &BoundEvidence {
        &self.evidence
    }

    /// What the token says; valid until the token's last second.
    #[must_use]
    pub fn appraisal(&self) -> &Appraisal {
        &self.appraisal
    }

    /// Everything that is not Trust Authority's to say: the TD's attributes, and all that
    /// [`Verifier::verify`](crate::Verifier::verify) checks beside Intel's signatures.
    ///
    /// # Errors
    /// [`ItaError::Denied`]; [`ItaError::Expired`] if token or certificates are not in date any more.
    pub fn admit(&self, policy: &Policy, now: u64) -> Result<AttestedPeer, ItaError> {
        policy.check_debug(self.evidence.quote().report())?;
        attributes::check(self.evidence.quote())?;
        let peer = admit(&self.evidence, self.appraisal.clone(), policy, now)?;
        if now > peer.valid_until() {
            return Err(ItaError::Expired);
        }
        Ok(peer)
    }
}
