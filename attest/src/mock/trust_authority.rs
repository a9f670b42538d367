//! An Intel Trust Authority over HTTP on loopback, that can be told to misbehave.
//!
//! Honest, it verifies what it is sent as Intel's does: the quote's signatures up to the mock root, and
//! the TCB, and it makes its claims from that very quote. It answers on Intel's paths, wants the API
//! key, publishes its keys beside that, counts what it was asked, and stops when dropped.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::behaviour::Behaviour;
use super::http::{Connection, Handler, Request, Server, Stop, head};
use super::token::{Signer, TokenVariant};
use super::{CollateralOptions, MockError, Pki};
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::policy::{Policy, Settings, TcbStatus};
use crate::quote::TdQuote;
use crate::verify::{Appraisal, TrustedRoot, Verifier};

const JSON: &str = "content-type: application/json\r\n";

struct Shared {
    appraisals: AtomicUsize,
    key_fetches: AtomicUsize,
    kid: AtomicUsize,
    now: AtomicU64,
    behaviour: Mutex<(Behaviour, Behaviour)>,
    verdict: Mutex<TokenVariant>,
    appraiser: Appraiser,
    signer: Signer,
    /// Known once it listens.
    url: OnceLock<String>,
}

/// Verifies quotes, and accepts whatever is genuine: a relying party's policy comes after it.
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

    /// Listens on a free port, and judges quotes under `pki` as at `now`.
    ///
    /// # Errors
    /// [`MockError::Io`] if there is no port or thread; [`MockError::Key`] without an RSA key.
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
            verdict: Mutex::default(),
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

    /// From now on, answers requests for appraisals like this.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        lock(&self.shared.behaviour).0 = behaviour;
    }

    /// From now on, answers requests for its keys like this.
    pub fn set_key_behaviour(&self, behaviour: Behaviour) {
        lock(&self.shared.behaviour).1 = behaviour;
    }

    /// From now on, says this.
    pub fn set_token(&self, verdict: TokenVariant) {
        *lock(&self.shared.verdict) = verdict;
    }

    /// From now on, its key has another name, and the old one is in the set no more.
    pub fn rotate_key(&self) {
        self.shared.kid.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on, this is the time in its tokens.
    pub fn set_now(&self, now: u64) {
        self.shared.now.store(now, Ordering::Relaxed);
    }

    /// How often it was asked for an appraisal.
    #[must_use]
    pub fn appraisals(&self) -> usize {
        self.shared.appraisals.load(Ordering::Relaxed)
    }

    /// How often it was asked for its keys.
    #[must_use]
    pub fn key_fetches(&self) -> usize {
        self.shared.key_fetches.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler for Shared {
    fn answer(&self, request: &Request, to: &mut dyn Connection, stop: &Stop) -> io::Result<()> {
        let (for_appraisals, for_keys) = *lock(&self.behaviour);
        let (behaviour, answer) = match (request.method.as_str(), request.target.as_str()) {
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
        match answer {
            Ok(body) => behaviour.answer(to, stop, JSON, body.as_bytes()),
            Err(status) if behaviour == Behaviour::Normal => to.write_all(&head(status, "", 0)),
            Err(_) => behaviour.answer(to, stop, JSON, b""),
        }
    }
}

impl Shared {
    fn kid(&self) -> String {
        format!("key-{}", self.kid.load(Ordering::Relaxed))
    }

    /// The answer with a token, or the status of a refusal.
    fn attest(&self, request: &Request) -> Result<String, u16> {
        if request.api_key.as_deref() != Some(TrustAuthority::API_KEY) {
            return Err(401);
        }
        let question: Value = serde_json::from_slice(&request.body).map_err(|_| 400u16)?;
        let quote = question.get("quote").and_then(Value::as_str);
        let quote = BASE64_STANDARD.decode(quote.ok_or(400u16)?);
        let quote = TdQuote::parse(&quote.map_err(|_| 400u16)?).map_err(|_| 400u16)?;
        let now = self.now.load(Ordering::Relaxed);
        let Appraiser {
            verifier,
            collateral,
            policy,
        } = &self.appraiser;
        let appraisal = match verifier.appraise(&quote, collateral, policy, now) {
            // Intel's service says what the attributes are, and leaves it at that.
            Err(Denial::TdAttributes) => Ok(Appraisal {
                tcb_status: TcbStatus::UpToDate,
                advisories: Arc::default(),
                valid_until: now,
            }),
            judged => judged,
        };
        let url = self.url.get().ok_or(500u16)?;
        let keys = (&*format!("{url}/certs"), &*self.kid());
        let verdict = lock(&self.verdict).clone();
        let appraisal = appraisal.map_err(|_| 400u16)?;
        let token = self.signer.token(&quote, &appraisal, now, keys, &verdict);
        let token = token.map_err(|_| 500u16)?;
        Ok(serde_json::json!({ "token": token }).to_string())
    }
}
