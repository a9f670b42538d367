//! An Intel Trust Authority over HTTP on loopback, that can be told to misbehave.
//!
//! Honest, it verifies what it is sent as Intel's does: the quote's signatures up to the mock root, and
//! the TCB, and it makes its claims from that very quote. It answers on Intel's paths, wants the API
//! key, publishes its keys beside that, counts what it was asked, and stops when dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::ita_http::{Request, read_request, respond};
use super::token::Signer;
use super::{CollateralOptions, MockError, Pki};
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::policy::{Policy, Settings, TcbStatus};
use crate::quote::TdQuote;
use crate::verify::{Appraisal, TrustedRoot, Verifier};

/// Most connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// How the HTTP is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As it should be.
    #[default]
    Honest,
    /// Closes each connection without an answer.
    Down,
    /// Takes the request and says nothing.
    Silent,
    /// Sends one byte of the answer every 100 ms.
    Trickle,
    /// Sends half of the body and closes.
    HalfBody,
    /// Declares and sends 100 MB.
    Huge,
    /// Sends 100 MB in chunks, without saying before how much it will be.
    HugeChunked,
    /// 200 with a page of HTML.
    Html,
    /// This status, without a body.
    Status(u16),
    /// Sends a redirect to another host.
    Redirect,
}

/// What is in the token.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Verdict {
    /// The truth, in PS384.
    #[default]
    Honest,
    /// The truth, with the claims in a member `tdx`, as Intel's version 2 has them.
    Nested,
    /// The truth, in RS256.
    Rs256,
    /// `alg: none`, and no signature.
    AlgorithmNone,
    /// HS256, with the public key as the secret.
    Hs256,
    /// Signed by another key, under the name of the right one.
    ForeignKey,
    /// One bit of the signature is wrong.
    BadSignature,
    /// `jku` is this URL.
    KeysElsewhere(String),
    /// `kid` is of no key in the set.
    UnknownKey,
    /// `kid` is of a key of 1,024 bits.
    ShortKey,
    /// `exp` is now.
    Expired,
    /// `nbf` and `iat` are in five minutes.
    NotYetValid,
    /// This claim about the TD has this value; null takes it out.
    Claim(&'static str, Value),
}

struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    appraisals: AtomicUsize,
    key_fetches: AtomicUsize,
    kid: AtomicUsize,
    now: AtomicU64,
    manner: Mutex<(Manner, Manner)>,
    verdict: Mutex<Verdict>,
    judge: Judge,
    signer: Signer,
    address: SocketAddr,
}

/// Verifies quotes, and accepts whatever is genuine: a relying party's policy comes after it.
struct Judge {
    verifier: Verifier,
    collateral: Collateral,
    policy: Policy,
}

/// A Trust Authority that listens on 127.0.0.1 until it is dropped.
pub struct TrustAuthority {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl TrustAuthority {
    /// The only API key that it accepts.
    pub const API_KEY: &'static str = "bW9jazprZXk=";

    /// Listens on a free port, and judges quotes under `pki` as at `now`.
    ///
    /// # Errors
    /// [`MockError::Io`] if there is no port or thread; [`MockError::Key`] without an RSA key.
    pub fn start(pki: &Pki, now: u64) -> Result<Self, MockError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let root = TrustedRoot::dangerous(pki.root_der());
        let judge = Judge {
            verifier: Verifier::new(root.map_err(|e| MockError::Key(e.to_string()))?),
            collateral: pki.parsed_collateral(&CollateralOptions::at(now))?,
            policy: Policy::new(Settings {
                allow_debug_td: true,
                ..Settings::default()
            }),
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::default(),
            connections: AtomicUsize::default(),
            appraisals: AtomicUsize::default(),
            key_fetches: AtomicUsize::default(),
            kid: AtomicUsize::new(1),
            now: AtomicU64::new(now),
            manner: Mutex::default(),
            verdict: Mutex::default(),
            judge,
            signer: Signer::new()?,
            address: listener.local_addr()?,
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mock-ita".to_owned())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// From now on, takes appraisals in this manner.
    pub fn behave(&self, manner: Manner) {
        lock(&self.shared.manner).0 = manner;
    }

    /// From now on, takes requests for its keys in this manner.
    pub fn behave_for_keys(&self, manner: Manner) {
        lock(&self.shared.manner).1 = manner;
    }

    /// From now on, says this.
    pub fn say(&self, verdict: Verdict) {
        *lock(&self.shared.verdict) = verdict;
    }

    /// From now on, its key has another name, and the old one is in the set no more.
    pub fn rotate(&self) {
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

impl Drop for TrustAuthority {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let second = Duration::from_secs(1);
        drop(TcpStream::connect_timeout(&self.shared.address, second));
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed, and ends with it.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let serving = Arc::clone(shared);
        let spawned = std::thread::Builder::new()
            .name("mock-ita-conn".to_owned())
            .spawn(move || {
                // What the client does to its connection is its business.
                let _ = serving.serve(stream);
                serving.connections.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(&mut stream)? else {
            return Ok(());
        };
        let (for_appraisals, for_keys) = *lock(&self.manner);
        let (manner, answer) = match request.line.as_str() {
            "POST /appraisal/v2/attest" => {
                self.appraisals.fetch_add(1, Ordering::Relaxed);
                (for_appraisals, self.attest(&request))
            }
            "GET /certs" => {
                self.key_fetches.fetch_add(1, Ordering::Relaxed);
                (for_keys, Ok(self.signer.key_set(&self.kid()).to_string()))
            }
            _ => (Manner::Honest, Err(404)),
        };
        respond(&mut stream, &self.stop, manner, answer)
    }

    fn kid(&self) -> String {
        format!("key-{}", self.kid.load(Ordering::Relaxed))
    }

    /// The answer with a token, or the status of a refusal.
    fn attest(&self, request: &Request) -> Result<String, u16> {
        if request.header("x-api-key") != Some(TrustAuthority::API_KEY) {
            return Err(401);
        }
        let question: Value = serde_json::from_slice(&request.body).map_err(|_| 400u16)?;
        let quote = question.get("quote").and_then(Value::as_str);
        let quote = BASE64_STANDARD.decode(quote.ok_or(400u16)?);
        let quote = TdQuote::parse(&quote.map_err(|_| 400u16)?).map_err(|_| 400u16)?;
        let now = self.now.load(Ordering::Relaxed);
        let Judge {
            verifier,
            collateral,
            policy,
        } = &self.judge;
        let appraisal = match verifier.appraise(&quote, collateral, policy, now) {
            // Intel's service says what the attributes are, and leaves it at that.
            Err(Denial::TdAttributes) => Ok(Appraisal {
                tcb_status: TcbStatus::UpToDate,
                advisories: Arc::default(),
                valid_until: now,
            }),
            judged => judged,
        };
        let keys = (&*format!("{}/certs", self.url()), &*self.kid());
        let verdict = lock(&self.verdict).clone();
        let appraisal = appraisal.map_err(|_| 400u16)?;
        let token = self.signer.token(&quote, &appraisal, now, keys, &verdict);
        let token = token.map_err(|_| 500u16)?;
        Ok(serde_json::json!({ "token": token }).to_string())
    }
}
