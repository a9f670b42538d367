//! An Intel Trust Authority over HTTP on loopback, with fault injection.
//!
//! It exists so that the client can be tested without Intel's service. By default it verifies a quote
//! as Intel's does, its signatures up to the mock root and its TCB, and takes its claims from that quote.
//! It serves Intel's paths, requires the API key, publishes its keys, counts requests, and stops when
//! dropped.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::Request;
use serde_json::Value;

use super::behaviour::Behaviour;
use super::http::{Handler, JSON, Reply, Server};
use super::token::{Signer, TokenVariant};
use super::{CollateralOptions, MockError, Pki};
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::policy::{Policy, Settings, TcbStatus};
use crate::quote::TdQuote;
use crate::verify::{Appraisal, TrustedRoot, Verifier};

struct Shared {
    appraisals: AtomicUsize,
    key_fetches: AtomicUsize,
    /// Number in the name of the signing key.
    kid: AtomicUsize,
    now: AtomicU64,
    /// For appraisals, and for the key set.
    behaviour: Mutex<(Behaviour, Behaviour)>,
    token: Mutex<TokenVariant>,
    appraiser: Appraiser,
    signer: Signer,
    /// Set once the server listens.
    url: OnceLock<String>,
}

/// Verifies quotes and accepts every genuine one: a relying party applies its own policy afterwards.
struct Appraiser {
    verifier: Verifier,
    collateral: Collateral,
    policy: Policy,
}

/// A Trust Authority that listens on 127.0.0.1 until it is dropped.
pub struct TrustAuthority {
    shared: Arc<Shared>,
    server: Server,
}

impl TrustAuthority {
    /// The only API key that it accepts.
    pub const API_KEY: &'static str = "bW9jazprZXk=";

    /// Listens on a free port, and appraises quotes under `pki` as of `now` (unix seconds).
    ///
    /// # Errors
    /// [`MockError::Io`] if the system has no free port or cannot start a thread; [`MockError::Key`] if
    /// no RSA key can be generated.
    pub fn start(pki: &Pki, now: u64) -> Result<Self, MockError> {
        let root = TrustedRoot::dangerous(pki.root_der());
        let appraiser = Appraiser {
            verifier: Verifier::new(root.map_err(|e| MockError::Key(e.to_string()))?),
            collateral: pki.parsed_collateral(&CollateralOptions::at(now))?,
            policy: Policy::new(Settings {
                allow_debug_td: true,
                ..Settings::default()
            }),
        };
        let shared = Arc::new(Shared {
            appraisals: AtomicUsize::default(),
            key_fetches: AtomicUsize::default(),
            kid: AtomicUsize::new(1),
            now: AtomicU64::new(now),
            behaviour: Mutex::default(),
            token: Mutex::default(),
            appraiser,
            signer: Signer::new()?,
            url: OnceLock::new(),
        });
        let server = Server::tcp("mock-ita", Arc::clone(&shared))?;
        let _ = shared.url.set(server.address().to_string());
        Ok(Self { shared, server })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.address().to_string()
    }

    /// Sets the behaviour for appraisals.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        lock(&self.shared.behaviour).0 = behaviour;
    }

    /// Sets the behaviour for the key set.
    pub fn set_key_behaviour(&self, behaviour: Behaviour) {
        lock(&self.shared.behaviour).1 = behaviour;
    }

    /// Sets which token it issues.
    pub fn set_token(&self, token: TokenVariant) {
        *lock(&self.shared.token) = token;
    }

    /// Renames the signing key, and removes the old name from the key set.
    pub fn rotate_key(&self) {
        self.shared.kid.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the time in its tokens (unix seconds).
    pub fn set_now(&self, now: u64) {
        self.shared.now.store(now, Ordering::Relaxed);
    }

    /// The number of requests for an appraisal so far.
    #[must_use]
    pub fn appraisals(&self) -> usize {
        self.shared.appraisals.load(Ordering::Relaxed)
    }

    /// The number of requests for the key set so far.
    #[must_use]
    pub fn key_fetches(&self) -> usize {
        self.shared.key_fetches.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler for Shared {
    fn handle(&self, request: &Request<Bytes>) -> Reply {
        let (for_appraisals, for_keys) = *lock(&self.behaviour);
        let (behaviour, result) = match (request.method().as_str(), request.uri().path()) {
            ("POST", "/appraisal/v2/attest") => {
                self.appraisals.fetch_add(1, Ordering::Relaxed);
                (for_appraisals, self.attest(request))
            }
            ("GET", "/certs") => {
                self.key_fetches.fetch_add(1, Ordering::Relaxed);
                (for_keys, Ok(self.signer.key_set(&self.kid()).to_string()))
            }
            _ => (Behaviour::Normal, Err(404)),
        };
        behaviour.apply(match result {
            Ok(body) => Reply::default().with_body(JSON, body),
            Err(status) => Reply::status(status),
        })
    }
}

impl Shared {
    fn kid(&self) -> String {
        format!("key-{}", self.kid.load(Ordering::Relaxed))
    }

    /// The response body with a token, or the status of an error.
    fn attest(&self, request: &Request<Bytes>) -> Result<String, u16> {
        let key = request.headers().get("x-api-key");
        if key.is_none_or(|key| key.as_bytes() != TrustAuthority::API_KEY.as_bytes()) {
            return Err(401);
        }
        let body: Value = serde_json::from_slice(request.body()).map_err(|_| 400u16)?;
        let quote = body.get("quote").and_then(Value::as_str);
        let quote = BASE64_STANDARD.decode(quote.ok_or(400u16)?);
        let quote = TdQuote::parse(&quote.map_err(|_| 400u16)?).map_err(|_| 400u16)?;
        let now = self.now.load(Ordering::Relaxed);
        let Appraiser {
            verifier,
            collateral,
            policy,
        } = &self.appraiser;
        let appraisal = match verifier.appraise(&quote, collateral, policy, now) {
            // Intel's service reports the TD attributes and does not refuse any.
            Err(Denial::TdAttributes) => Ok(Appraisal {
                tcb_status: TcbStatus::UpToDate,
                advisories: Arc::default(),
                valid_until: now,
            }),
            result => result,
        };
        let url = self.url.get().ok_or(500u16)?;
        let keys = (&*format!("{url}/certs"), &*self.kid());
        let variant = lock(&self.token).clone();
        let appraisal = appraisal.map_err(|_| 400u16)?;
        let token = self.signer.token(&quote, &appraisal, now, keys, &variant);
        let token = token.map_err(|_| 500u16)?;
        Ok(serde_json::json!({ "token": token }).to_string())
    }
}
