//! A server for one test: it takes connections until it is dropped, and does with
//! each what it was told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

/// No read or write of a server takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What it does with the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// `S` to an SSLRequest, and TLS.
    SslRequest,
    /// TLS at once; hangs up on anything else.
    RawTls,
    /// TLS at once; says nothing to anything else.
    SilentRawTls,
    /// `N` to an SSLRequest, and hangs up.
    Plain,
    /// An HTTP error.
    Http,
    /// Nothing at all, whatever comes.
    Hangs,
    /// Hangs up at once.
    Closes,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    /// What clients sent inside TLS, behind the handshake.
    said: Arc<Mutex<Vec<u8>>>,
    /// Whether the last client said good-bye.
    farewell: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(manner: Manner, tls: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, said) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<u8>>>::default(),
        );
        let farewell = Arc::<AtomicBool>::default();
        let (end, tls) = (stop.clone(), Arc::new(tls));
        let (heard, parted) = (said.clone(), farewell.clone());
        let thread = std::thread::spawn(move || {
            // Kept, so that a server that hangs does not hang up.
            let mut held = Vec::new();
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                // A client that breaks off is a part of some tests.
                if let Ok(Some(words)) = serve(manner, &tls, &stream) {
                    heard.lock().unwrap().extend(words);
                    parted.store(true, Ordering::SeqCst);
                }
                if matches!(manner, Manner::Hangs | Manner::SilentRawTls) {
                    held.push(stream);
                }
            }
        });
        Self {
            address,
            stop,
            said,
            farewell,
            thread: Some(thread),
        }
    }

    /// What the client said behind the handshake, if it ended with close_notify.
    pub(crate) fn heard(&mut self) -> Option<Vec<u8>> {
        self.join();
        let parted = self.farewell.load(Ordering::SeqCst);
        parted.then(|| self.said.lock().unwrap().clone())
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

/// What the client said inside TLS up to its close_notify.
fn serve(
    manner: Manner,
    tls: &Arc<ServerConfig>,
    mut stream: &TcpStream,
) -> std::io::Result<Option<Vec<u8>>> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut first = [0; 8];
    match manner {
        Manner::Hangs | Manner::Closes => return Ok(None),
        Manner::SslRequest | Manner::Plain => {
            stream.read_exact(&mut first)?;
            if first != SSL_REQUEST {
                return Ok(None);
            }
            let answer = if manner == Manner::Plain { b"N" } else { b"S" };
            stream.write_all(answer)?;
            if manner == Manner::Plain {
                return Ok(None);
            }
        }
        Manner::Http => {
            stream.read_exact(&mut first)?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
            return Ok(None);
        }
        Manner::RawTls | Manner::SilentRawTls => {
            let mut byte = [0];
            if stream.peek(&mut byte)? == 0 || byte != [0x16] {
                return Ok(None);
            }
        }
    }
    let mut session = ServerConnection::new(tls.clone()).unwrap();
    let mut words = Vec::new();
    rustls::Stream::new(&mut session, &mut stream).read_to_end(&mut words)?;
    Ok(Some(words))
}

/// Presents a certificate with whatever key.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

pub(crate) fn tls(
    identity: CertifiedKey,
    versions: &[&'static SupportedProtocolVersion],
    ask_for: Option<RootCertStore>,
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match ask_for {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build()
                .unwrap(),
        ),
    };
    let mut tls = builder.with_cert_resolver(Arc::new(Fixed(identity.into())));
    tls.alpn_protocols = vec![b"postgresql".to_vec()];
    tls
}
