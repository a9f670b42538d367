//! dstack's guest agent, that can be told to misbehave.
//!
//! It answers what the recorded exchanges of dstack 0.6.0 answer, in the same shape and with the same
//! error texts, from a [`Pki`] and a machine of this project: what it issues verifies under the mock
//! root. It closes each connection after its answer, counts what it was asked, and stops when dropped.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http::{Address, Connection, HUGE, Handler, Request, Server, Stop, head, send_huge};
use super::{Evidence, MachineOptions, MockError, Pki};
use crate::agent::{AgentAddress, Method};

mod claims;
mod guest;

use guest::{Guest, Twist};

const JSON: &str = "content-type: application/json\r\n";
const HTML: &str = "content-type: text/html\r\n";
const ELSEWHERE: &str = "location: http://127.0.0.1:1/\r\n";
const PAGE: &[u8] = b"<!DOCTYPE html><title>502 Bad Gateway</title>";
/// Neither JSON nor UTF-8.
const GARBAGE: &[u8] = &[0xff, 0xfe, 0x7b, 0x22, 0x00, 0x80, 0x0a, 0xc3];

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentListen {
    /// A free port of 127.0.0.1.
    Tcp,
    /// A Unix socket. A socket file that nobody listens on any more is replaced.
    Unix(PathBuf),
}

/// Unix seconds.
pub type Now = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Which TD the agent is of.
#[derive(Clone)]
pub struct AgentOptions {
    /// Its secret: another seed gives other keys.
    pub seed: [u8; 32],
    /// The machine below it.
    pub machine: MachineOptions,
    /// What it says of itself. Report data comes from each request, unless
    /// [`binding`](Evidence::binding) says otherwise for certificates.
    pub evidence: Evidence,
    /// The application's name.
    pub app_name: String,
    /// The application's compose file.
    pub app_compose: String,
    /// Counts certificates' ten years.
    pub now: Now,
    /// How long each quote takes, one after another: 39 ms on hardware.
    pub quote_time: Duration,
}

impl AgentOptions {
    /// A TD that everything is right with, by this clock. Quotes take no time.
    #[must_use]
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let app_compose =
            r#"{"manifest_version":2,"name":"mock","runner":"docker-compose"}"#.to_owned();
        Self {
            seed: [0; 32],
            machine: MachineOptions::default(),
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

    /// The same, with a clock that stands at `now` (unix seconds).
    #[must_use]
    pub fn at(now: u64) -> Self {
        Self::new(move || now)
    }
}

/// How the agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AgentBehaviour {
    /// As it should.
    #[default]
    Normal,
    /// This status with this body, as JSON.
    Status(u16, String),
    /// 200 with a page of HTML.
    Html,
    /// Sends half of the body and closes.
    HalfBody,
    /// Answers as it should, after this time.
    Hang(Duration),
    /// Closes the connection without an answer.
    Close,
    /// 200 with bytes that mean nothing.
    Garbage,
    /// Declares and sends 100 MB.
    Huge,
    /// Sends 100 MB in chunks, without saying before how much it will be.
    HugeChunked,
    /// Sends a redirect to another host.
    Redirect,
    /// `GetTlsKey` gives a key that is not the certificate's.
    WrongKey,
    /// Quotes are over other report data than was asked for, and so is a certificate's.
    WrongReportData,
}

struct Shared {
    guest: Guest,
    requests: [AtomicUsize; Method::ALL.len()],
    behaviour: Mutex<[AgentBehaviour; Method::ALL.len()]>,
}

/// A guest agent that listens until it is dropped; then its socket file is gone too.
pub struct Agent {
    shared: Arc<Shared>,
    server: Server,
}

impl Agent {
    /// Starts an agent whose certificates are issued by the KMS CA of `pki`.
    ///
    /// # Errors
    /// [`MockError::Io`] if it cannot listen there; otherwise as [`Machine::new`](super::Machine::new).
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

