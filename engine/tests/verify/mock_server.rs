//! A mock server: it accepts connections until it is dropped, and answers each with the same behaviour.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

/// Timeout of each read and write.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How it answers the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Answers `S` to an SSLRequest, then makes a TLS handshake.
    SslRequest,
    /// Expects a ClientHello; closes the connection after anything else.
    RawTls,
    /// Expects a ClientHello; does not answer anything else.
    RawTlsOrSilent,
    /// Answers `N` to an SSLRequest and closes the connection.
    Plain,
    /// Answers with an HTTP error.
    Http,
    /// Never answers.
    Silent,
    /// Closes the connection at once.
    Closes,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    /// What clients sent inside TLS after the handshake.
    received: Arc<Mutex<Vec<u8>>>,
    /// Whether a client ended its session with close_notify.
    closed: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(behaviour: Behaviour, tls: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, received) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<u8>>>::default(),
        );
        let closed = Arc::<AtomicBool>::default();
        let (end, tls) = (stop.clone(), Arc::new(tls));
        let (bytes, has_closed) = (received.clone(), closed.clone());
        let thread = std::thread::spawn(move || {
            // A silent server must keep its connections open.
            let mut open = Vec::new();
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.set_write_timeout(Some(TIMEOUT)).unwrap();
                // In some tests the client closes the connection early.
                if let Ok(Some(sent)) = serve(behaviour, &tls, &stream) {
                    bytes.lock().unwrap().extend(sent);
                    has_closed.store(true, Ordering::SeqCst);
                }
                if matches!(behaviour, Behaviour::Silent | Behaviour::RawTlsOrSilent) {
                    open.push(stream);
                }
            }
        });
        Self {
            address,
            stop,
            received,
            closed,
            thread: Some(thread),
        }
    }

    /// What the client sent after the handshake, if it ended the session with close_notify.
    pub(crate) fn received(&mut self) -> Option<Vec<u8>> {
        self.join();
        let has_closed = self.closed.load(Ordering::SeqCst);
        has_closed.then(|| self.received.lock().unwrap().clone())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.join();
    }
}

/// Returns what the client sent inside TLS up to its close_notify, if there was a TLS session.
fn serve(
    behaviour: Behaviour,
    tls: &Arc<ServerConfig>,
    mut stream: &TcpStream,
) -> std::io::Result<Option<Vec<u8>>> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut first = [0; 8];
    match behaviour {
        Behaviour::Silent | Behaviour::Closes => return Ok(None),
        Behaviour::SslRequest | Behaviour::Plain => {
            stream.read_exact(&mut first)?;
            if first != SSL_REQUEST {
                return Ok(None);
            }
            let answer = if behaviour == Behaviour::Plain {
                b"N"
            } else {
                b"S"
            };
            stream.write_all(answer)?;
            if behaviour == Behaviour::Plain {
                return Ok(None);
            }
        }
        Behaviour::Http => {
            stream.read_exact(&mut first)?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
            return Ok(None);
        }
        Behaviour::RawTls | Behaviour::RawTlsOrSilent => {
            let mut byte = [0];
            if stream.peek(&mut byte)? == 0 || byte != [0x16] {
                return Ok(None);
            }
        }
    }
    let mut session = ServerConnection::new(tls.clone()).unwrap();
    let mut sent = Vec::new();
    rustls::Stream::new(&mut session, &mut stream).read_to_end(&mut sent)?;
    Ok(Some(sent))
}

/// Presents the same certificate to every client, even with a key that is not its own.
#[derive(Debug)]
struct FixedResolver(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

pub(crate) fn tls(
    identity: CertifiedKey,
    versions: &[&'static SupportedProtocolVersion],
    request_certificate_of: Option<RootCertStore>,
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match request_certificate_of {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build()
                .unwrap(),
        ),
    };
    let mut tls = builder.with_cert_resolver(Arc::new(FixedResolver(identity.into())));
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    tls
}
