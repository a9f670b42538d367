//! Asks a server for its certificate: TCP, the opening, a handshake, and good-bye.
//!
//! During the handshake nothing is asked of the certificate but that the server
//! holds its key, which is what a verdict on the certificate cannot say. The
//! verdict itself is for the story. Nothing is sent after the handshake but
//! close_notify.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, SignatureScheme};
use wire::opening::SSL_REQUEST_PACKET;

use super::report::printable;
use crate::tls::peer_verifier::PossessionVerifier;

mod address;
mod probe;

pub(super) use address::Address;
use probe::Timed;

/// Of the sidecar's `login_timeout`.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// SSLRequest; and if it is not answered with `S`, a ClientHello on a new connection.
    Either,
    SslRequest,
    RawTls,
}

/// How to ask.
pub(super) struct Options {
    pub(super) opening: Opening,
    /// For everything, from the name to the end of the handshake.
    pub(super) timeout: Duration,
    /// For a server that asks for a certificate.
    pub(super) identity: Option<Arc<CertifiedKey>>,
}

/// What the server showed.
#[derive(Debug)]
pub(super) struct Presented {
    /// In DER, leaf first.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) address: SocketAddr,
    pub(super) opening: &'static str,
    pub(super) version: String,
    pub(super) cipher_suite: String,
    pub(super) alpn: Option<String>,
    pub(super) asked_for_certificate: bool,
    pub(super) has_identity: bool,
}

/// Why there is no certificate of the server to judge.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No connection.
    Unreachable(String),
    /// Not within the time; at which step.
    Timeout(&'static str),
    /// It hung up, or speaks something else.
    NoTls(String),
    /// The handshake failed.
    Tls(String),
    /// Its certificate is unusable, or it does not hold the certificate's key.
    Certificate(String),
}

impl Trouble {
    /// A word from a closed list.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "server_unreachable",
            Self::Timeout(_) => "server_timeout",
            Self::NoTls(_) => "server_no_tls",
            Self::Tls(_) => "tls_failed",
            Self::Certificate(_) => "tls_certificate",
        }
    }

    /// Only a server that shows another's certificate is refused for it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable(_) | Self::Timeout(_) | Self::NoTls(_) | Self::Tls(_) => {
                crate::cli::output::EX_UNAVAILABLE
            }
            Self::Certificate(_) => 1,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
            Self::Timeout(step) => write!(f, "no answer in time: {step}"),
            Self::NoTls(what) => write!(f, "no TLS: {what}"),
            Self::Tls(why) => write!(f, "the handshake failed: {why}"),
            Self::Certificate(why) => {
                write!(
                    f,
                    "the server did not prove to hold its certificate's key: {why}"
                )
            }
        }
    }
}

/// Asks the server for its certificate.
pub(super) fn ask(address: &Address, options: &Options) -> Result<Presented, Trouble> {
    let deadline = Instant::now() + options.timeout;
    let found = probe::resolve(&address.host, address.port, deadline)?;
    let call = Call {
        address,
        found: &found,
        options,
    };
    match options.opening {
        Opening::SslRequest => call.with_ssl_request(deadline, deadline),
        Opening::RawTls => call.with_raw_tls(deadline),
        Opening::Either => {
            // What waits for a ClientHello may keep silent: half of the time is for that.
            let patience = Instant::now() + options.timeout / 2;
            match call.with_ssl_request(patience, deadline) {
                Err(first @ (Trouble::NoTls(_) | Trouble::Timeout(probe::AT_SSL_REQUEST))) => {
                    call.with_raw_tls(deadline).map_err(|raw| both(&first, raw))
                }
                answer => answer,
            }
        }
    }
}

/// What failed at the end, with what failed before it.
fn both(first: &Trouble, then: Trouble) -> Trouble {
    let text = |why: &str| format!("{why}; before, after an SSLRequest: {first}");
    match then {
        Trouble::NoTls(why) => Trouble::NoTls(text(&why)),
        Trouble::Tls(why) => Trouble::Tls(text(&why)),
        other @ (Trouble::Unreachable(_) | Trouble::Timeout(_) | Trouble::Certificate(_)) => other,
    }
}

struct Call<'a> {
    address: &'a Address,
    found: &'a [SocketAddr],
    options: &'a Options,
}

