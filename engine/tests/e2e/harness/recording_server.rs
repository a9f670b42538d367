//! A server that writes down every byte: what came in TLS, and before it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use attest::mock::Certificate;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::harness::fake_server::FakeServer;
use crate::harness::message;
use crate::harness::process::{TIMEOUT, poll_until};

/// What it has seen.
#[derive(Debug, Default)]
struct Seen {
    raw: Mutex<Vec<u8>>,
    plain: Mutex<Vec<u8>>,
    handshakes: AtomicUsize,
    ended: AtomicUsize,
    names: Mutex<Vec<(Option<String>, bool)>>,
}

pub(crate) struct Recorder {
    seen: Arc<Seen>,
    fake: FakeServer,
}

/// With one certificate, for clients with any or none.
pub(crate) fn config(certificate: &Certificate) -> Arc<ServerConfig> {
    finish(builder().with_no_client_auth(), certificate)
}

/// The same, for clients of a root that none of ours has.
pub(crate) fn refusing(
    certificate: &Certificate,
    root: &CertificateDer<'static>,
) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("a verifier");
    finish(builder().with_client_cert_verifier(verifier), certificate)
}

type Verifying = rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>;

fn builder() -> Verifying {
    ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("defaults")
}

fn finish(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    certificate: &Certificate,
) -> Arc<ServerConfig> {
    let pem = certificate.chain_pem();
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .expect("a chain");
    let key = certificate.key().to_pkcs8_der().expect("a key");
    let key = PrivateKeyDer::try_from(key).expect("PKCS#8");
    Arc::new(builder.with_single_cert(chain, key).expect("a key pair"))
}

/// A socket whose bytes are written down as they come.
struct Tapped(TcpStream, Arc<Seen>);

impl Read for Tapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.raw.lock().expect("no panic").extend(&buffer[..n]);
        Ok(n)
    }
}

impl Write for Tapped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Recorder {
    /// TLS: the n-th connection gets what `choose` says. Who sends a
    /// StartupMessage is let in, and each query answered with an empty one.
    pub(crate) fn tls(choose: impl Fn(usize) -> Arc<ServerConfig> + Send + Sync + 'static) -> Self {
        Self::start(move |stream, seen, nth| {
            let connection = ServerConnection::new(choose(nth)).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(connection, Tapped(stream, Arc::clone(seen)));
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock)?;
            }
            seen.handshakes.fetch_add(1, Ordering::SeqCst);
            let name = tls.conn.server_name().map(ToOwned::to_owned);
            let alpn = tls.conn.alpn_protocol().is_some();
            seen.names.lock().expect("no panic").push((name, alpn));
            serve(tls, seen)
        })
    }

    /// TLS that is let in, reads, and closes without a word.
    pub(crate) fn tls_that_closes(config: Arc<ServerConfig>) -> Self {
        Self::start(move |stream, seen, _| {
            let connection =
                ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(connection, Tapped(stream, Arc::clone(seen)));
            tls.read(&mut [0; 4096]).map(drop)
        })
    }

    /// Plaintext: whatever `script` does.
    pub(crate) fn plain(
        script: impl Fn(&mut dyn ReadWrite) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |stream, seen, _| script(&mut Tapped(stream, Arc::clone(seen))))
    }

    /// Passes everything on to `upstream` and back.
    pub(crate) fn before(upstream: SocketAddr) -> Self {
        Self::start(move |stream, seen, _| {
            let server = TcpStream::connect(upstream)?;
            let (mut from, mut to) = (server.try_clone()?, stream.try_clone()?);
            let back = std::thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
            let _ = io::copy(&mut Tapped(stream, Arc::clone(seen)), &mut &server);
            let _ = server.shutdown(std::net::Shutdown::Write);
            let _ = back.join();
            Ok(())
        })
    }

    fn start(
        script: impl Fn(TcpStream, &Arc<Seen>, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::new(Seen::default());
        let (writing, count) = (Arc::clone(&seen), AtomicUsize::new(0));
        let fake = FakeServer::start(move |stream| {
            let outcome = script(stream, &writing, count.fetch_add(1, Ordering::SeqCst));
            writing.ended.fetch_add(1, Ordering::SeqCst);
            outcome
        });
        Self { seen, fake }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.fake.address()
    }

    pub(crate) fn handshakes(&self) -> usize {
        self.seen.handshakes.load(Ordering::SeqCst)
    }

    /// Plaintext that came inside TLS.
    pub(crate) fn inside(&self) -> Vec<u8> {
        self.seen.plain.lock().expect("no panic").clone()
    }

    /// All bytes as they came on the tcp.
    pub(crate) fn outside(&self) -> Vec<u8> {
        self.seen.raw.lock().expect("no panic").clone()
    }

    /// SNI, and whether there was ALPN, of each handshake.
    pub(crate) fn names(&self) -> Vec<(Option<String>, bool)> {
        self.seen.names.lock().expect("no panic").clone()
    }

    /// Nothing of a driver's has arrived: not inside TLS, nor beside it.
    pub(crate) fn assert_untold(&self, what: &str, secrets: &[&str]) {
        // Whatever was on its way has come.
        let over = || {
            let ended = self.seen.ended.load(Ordering::SeqCst);
            (ended == self.fake.accepted()).then_some(())
        };
        poll_until(TIMEOUT, over).expect("its connections end");
        assert_eq!(self.inside(), b"", "{what}: bytes inside TLS");
        let outside = self.outside();
        for secret in secrets {
            let found = outside
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{what}: {secret} on the tcp");
        }
        if let Some(first) = outside.first() {
            assert_eq!(*first, 0x16, "{what}: not a TLS ClientHello first");
        }
    }
}

pub(crate) trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

fn serve(mut tls: StreamOwned<ServerConnection, Tapped>, seen: &Arc<Seen>) -> io::Result<()> {
    let mut first = [0; 4096];
    loop {
        let n = tls.read(&mut first)?;
        if n == 0 {
            return Ok(());
        }
        seen.plain.lock().expect("no panic").extend(&first[..n]);
        let mut accept_login = message::tagged(b'R', &0_u32.to_be_bytes());
        accept_login.extend(message::tagged(b'Z', b"I"));
        tls.write_all(&accept_login)?;
    }
}

/// What plain Postgres says to a ClientHello, or rather to any nonsense.
pub(crate) fn says_error(stream: &mut dyn ReadWrite) -> io::Result<()> {
    let mut some = [0; 512];
    let _ = stream.read(&mut some)?;
    stream.write_all(&crate::harness::fake_server::error_response(
        "08P01", "nonsense",
    ))
}

/// Takes everything and says nothing.
pub(crate) fn silent(stream: &mut dyn ReadWrite) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

/// Closes at once.
pub(crate) fn closes(stream: &mut dyn ReadWrite) -> io::Result<()> {
    let _ = stream.read(&mut [0; 512])?;
    Ok(())
}
