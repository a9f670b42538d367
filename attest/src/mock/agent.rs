//! dstack's guest agent, with fault injection.
//!
//! It exists so that the agent's client and the sidecar run where there is no TDX. It responds as the
//! recorded exchanges of dstack 0.6.0 do, with the same fields and error texts, from a [`Pki`] and a
//! [`Platform`](super::Platform): what it issues verifies under the mock root. Requests are accepted as
//! dstack's HTTP server accepts them [dstack `ra-rpc/src/rocket_helper.rs`]: `POST` with a JSON body, by
//! its content type or by the query `?json`, and `GET` with the fields in the query. It serves one request
//! per connection, counts requests, and stops when dropped.
//!
//! Not implemented: requests and responses in protobuf, and methods that the client does not use except `Sign`.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use sha2::{Digest, Sha256};

use super::http::{Address, Delivery, HTML, Handler, JSON, Reply, Server};
use super::{Evidence, MockError, Pki, PlatformOptions};
use crate::agent::{AgentAddress, Method};

mod claims;
mod guest;
mod request;
mod sign;

use guest::{Fault, Guest};

const PAGE: &str = "<!DOCTYPE html><title>502 Bad Gateway</title>";
/// A method that the client does not have.
const SIGN: &str = "Sign";
/// Neither JSON nor UTF-8.
const GARBAGE: &[u8] = &[0xff, 0xfe, 0x7b, 0x22, 0x00, 0x80, 0x0a, 0xc3];

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentListen {
    /// On a free port of 127.0.0.1.
    Tcp,
    /// On a Unix socket. A socket file on which nothing listens is replaced.
    Unix(PathBuf),
}

/// A clock: unix seconds.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The TD in which the agent runs.
#[derive(Clone)]
pub struct AgentOptions {
    /// The agent's secret: another seed gives other keys.
    pub seed: [u8; 32],
    /// The platform below the TD.
    pub platform: PlatformOptions,
    /// The TD's evidence. Report data comes from each request, unless
    /// [`binding`](Evidence::binding) overrides it for certificates.
    pub evidence: Evidence,
    /// The application's name.
    pub app_name: String,
    /// The application's compose file.
    pub app_compose: String,
    /// The clock for the default notAfter of certificates.
    pub now: Now,
    /// How long each quote takes: 39 ms on hardware. Quotes are made one after another.
    pub quote_time: Duration,
}

impl AgentOptions {
    /// A TD without faults, with this clock. Quotes take no time.
    #[must_use]
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let app_compose =
            r#"{"manifest_version":2,"name":"mock","runner":"docker-compose"}"#.to_owned();
        Self {
            seed: [0; 32],
            platform: PlatformOptions::default(),
            evidence: Evidence {
                compose_hash: Sha256::digest(&app_compose).to_vec(),
                ..Evidence::default()
            },
            app_name: "mock".to_owned(),
            app_compose,
            now: Arc::new(now),
            quote_time: Duration::ZERO,
        }
    }

    /// The same, with a clock that stands still at `now` (unix seconds).
    #[must_use]
    pub fn at(now: u64) -> Self {
        Self::new(move || now)
    }
}

/// How the agent responds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AgentBehaviour {
    /// Correctly.
    #[default]
    Normal,
    /// Responds with this status and this body, as JSON.
    Status(u16, String),
    /// Responds 200 with an HTML page.
    Html,
    /// Sends half of the body and closes the connection.
    TruncatedBody,
    /// Responds correctly after this time.
    Delay(Duration),
    /// Closes the connection without a response.
    Close,
    /// Responds 200 with bytes that are neither JSON nor UTF-8.
    Garbage,
    /// Declares and sends a body of 100 MiB.
    Oversized,
    /// Sends a chunked body of 100 MiB, so that its size is not declared.
    OversizedChunked,
    /// Redirects to another port.
    Redirect,
    /// `GetTlsKey` returns a key that is not the certificate's.
    WrongKey,
    /// Quotes, and the quotes in certificates, have other report data than requested.
    WrongReportData,
}

struct Shared {
    guest: Guest,
    requests: [AtomicUsize; Method::ALL.len()],
    behaviour: Mutex<[AgentBehaviour; Method::ALL.len()]>,
}

/// A guest agent that listens until it is dropped. Dropping it removes its socket file.
pub struct Agent {
    shared: Arc<Shared>,
    server: Server,
}

