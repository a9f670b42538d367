//! Gets a server's certificate: connects, opens TLS, and closes the connection after the handshake.
//!
//! The handshake checks only that the server holds the certificate's key, which a check of the
//! certificate cannot show: the caller verifies the certificate itself. After the handshake only close_notify is sent.
//! This code may block, so it must never run on a shard or the control thread.

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

use crate::tls::peer_verifier::PossessionVerifier;

mod stream;

use stream::DeadlineStream;

/// The default of the sidecar's `login_timeout`.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to start TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// SSLRequest, and if the answer is not `S`, a ClientHello on a new connection.
    Either,
    SslRequest,
    RawTls,
}

/// How to connect.
pub(crate) struct Options {
    pub(crate) opening: Opening,
    /// Whether the ALPN protocol of PostgreSQL is offered without an SSLRequest. A gateway that routes by name may not know
    /// it.
    pub(crate) alpn: bool,
    /// From name resolution to the end of the handshake.
    pub(crate) timeout: Duration,
    /// The certificate to present if the server requests one.
    pub(crate) identity: Option<Arc<CertifiedKey>>,
}

/// What the server presented.
#[derive(Debug)]
pub(crate) struct Presented {
    /// DER, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) address: SocketAddr,
    pub(crate) opening: &'static str,
    pub(crate) version: String,
    pub(crate) cipher_suite: String,
    pub(crate) alpn: Option<String>,
    pub(crate) requested_certificate: bool,
    pub(crate) has_identity: bool,
}

/// Why a server's certificate cannot be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeError {
    /// The connection failed.
    Unreachable(String),
    /// The timeout expired, at this step.
    Timeout(&'static str),
    /// The server closed the connection, or does not speak TLS.
    NoTls(String),
    /// The TLS handshake failed.
    Tls(String),
    /// The certificate is unusable, or the server does not hold its key.
    Certificate(String),
}

impl ProbeError {
    /// One of a closed list of codes.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "server_unreachable",
            Self::Timeout(_) => "server_timeout",
            Self::NoTls(_) => "server_no_tls",
            Self::Tls(_) => "tls_failed",
            Self::Certificate(_) => "tls_certificate",
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "cannot connect: {why}"),
            Self::Timeout(step) => write!(f, "timeout {step}"),
            Self::NoTls(what) => write!(f, "no TLS: {what}"),
            Self::Tls(why) => write!(f, "the TLS handshake failed: {why}"),
            Self::Certificate(why) => {
                write!(
                    f,
                    "the server did not prove that it holds its certificate's key: {why}"
                )
            }
        }
    }
}

/// Gets the server's certificate.
pub(crate) fn probe(host: &str, port: u16, options: &Options) -> Result<Presented, ProbeError> {
    let deadline = Instant::now() + options.timeout;
    let addresses = stream::resolve(host, port, deadline)?;
    let probe = Probe {
        host,
        addresses: &addresses,
        options,
    };
    match options.opening {
        Opening::SslRequest => probe.with_ssl_request(deadline, deadline),
        Opening::RawTls => probe.with_raw_tls(deadline),
        Opening::Either => {
            // A server that waits for a ClientHello may not answer: wait for half of the time only.
            let answer_deadline = Instant::now() + options.timeout / 2;
            match probe.with_ssl_request(answer_deadline, deadline) {
                Err(
                    first @ (ProbeError::NoTls(_) | ProbeError::Timeout(stream::AT_SSL_REQUEST)),
                ) => probe
                    .with_raw_tls(deadline)
                    .map_err(|second| with_first_error(&first, second)),
                result => result,
            }
        }
    }
}

/// Adds the error of the first attempt to that of the second.
fn with_first_error(first: &ProbeError, second: ProbeError) -> ProbeError {
    let text = |why: &str| format!("{why}; first attempt, with an SSLRequest: {first}");
    match second {
        ProbeError::NoTls(why) => ProbeError::NoTls(text(&why)),
        ProbeError::Tls(why) => ProbeError::Tls(text(&why)),
        other @ (ProbeError::Unreachable(_)
        | ProbeError::Timeout(_)
        | ProbeError::Certificate(_)) => other,
    }
}