impl Call<'_> {
    /// `S` has to come until `patience` is over.
    fn with_ssl_request(&self, patience: Instant, deadline: Instant) -> Result<Presented, Trouble> {
        let (stream, address) = probe::connect(self.found, deadline)?;
        let mut stream = Timed::new(stream, patience);
        let mut answer = [0];
        stream
            .write_all(&SSL_REQUEST_PACKET)
            .and_then(|()| stream.read_exact(&mut answer))
            .map_err(|error| probe::broken(&error, probe::AT_SSL_REQUEST))?;
        match answer {
            [b'S'] => self.shake_hands(stream.until(deadline), address, "SSLRequest"),
            [b'N'] => Err(Trouble::NoTls(
                "the server answers N: it has no TLS".to_owned(),
            )),
            [byte] => Err(Trouble::NoTls(format!(
                "the server answers 0x{byte:02x} instead of S"
            ))),
        }
    }

    fn with_raw_tls(&self, deadline: Instant) -> Result<Presented, Trouble> {
        let (stream, address) = probe::connect(self.found, deadline)?;
        self.shake_hands(Timed::new(stream, deadline), address, "raw TLS")
    }

    fn shake_hands(
        &self,
        mut stream: Timed,
        address: SocketAddr,
        opening: &'static str,
    ) -> Result<Presented, Trouble> {
        let asked = Arc::new(Asked::new(self.options.identity.clone()));
        let mut config = config(Arc::clone(&asked)).map_err(tls)?;
        if opening == "raw TLS" {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        let name = ServerName::try_from(self.address.host.clone())
            .map_err(|error| Trouble::Tls(error.to_string()))?;
        let mut session = ClientConnection::new(Arc::new(config), name).map_err(tls)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream).map_err(shaken)?;
        }
        let presented = present(&session, &asked, address, opening);
        session.send_close_notify();
        // The certificate is here: how the server takes our leave is its own affair.
        let _ = session.complete_io(&mut stream);
        presented
    }
}

fn config(asked: Arc<Asked>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionVerifier(provider)))
        .with_client_cert_resolver(asked);
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn present(
    session: &ClientConnection,
    asked: &Asked,
    address: SocketAddr,
    opening: &'static str,
) -> Result<Presented, Trouble> {
    let missing = || Trouble::Tls("it ended without a certificate".to_owned());
    let chain = session.peer_certificates().ok_or_else(missing)?;
    let suite = session.negotiated_cipher_suite().ok_or_else(missing)?;
    let version = session.protocol_version().ok_or_else(missing)?;
    Ok(Presented {
        chain: chain.iter().map(|der| der.to_vec()).collect(),
        address,
        opening,
        version: match version {
            rustls::ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
            rustls::ProtocolVersion::TLSv1_2 => "TLS 1.2".to_owned(),
            other => format!("{other:?}"),
        },
        cipher_suite: format!("{:?}", suite.suite()),
        alpn: session
            .alpn_protocol()
            .map(|name| printable(&String::from_utf8_lossy(name))),
        asked_for_certificate: asked.asked.load(Ordering::Relaxed),
        has_identity: asked.identity.is_some(),
    })
}

fn tls(error: rustls::Error) -> Trouble {
    match error {
        rustls::Error::InvalidCertificate(error) => Trouble::Certificate(format!("{error:?}")),
        error => Trouble::Tls(error.to_string()),
    }
}

/// What rustls says of the server's bytes comes wrapped in an I/O error.
fn shaken(error: io::Error) -> Trouble {
    let said = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match said {
        Some(rustls::Error::InvalidMessage(_)) => {
            Trouble::NoTls("the server answers something else".to_owned())
        }
        Some(said) => tls(said.clone()),
        None => probe::broken(&error, probe::AT_HANDSHAKE),
    }
}

/// Remembers whether a certificate was asked for, and shows one if there is one.
#[derive(Debug)]
struct Asked {
    asked: AtomicBool,
    identity: Option<Arc<CertifiedKey>>,
}

impl Asked {
    fn new(identity: Option<Arc<CertifiedKey>>) -> Self {
        Self {
            asked: AtomicBool::new(false),
            identity,
        }
    }
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}
