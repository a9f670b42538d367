//! A PCCS over HTTP on loopback, that can be told to misbehave.
//!
//! It answers the paths of Intel's PCS v4 that dcap-qvl's own client asks for, as Intel's PCCS does:
//! issuer chains URL-encoded in headers, the root CRL as hex text. It closes each connection after its
//! answer, counts what it was asked, and stops when dropped.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dcap_qvl::QuoteCollateralV3;

use super::MockError;
use super::http::{Connection, HUGE, Handler, Request, Server, Stop, head, send_huge};
use crate::collateral::CollateralKey;

/// Longest time that [`Behaviour::Silent`] and [`Behaviour::Trickle`] hold a connection.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// What a PCCS is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `tdx/certification/v4/tcb`.
    TcbInfo,
    /// `tdx/certification/v4/qe/identity`.
    QeIdentity,
    /// `sgx/certification/v4/pckcrl`.
    PckCrl,
    /// `sgx/certification/v4/rootcacrl`.
    RootCrl,
}

/// How the PCCS answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
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
    /// The right body without the issuer chain header.
    NoHeader,
    /// Sends a redirect to another host.
    Redirect,
}

/// What an honest PCCS knows.
#[derive(Clone, Debug, Default)]
pub struct PccsAnswers {
    known: Vec<(CollateralKey, QuoteCollateralV3)>,
}

impl PccsAnswers {
    /// Nothing: 404 for everything.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// `collateral` for `key`, besides what is known already.
    #[must_use]
    pub fn with(mut self, key: CollateralKey, collateral: QuoteCollateralV3) -> Self {
        self.known.push((key, collateral));
        self
    }

    fn by(&self, wanted: impl Fn(&CollateralKey) -> bool) -> Option<&QuoteCollateralV3> {
        let mut known = self.known.iter();
        known
            .find(|(key, _)| wanted(key))
            .map(|(_, collateral)| collateral)
    }

    /// What the target of a request asks for, and the answer; `None` for a 404.
    fn find(&self, target: &str) -> Option<(Resource, Answer)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Some(match path {
            "/tdx/certification/v4/tcb" => {
                let fmspc = parameter("fmspc")?;
                let known = self.by(|key| key.fmspc.to_string() == fmspc)?;
                (Resource::TcbInfo, Answer::tcb_info(known))
            }
            "/tdx/certification/v4/qe/identity" => (
                Resource::QeIdentity,
                Answer::qe_identity(self.by(|_| true)?),
            ),
            "/sgx/certification/v4/pckcrl" if parameter("encoding") == Some("der") => {
                let ca = parameter("ca")?;
                let known = self.by(|key| key.ca.as_str() == ca)?;
                (Resource::PckCrl, Answer::pck_crl(known))
            }
            "/sgx/certification/v4/rootcacrl" => {
                (Resource::RootCrl, Answer::root_crl(self.by(|_| true)?))
            }
            _ => return None,
        })
    }
}

/// The issuer chain with its header's name, and the body.
struct Answer {
    chain: Option<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn tcb_info(known: &QuoteCollateralV3) -> Self {
        let chain = known.tcb_info_issuer_chain.clone();
        Self {
            chain: Some(("TCB-Info-Issuer-Chain", chain)),
            body: signed("tcbInfo", &known.tcb_info, &known.tcb_info_signature),
        }
    }

    fn qe_identity(known: &QuoteCollateralV3) -> Self {
        let chain = known.qe_identity_issuer_chain.clone();
        Self {
            chain: Some(("SGX-Enclave-Identity-Issuer-Chain", chain)),
            body: signed(
                "enclaveIdentity",
                &known.qe_identity,
                &known.qe_identity_signature,
            ),
        }
    }

    fn pck_crl(known: &QuoteCollateralV3) -> Self {
        let chain = known.pck_crl_issuer_chain.clone();
        Self {
            chain: Some(("SGX-PCK-CRL-Issuer-Chain", chain)),
            body: known.pck_crl.clone(),
        }
    }

    /// The issuer chain as a line of the head; nothing if there is none.
    fn chain_header(&self) -> String {
        let chain = self.chain.as_ref();
        chain.map_or_else(String::new, |(name, pem)| {
            format!("{name}: {}\r\n", encode(pem))
        })
    }