struct Probe<'a> {
    host: &'a str,
    addresses: &'a [SocketAddr],
    options: &'a Options,
}

impl Probe<'_> {
    /// The answer to the SSLRequest must arrive before `answer_deadline`.
    fn with_ssl_request(
        &self,
        answer_deadline: Instant,
        deadline: Instant,
    ) -> Result<Presented, ProbeError> {
        let (stream, address) = stream::connect(self.addresses, deadline)?;
        let mut stream = DeadlineStream::new(stream, answer_deadline);
        let mut answer = [0];
        stream
            .write_all(&SSL_REQUEST_PACKET)
            .and_then(|()| stream.read_exact(&mut answer))
            .map_err(|error| stream::io_error(&error, stream::AT_SSL_REQUEST))?;
        match answer {
            [b'S'] => self.handshake(stream.with_deadline(deadline), address, "SSLRequest"),
            [b'N'] => Err(ProbeError::NoTls(
                "the server answered N: it does not support TLS".to_owned(),
            )),
            [byte] => Err(ProbeError::NoTls(format!(
                "the server answered 0x{byte:02x} instead of S"
            ))),
        }
    }

    fn with_raw_tls(&self, deadline: Instant) -> Result<Presented, ProbeError> {
        let (stream, address) = stream::connect(self.addresses, deadline)?;
        self.handshake(DeadlineStream::new(stream, deadline), address, "raw TLS")
    }

    fn handshake(
        &self,
        mut stream: DeadlineStream,
        address: SocketAddr,
        opening: &'static str,
    ) -> Result<Presented, ProbeError> {
        let resolver = Arc::new(CertificateResolver::new(self.options.identity.clone()));
        let mut config = config(Arc::clone(&resolver)).map_err(tls_error)?;
        if opening == "raw TLS" && self.options.alpn {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        let name = ServerName::try_from(self.host.to_owned())
            .map_err(|error| ProbeError::Tls(error.to_string()))?;
        let mut session = ClientConnection::new(Arc::new(config), name).map_err(tls_error)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream).map_err(handshake_error)?;
        }
        let presented = present(&session, &resolver, address, opening);
        session.send_close_notify();
        // The certificate is known, so that errors of the closure do not matter.
        let _ = session.complete_io(&mut stream);
        presented
    }
}

fn config(resolver: Arc<CertificateResolver>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PossessionVerifier(provider)))
        .with_client_cert_resolver(resolver);
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn present(
    session: &ClientConnection,
    resolver: &CertificateResolver,
    address: SocketAddr,
    opening: &'static str,
) -> Result<Presented, ProbeError> {
    let missing = || ProbeError::Tls("it completed without a certificate".to_owned());
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
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        requested_certificate: resolver.requested.load(Ordering::Relaxed),
        has_identity: resolver.identity.is_some(),
    })
}

fn tls_error(error: rustls::Error) -> ProbeError {
    match error {
        rustls::Error::InvalidCertificate(error) => ProbeError::Certificate(format!("{error:?}")),
        error => ProbeError::Tls(error.to_string()),
    }
}

/// Classifies an error of the handshake. rustls' own errors are wrapped in an I/O error.
fn handshake_error(error: io::Error) -> ProbeError {
    let rustls_error = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls_error {
        Some(rustls::Error::InvalidMessage(_)) => {
            ProbeError::NoTls("the server answered with something other than TLS".to_owned())
        }
        Some(error) => tls_error(error.clone()),
        None => stream::io_error(&error, stream::AT_HANDSHAKE),
    }
}

/// Presents the certificate, if there is one, and records whether the server requested one.
#[derive(Debug)]
struct CertificateResolver {
    requested: AtomicBool,
    identity: Option<Arc<CertifiedKey>>,
}

impl CertificateResolver {
    fn new(identity: Option<Arc<CertifiedKey>>) -> Self {
        Self {
            requested: AtomicBool::new(false),
            identity,
        }
    }
}

impl ResolvesClientCert for CertificateResolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.requested.store(true, Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}
