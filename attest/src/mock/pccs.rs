//! A PCCS over HTTP on loopback, with fault injection.
//!
//! It exists so that the collateral client can be tested without Intel's service. It serves the paths of
//! Intel's PCS v4 that dcap-qvl's own client requests, in the format of Intel's PCCS: issuer chains are
//! URL-encoded in headers, and the root CRL is hex text. It serves one request per connection, counts
//! requests, and stops when dropped.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dcap_qvl::QuoteCollateralV3;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Uri};

use super::MockError;
use super::behaviour::Behaviour;
use super::http::{Handler, JSON, Reply, Server};
use crate::collateral::CollateralKey;

const CRL: HeaderValue = HeaderValue::from_static("application/pkix-crl");
const HEX: HeaderValue = HeaderValue::from_static("text/plain");

/// A resource of Intel's PCS API v4.
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

/// The collateral that a [`Pccs`] serves.
#[derive(Clone, Debug, Default)]
pub struct PccsResponses {
    known: Vec<(CollateralKey, QuoteCollateralV3)>,
}

impl PccsResponses {
    /// No collateral: every request is answered 404.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Adds `collateral` for `key`.
    #[must_use]
    pub fn with(mut self, key: CollateralKey, collateral: QuoteCollateralV3) -> Self {
        self.known.push((key, collateral));
        self
    }

    fn first(&self, matches: impl Fn(&CollateralKey) -> bool) -> Option<&QuoteCollateralV3> {
        let mut known = self.known.iter();
        known
            .find(|(key, _)| matches(key))
            .map(|(_, collateral)| collateral)
    }

    /// The resource that a request names, and the response; `None` for a 404.
    fn find(&self, uri: &Uri) -> Option<(Resource, Reply)> {
        let query = uri.query().unwrap_or_default();
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Some(match uri.path() {
            "/tdx/certification/v4/tcb" => {
                let fmspc = parameter("fmspc")?;
                let known = self.first(|key| key.fmspc.to_string() == fmspc)?;
                (Resource::TcbInfo, tcb_info(known))
            }
            "/tdx/certification/v4/qe/identity" => {
                (Resource::QeIdentity, qe_identity(self.first(|_| true)?))
            }
            "/sgx/certification/v4/pckcrl" if parameter("encoding") == Some("der") => {
                let ca = parameter("ca")?;
                let known = self.first(|key| key.ca.as_str() == ca)?;
                (Resource::PckCrl, pck_crl(known))
            }
            "/sgx/certification/v4/rootcacrl" => {
                (Resource::RootCrl, root_crl(self.first(|_| true)?))
            }
            _ => return None,
        })
    }
}

fn tcb_info(known: &QuoteCollateralV3) -> Reply {
    let body = signed("tcbInfo", &known.tcb_info, &known.tcb_info_signature);
    let chain = url_encoded(&known.tcb_info_issuer_chain);
    let name = HeaderName::from_static("tcb-info-issuer-chain");
    Reply::default()
        .with_body(JSON, body)
        .with_header(name, chain)
}

fn qe_identity(known: &QuoteCollateralV3) -> Reply {
    let signature = &known.qe_identity_signature;
    let body = signed("enclaveIdentity", &known.qe_identity, signature);
    let chain = url_encoded(&known.qe_identity_issuer_chain);
    let name = HeaderName::from_static("sgx-enclave-identity-issuer-chain");
    Reply::default()
        .with_body(JSON, body)
        .with_header(name, chain)
}

fn pck_crl(known: &QuoteCollateralV3) -> Reply {
    let chain = url_encoded(&known.pck_crl_issuer_chain);
    let name = HeaderName::from_static("sgx-pck-crl-issuer-chain");
    Reply::default()
        .with_body(CRL, known.pck_crl.clone())
        .with_header(name, chain)
}

/// As hex text, like Intel's reference PCCS.
fn root_crl(known: &QuoteCollateralV3) -> Reply {
    Reply::default().with_body(HEX, hex::encode(&known.root_ca_crl))
}

fn signed(name: &str, json: &str, signature: &[u8]) -> String {
    let signature = hex::encode(signature);
    format!(r#"{{"{name}":{json},"signature":"{signature}"}}"#)
}

/// PEM as Intel puts it into a header: every byte but letters and digits is escaped.
fn url_encoded(pem: &str) -> HeaderValue {
    let mut encoded = String::new();
    for byte in pem.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    // The escaped text is always a valid header value.
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

#[derive(Default)]
struct Shared {
    requests: [AtomicUsize; 4],
    behaviour: Mutex<[Behaviour; 4]>,
    responses: Mutex<PccsResponses>,
}

/// A PCCS that listens until it is dropped.
pub struct Pccs {
    shared: Arc<Shared>,
    server: Server,
}

impl Pccs {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// [`MockError::Io`] if the system has no free port or cannot start a thread.
    pub fn start(responses: PccsResponses) -> Result<Self, MockError> {
        Self::start_on(Ipv4Addr::LOCALHOST, responses)
    }

    /// Listens on a free port of `ip`, for clients in other network namespaces.
    ///
    /// # Errors
    /// As [`Pccs::start`], or if this machine does not have the address.
    pub fn start_on(ip: Ipv4Addr, responses: PccsResponses) -> Result<Self, MockError> {
        let shared = Arc::new(Shared {
            responses: Mutex::new(responses),
            ..Shared::default()
        });
        let server = Server::tcp_on(ip, "mock-pccs", Arc::clone(&shared))?;
        Ok(Self { shared, server })
    }

    /// `http://<ip>:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.address().to_string()
    }

    /// Sets the behaviour for all resources.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = [behaviour; 4];
    }

    /// Sets the behaviour for one resource.
    pub fn set_behaviour_for(&self, resource: Resource, behaviour: Behaviour) {
        if let Some(slot) = lock(&self.shared.behaviour).get_mut(resource as usize) {
            *slot = behaviour;
        }
    }

    /// Replaces the collateral, for example by newer, expired or wrongly signed documents.
    pub fn set_responses(&self, responses: PccsResponses) {
        *lock(&self.shared.responses) = responses;
    }

    /// The number of requests for `resource` so far.
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
    fn handle(&self, request: &Request<Bytes>) -> Reply {
        if request.method() != hyper::Method::GET {
            return Reply::status(405);
        }
        let Some((resource, reply)) = lock(&self.responses).find(request.uri()) else {
            return Reply::status(404);
        };
        if let Some(count) = self.requests.get(resource as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let behaviour = lock(&self.behaviour).get(resource as usize).copied();
        behaviour.unwrap_or_default().apply(reply)
    }
}