    /// As hex text: the reference PCCS does so.
    fn root_crl(known: &QuoteCollateralV3) -> Self {
        Self {
            chain: None,
            body: hex::encode(&known.root_ca_crl).into_bytes(),
        }
    }
}

fn signed(name: &str, json: &str, signature: &[u8]) -> Vec<u8> {
    format!(
        r#"{{"{name}":{json},"signature":"{}"}}"#,
        hex::encode(signature)
    )
    .into_bytes()
}

#[derive(Default)]
struct Shared {
    requests: [AtomicUsize; 4],
    behaviour: Mutex<[Behaviour; 4]>,
    answers: Mutex<PccsAnswers>,
}

/// A PCCS that listens on 127.0.0.1 until it is dropped.
pub struct Pccs {
    shared: Arc<Shared>,
    server: Server,
}

impl Pccs {
    /// Listens on a free port.
    ///
    /// # Errors
    /// [`MockError::Io`] if there is none, or no thread.
    pub fn start(answers: PccsAnswers) -> Result<Self, MockError> {
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers),
            ..Shared::default()
        });
        let server = Server::tcp("mock-pccs", Arc::clone(&shared))?;
        Ok(Self { shared, server })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.address().to_string()
    }

    /// From now on, answers everything like this.
    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = [behaviour; 4];
    }

    /// From now on, answers this one like this.
    pub fn behave_for(&self, resource: Resource, behaviour: Behaviour) {
        if let Some(slot) = lock(&self.shared.behaviour).get_mut(resource as usize) {
            *slot = behaviour;
        }
    }

    /// From now on, knows these: newer, expired, or signed by somebody else.
    pub fn replace(&self, answers: PccsAnswers) {
        *lock(&self.shared.answers) = answers;
    }

    /// How often it was asked for `resource`.
    #[must_use]
    pub fn requests(&self, resource: Resource) -> usize {
        let count = self.shared.requests.get(resource as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler for Shared {
    fn answer(&self, request: &Request, to: &mut dyn Connection, stop: &Stop) -> io::Result<()> {
        if request.method != "GET" {
            return Ok(());
        }
        let found = lock(&self.answers).find(&request.target);
        let Some((resource, answer)) = found else {
            return to.write_all(&head(404, "", 0));
        };
        if let Some(count) = self.requests.get(resource as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let behaviour = lock(&self.behaviour)
            .get(resource as usize)
            .copied()
            .unwrap_or_default();
        respond(to, stop, behaviour, &answer)
    }
}

fn respond(
    to: &mut dyn Connection,
    stop: &Stop,
    behaviour: Behaviour,
    answer: &Answer,
) -> io::Result<()> {
    let body = answer.body.as_slice();
    let chain = answer.chain_header();
    match behaviour {
        Behaviour::Honest => to.write_all(&[&head(200, &chain, body.len()), body].concat()),
        Behaviour::NoHeader => to.write_all(&[&head(200, "", body.len()), body].concat()),
        Behaviour::Down => Ok(()),
        Behaviour::Silent => stop.hold(LONGEST_HOLD, |_| Ok(false)),
        Behaviour::Trickle => {
            let bytes = [&head(200, &chain, body.len()), body].concat();
            let mut bytes = bytes.iter();
            stop.hold(LONGEST_HOLD, |slice| match slice % 5 {
                0 => bytes
                    .next()
                    .map_or(Ok(true), |byte| to.write_all(&[*byte]).map(|()| false)),
                _ => Ok(false),
            })
        }
        Behaviour::HalfBody => {
            let half = body.get(..body.len() / 2).unwrap_or_default();
            to.write_all(&[&head(200, &chain, body.len()), half].concat())
        }
        Behaviour::Huge => {
            to.write_all(&head(200, &chain, HUGE))?;
            send_huge(to, b"")
        }
        Behaviour::HugeChunked => {
            to.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            send_huge(to, b"10000\r\n")
        }
        Behaviour::Html => {
            let page = b"<!DOCTYPE html><title>captive portal</title>";
            to.write_all(&[&head(200, &chain, page.len()), &page[..]].concat())
        }
        Behaviour::Status(status) => to.write_all(&head(status, "", 0)),
        Behaviour::Redirect => to.write_all(&head(302, "location: http://127.0.0.1:1/\r\n", 0)),
    }
}

/// URL-encodes, as Intel does with PEM in headers.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