impl Agent {
    /// Starts an agent whose certificates are issued by the KMS CA of `pki`.
    ///
    /// # Errors
    /// [`MockError::Io`] if it cannot listen there; otherwise as [`Platform::new`](super::Platform::new).
    pub fn start(
        pki: Arc<Pki>,
        listen: AgentListen,
        options: AgentOptions,
    ) -> Result<Self, MockError> {
        let shared = Arc::new(Shared {
            guest: Guest::new(pki, options)?,
            requests: Default::default(),
            behaviour: Mutex::default(),
        });
        let handler = Arc::clone(&shared);
        let server = match &listen {
            AgentListen::Tcp => Server::tcp("mock-agent", handler)?,
            AgentListen::Unix(path) => Server::unix("mock-agent", path, handler)?,
        };
        Ok(Self { shared, server })
    }

    /// The agent's address.
    #[must_use]
    pub fn endpoint(&self) -> AgentAddress {
        match self.server.address() {
            Address::Tcp(_) => AgentAddress::Url(self.server.address().to_string()),
            Address::Unix(path) => AgentAddress::Unix(path.clone()),
        }
    }

    /// Sets the behaviour for all methods.
    pub fn set_behaviour(&self, behaviour: AgentBehaviour) {
        lock(&self.shared.behaviour).fill(behaviour);
    }

    /// Sets the behaviour for one method.
    pub fn set_behaviour_for(&self, method: Method, behaviour: AgentBehaviour) {
        if let Some(slot) = lock(&self.shared.behaviour).get_mut(method as usize) {
            *slot = behaviour;
        }
    }

    /// The number of requests for `method` so far.
    #[must_use]
    pub fn requests(&self, method: Method) -> usize {
        let count = self.shared.requests.get(method as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({})", self.server.address())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler for Shared {
    fn handle(&self, request: &Request<Bytes>) -> Reply {
        let path = request.uri().path();
        let name = path.strip_prefix('/').unwrap_or(path);
        let Some(method) = Method::ALL.into_iter().find(|m| m.as_str() == name) else {
            return match name {
                SIGN => self.sign(request),
                name => error(&format!("Service not found: {name}")),
            };
        };
        if let Some(count) = self.requests.get(method as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let behaviour = lock(&self.behaviour).get(method as usize).cloned();
        self.respond(method, request, behaviour.unwrap_or_default())
    }
}

impl Shared {
    fn respond(
        &self,
        method: Method,
        request: &Request<Bytes>,
        behaviour: AgentBehaviour,
    ) -> Reply {
        let with = |fault| self.result(method, request, fault);
        let delivered = |delivery| Reply {
            delivery,
            ..with(Fault::None)
        };
        match behaviour {
            AgentBehaviour::Normal => with(Fault::None),
            AgentBehaviour::WrongKey => with(Fault::WrongKey),
            AgentBehaviour::WrongReportData => with(Fault::WrongReportData),
            AgentBehaviour::Delay(delay) => Reply {
                delay,
                ..with(Fault::None)
            },
            AgentBehaviour::Close => delivered(Delivery::Close),
            AgentBehaviour::TruncatedBody => delivered(Delivery::Truncate),
            AgentBehaviour::Oversized => delivered(Delivery::Oversized),
            AgentBehaviour::OversizedChunked => delivered(Delivery::OversizedChunked),
            AgentBehaviour::Status(status, body) => Reply::status(status).with_body(JSON, body),
            AgentBehaviour::Html => Reply::default().with_body(HTML, PAGE),
            AgentBehaviour::Garbage => Reply::default().with_body(JSON, GARBAGE),
            AgentBehaviour::Redirect => Reply::redirect(),
        }
    }

    fn sign(&self, request: &Request<Bytes>) -> Reply {
        match request::json(request).and_then(|fields| sign::sign(&self.guest, &fields)) {
            Ok(response) => Reply::default().with_body(JSON, response.to_string()),
            Err(text) => error(&text),
        }
    }

    fn result(&self, method: Method, request: &Request<Bytes>, fault: Fault) -> Reply {
        let result =
            request::json(request).and_then(|fields| self.guest.call(method, &fields, fault));
        match result {
            Ok(response) => Reply::default().with_body(JSON, response.to_string()),
            Err(text) => error(&text),
        }
    }
}

/// dstack's 400: pretty-printed JSON.
fn error(text: &str) -> Reply {
    let body = format!("{:#}", serde_json::json!({ "error": text }));
    Reply::status(400).with_body(JSON, body)
}