    /// Where to find it.
    #[must_use]
    pub fn endpoint(&self) -> AgentAddress {
        match self.server.address() {
            Address::Tcp(_) => AgentAddress::Url(self.server.address().to_string()),
            Address::Unix(path) => AgentAddress::Unix(path.clone()),
        }
    }

    /// From now on, answers everything like this.
    pub fn behave(&self, behaviour: AgentBehaviour) {
        lock(&self.shared.behaviour).fill(behaviour);
    }

    /// From now on, answers this one like this.
    pub fn behave_for(&self, method: Method, behaviour: AgentBehaviour) {
        if let Some(slot) = lock(&self.shared.behaviour).get_mut(method as usize) {
            *slot = behaviour;
        }
    }

    /// How often it was asked for `method`.
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
    fn answer(&self, request: &Request, to: &mut dyn Connection, stop: &Stop) -> io::Result<()> {
        let name = request.target.strip_prefix('/').unwrap_or_default();
        let Some(method) = Method::ALL.into_iter().find(|m| m.as_str() == name) else {
            let error = format!("Service not found: {name}");
            return send(to, 400, JSON, &refusal(&error));
        };
        if let Some(count) = self.requests.get(method as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let behaviour = lock(&self.behaviour).get(method as usize).cloned();
        self.behave(method, request, behaviour.unwrap_or_default(), to, stop)
    }
}

impl Shared {
    fn behave(
        &self,
        method: Method,
        request: &Request,
        behaviour: AgentBehaviour,
        to: &mut dyn Connection,
        stop: &Stop,
    ) -> io::Result<()> {
        match behaviour {
            AgentBehaviour::Normal => self.respond(method, request, Twist::None, to),
            AgentBehaviour::WrongKey => self.respond(method, request, Twist::Key, to),
            AgentBehaviour::WrongReportData => self.respond(method, request, Twist::ReportData, to),
            AgentBehaviour::Hang(time) => {
                stop.hold(time, |_| Ok(false))?;
                self.respond(method, request, Twist::None, to)
            }
            AgentBehaviour::Status(status, body) => send(to, status, JSON, body.as_bytes()),
            AgentBehaviour::Html => send(to, 200, HTML, PAGE),
            AgentBehaviour::Garbage => send(to, 200, JSON, GARBAGE),
            AgentBehaviour::Redirect => send(to, 302, ELSEWHERE, b""),
            AgentBehaviour::Close => Ok(()),
            AgentBehaviour::HalfBody => {
                let (status, body) = self.result(method, request, Twist::None);
                let half = body.get(..body.len() / 2).unwrap_or_default();
                to.write_all(&[&head(status, JSON, body.len()), half].concat())
            }
            AgentBehaviour::Huge => {
                to.write_all(&head(200, JSON, HUGE))?;
                send_huge(to, b"")
            }
            AgentBehaviour::HugeChunked => {
                to.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                send_huge(to, b"10000\r\n")
            }
        }
    }

    fn respond(
        &self,
        method: Method,
        request: &Request,
        twist: Twist,
        to: &mut dyn Connection,
    ) -> io::Result<()> {
        let (status, body) = self.result(method, request, twist);
        send(to, status, JSON, &body)
    }

    /// Status and body.
    fn result(&self, method: Method, request: &Request, twist: Twist) -> (u16, Vec<u8>) {
        let answer = match (request.method.as_str(), request.content_type.as_deref()) {
            ("POST", Some("application/json")) => self.guest.answer(method, &request.body, twist),
            // dstack reads anything else as protobuf, which JSON is not.
            ("POST", _) => Err("failed to decode Protobuf message".to_owned()),
            (other, _) => Err(format!("Method not allowed: {other}")),
        };
        match answer {
            Ok(answer) => (200, answer.to_string().into_bytes()),
            Err(error) => (400, refusal(&error)),
        }
    }
}

fn refusal(error: &str) -> Vec<u8> {
    format!("{:#}", serde_json::json!({ "error": error })).into_bytes()
}

fn send(to: &mut dyn Connection, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    to.write_all(&[&head(status, headers, body.len()), body].concat())
}
