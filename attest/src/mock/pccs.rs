//! A PCCS over HTTP on loopback, that can be told to misbehave.
//!
//! It answers the paths of Intel's PCS v4 that dcap-qvl's own client asks for, as Intel's PCCS does:
//! issuer chains URL-encoded in headers, the root CRL as hex text. It is bounded (connections, request
//! size, time), closes each connection after its answer, counts what it was asked, and stops when
//! dropped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dcap_qvl::QuoteCollateralV3;

use super::MockError;
use crate::collateral::CollateralKey;

/// Most connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// Most bytes of a request: the paths here have at most 100.
const MAX_REQUEST: usize = 8 << 10;
/// Longest wait for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that [`Behaviour::Silent`] and [`Behaviour::Trickle`] hold a connection.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// How often a held connection looks whether the server stops.
const SLICE: Duration = Duration::from_millis(20);
/// Bytes that [`Behaviour::Huge`] sends, if the client takes them.
const HUGE: usize = 100 << 20;

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
    stop: AtomicBool,
    connections: AtomicUsize,
    requests: [AtomicUsize; 4],
    behaviour: Mutex<[Behaviour; 4]>,
    answers: Mutex<PccsAnswers>,
}

/// A PCCS that listens on 127.0.0.1 until it is dropped.
pub struct Pccs {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Pccs {
    /// Listens on a free port.
    ///
    /// # Errors
    /// [`MockError::Io`] if there is none, or no thread.
    pub fn start(answers: PccsAnswers) -> Result<Self, MockError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers),
            ..Shared::default()
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mock-pccs".to_owned())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            shared,
            address,
            thread: Some(thread),
        })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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

impl Drop for Pccs {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        drop(TcpStream::connect_timeout(
            &self.address,
            Duration::from_secs(1),
        ));
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
            .name("mock-pccs-conn".to_owned())
            .spawn(move || {
                // What the client does to its connection is its business.
                let _ = serve(stream, &serving);
                serving.connections.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let Some(target) = read_target(&mut stream)? else {
        return Ok(());
    };
    let found = lock(&shared.answers).find(&target);
    let Some((resource, answer)) = found else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    };
    if let Some(count) = shared.requests.get(resource as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let behaviour = lock(&shared.behaviour)
        .get(resource as usize)
        .copied()
        .unwrap_or_default();
    respond(&mut stream, shared, behaviour, &answer)
}

/// The target of a GET request.
fn read_target(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut chunk)?;
        if read == 0 || request.len() > MAX_REQUEST {
            return Ok(None);
        }
        request.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&request);
    let mut words = text.split(' ');
    Ok(match (words.next(), words.next()) {
        (Some("GET"), Some(target)) => Some(target.to_owned()),
        _ => None,
    })
}

fn respond(
    stream: &mut TcpStream,
    shared: &Shared,
    behaviour: Behaviour,
    answer: &Answer,
) -> std::io::Result<()> {
    let body = answer.body.as_slice();
    let chain = answer.chain.as_ref();
    match behaviour {
        Behaviour::Honest => stream.write_all(&[&head(chain, body.len()), body].concat()),
        Behaviour::NoHeader => stream.write_all(&[&head(None, body.len()), body].concat()),
        Behaviour::Down => Ok(()),
        Behaviour::Silent => hold(shared, |_| Ok(false)),
        Behaviour::Trickle => {
            let bytes = [&head(chain, body.len()), body].concat();
            let mut bytes = bytes.iter();
            hold(shared, |slice| match slice % 5 {
                0 => bytes.next().map_or(Ok(true), |byte| stream.write_all(&[*byte]).map(|()| false)),
                _ => Ok(false),
            })
        }
        Behaviour::HalfBody => {
            let half = body.get(..body.len() / 2).unwrap_or_default();
            stream.write_all(&[&head(chain, body.len()), half].concat())
        }
        Behaviour::Huge => {
            stream.write_all(&head(chain, HUGE))?;
            send_huge(stream, b"")
        }
        Behaviour::HugeChunked => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            send_huge(stream, b"10000\r\n")
        }
        Behaviour::Html => {
            let page = b"<!DOCTYPE html><title>captive portal</title>";
            stream.write_all(&[&head(chain, page.len()), &page[..]].concat())
        }
        Behaviour::Status(status) => stream.write_all(
            format!("HTTP/1.1 {status} Mock\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
        ),
        Behaviour::Redirect => stream.write_all(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
    }
}

/// 64 KiB at a time, each after `prefix` (and with a line end after it, if there is one).
fn send_huge(stream: &mut TcpStream, prefix: &[u8]) -> std::io::Result<()> {
    let block = vec![b' '; 1 << 16];
    let suffix: &[u8] = if prefix.is_empty() { b"" } else { b"\r\n" };
    for _ in 0..HUGE / block.len() {
        stream.write_all(&[prefix, &block, suffix].concat())?;
    }
    Ok(())
}

/// Calls `each` once per slice until it says true, the server stops, or it is enough.
fn hold(
    shared: &Shared,
    mut each: impl FnMut(u32) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    let slices = u32::try_from(LONGEST_HOLD.as_millis() / SLICE.as_millis()).unwrap_or(u32::MAX);
    for slice in 0..slices {
        if shared.stop.load(Ordering::Relaxed) || each(slice)? {
            return Ok(());
        }
        std::thread::sleep(SLICE);
    }
    Ok(())
}

fn head(chain: Option<&(&'static str, String)>, length: usize) -> Vec<u8> {
    let chain = chain.map_or_else(String::new, |(name, pem)| {
        format!("{name}: {}\r\n", encode(pem))
    });
    format!("HTTP/1.1 200 OK\r\n{chain}content-length: {length}\r\nconnection: close\r\n\r\n")
        .into_bytes()
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
