//! A PCCS over HTTP on loopback, that can be told to misbehave.
//!
//! It answers the paths of Intel's PCS v4 that dcap-qvl's own client asks for, as Intel's PCCS does:
//! issuer chains URL-encoded in headers, the root CRL as hex text. It closes each connection after its
//! answer, counts what it was asked, and stops when dropped.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dcap_qvl::QuoteCollateralV3;

use super::MockError;
use super::behaviour::Behaviour;
use super::http::{Connection, Handler, Request, Server, Stop, head};
use crate::collateral::CollateralKey;

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

/// What an honest PCCS knows.
#[derive(Clone, Debug, Default)]
pub struct PccsResponses {
    known: Vec<(CollateralKey, QuoteCollateralV3)>,
}

impl PccsResponses {
    /// Nothing: 404 for everything.
    #[must_use]
    pub fn empty() -> Self {
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
    answers: Mutex<PccsResponses>,
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
    pub fn start(answers: PccsResponses) -> Result<Self, MockError> {
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
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = [behaviour; 4];
    }

    /// From now on, answers this one like this.
    pub fn set_behaviour_for(&self, resource: Resource, behaviour: Behaviour) {
        if let Some(slot) = lock(&self.shared.behaviour).get_mut(resource as usize) {
            *slot = behaviour;
        }
    }

    /// From now on, knows these: newer, expired, or signed by somebody else.
    pub fn set_responses(&self, answers: PccsResponses) {
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
        behaviour.answer(to, stop, &answer.chain_header(), &answer.body)
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
