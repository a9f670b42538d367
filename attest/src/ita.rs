//! Client of Intel Trust Authority, a remote verifier of quotes: an alternative to collateral and dcap-qvl.
//!
//! Trust Authority takes a quote, checks Intel's signatures and the TCB, and returns a signed token (a
//! JWT). The token replaces [`Verifier::appraise`](crate::Verifier::appraise) and nothing else. The binding
//! to the key, the allow-lists, the replay of the event log and the KMS roots are checked locally, by the
//! same code as for every other verifier:
//!
//! ```text
//! BoundEvidence ─ Client::appraise ─ AppraisedEvidence ─ admit ─ AttestedPeer
//!                 token, its claims are the quote's   attributes, TCB, measurements, RTMR3, identity, roots
//! ```
//!
//! What it must never do: fetch a key from an unchecked `jku` (a forged token would bring its own key),
//! accept an algorithm other than the two that Intel signs with, or accept a claim that differs from the
//! quote at hand. A token is trusted only because its key was fetched over https from Intel's own host; a
//! plain http base is for tests, on a loopback address.
//!
//! It opens sockets and runs on any tokio runtime with time and I/O; never on a shard. `now` is an argument.
//! Tokens are verified with ring, which the crate uses anyway, and not with a JWT library
//! (docs/adr/0015-own-jwt-verification.md).

mod algorithm;
pub(crate) mod attributes;
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
use crate::quote::TdQuote;
use crate::verify::{Appraisal, AttestedPeer, admit, check_bare};

/// Timeouts and tolerances of a [`Client`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Timeout of a TCP and TLS handshake.
    pub connect_timeout: Duration,
    /// Deadline of an appraisal, including the fetch of keys.
    pub deadline: Duration,
    /// How far `nbf` and `iat` may be in the future, for a slow local clock. There is none for `exp`.
    pub clock_skew: Duration,
}

impl Default for Options {
    /// 5 s to connect, 10 s in total, one minute of clock skew.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            clock_skew: Duration::from_secs(60),
        }
    }
}

/// A client of one Trust Authority. Caches the keys that tokens are signed with.
pub struct Client {
    endpoints: Endpoints,
    key: ApiKey,
    http: reqwest::Client,
    options: Options,
    /// The cached keys. Locked during a fetch, so that concurrent appraisals share one (single flight).
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
    /// Creates a client of `base`. https is always verified, with the system's roots. Redirects are not
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

    /// Verifies a peer: [`Client::appraise`], then [`AppraisedEvidence::admit`].
    ///
    /// # Errors
    /// [`ItaError`]. A refusal by the policy is [`ItaError::Denied`].
    pub async fn verify(
        &self,
        evidence: &BoundEvidence,
        policy: &Policy,
        now: u64,
    ) -> Result<AttestedPeer, ItaError> {
        self.appraise(evidence, now).await?.admit(policy, now)
    }

    /// Has the quote appraised. The resulting token is genuine, in date at `now` (Unix seconds), and about
    /// this quote. The policy is not applied.
    ///
    /// # Errors
    /// Any [`ItaError`] except [`ItaError::Denied`].
    pub async fn appraise(
        &self,
        evidence: &BoundEvidence,
        now: u64,
    ) -> Result<AppraisedEvidence, ItaError> {
        Ok(AppraisedEvidence {
            appraisal: self.appraise_quote(evidence.quote(), now).await?,
            evidence: evidence.clone(),
        })
    }

    /// As [`Client::verify`], of a bare quote. It is bound to no key, so the result is not a peer.
    ///
    /// # Errors
    /// As [`Client::verify`].
    pub async fn verify_quote(
        &self,
        quote: &TdQuote,
        policy: &Policy,
        now: u64,
    ) -> Result<Appraisal, ItaError> {
        let appraisal = self.appraise_quote(quote, now).await?;
        check_bare(quote, &appraisal, policy, now)?;
        Ok(appraisal)
    }

    async fn appraise_quote(&self, quote: &TdQuote, now: u64) -> Result<Appraisal, ItaError> {
        let claims =
            tokio::time::timeout(self.options.deadline, self.request_token(quote, now)).await;
        let claims = claims.map_err(|_| ItaError::Timeout)??;
        claims.check_dates(now, self.options.clock_skew.as_secs())?;
        claims.appraisal_of(quote)
    }

    /// Requests a token, verifies its signature, and gives its claims.
    async fn request_token(&self, quote: &TdQuote, now: u64) -> Result<Claims, ItaError> {
        let request_body = AppraisalRequest {
            quote: BASE64_STANDARD.encode(quote.as_bytes()),
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

    /// Verifies a token with the cached keys. Fetches the keys if there are none, or if the token's key is
    /// not among them: an unknown key costs one fetch.
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

/// Bound evidence with Trust Authority's appraisal of its quote.
///
/// Made by [`Client::appraise`] only. It may be kept, and admitted again under another policy.
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

    /// The appraisal, valid until the last second of the token.
    #[must_use]
    pub fn appraisal(&self) -> &Appraisal {
        &self.appraisal
    }

    /// Makes the checks that are not Trust Authority's: the TD's attributes, and all checks of
    /// [`Verifier::verify`](crate::Verifier::verify) except Intel's signatures. `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`ItaError::Denied`]; [`ItaError::Expired`] if the token or a certificate has expired.
    pub fn admit(&self, policy: &Policy, now: u64) -> Result<AttestedPeer, ItaError> {
        policy.check_debug(self.evidence.quote().report())?;
        attributes::check(self.evidence.quote())?;
        let peer = admit(&self.evidence, self.appraisal.clone(), policy)?;
        if now > peer.valid_until() {
            return Err(ItaError::Expired);
        }
        Ok(peer)
    }
}
