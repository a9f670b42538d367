//! A server that records every byte it receives: on the wire, and inside TLS.

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

#[derive(Debug, Default)]
struct Recorded {
    raw: Mutex<Vec<u8>>,
    plain: Mutex<Vec<u8>>,
    handshakes: AtomicUsize,
    ended: AtomicUsize,
    names: Mutex<Vec<(Option<String>, bool)>>,
}

pub(crate) struct RecordingServer {
    recorded: Arc<Recorded>,
    fake: FakeServer,
}

/// Accepts clients with any certificate or none.
pub(crate) fn config(certificate: &Certificate) -> Arc<ServerConfig> {
    with_certificate(builder().with_no_client_auth(), certificate)
}

/// Accepts only clients with a certificate under `root`.
pub(crate) fn config_with_client_root(
    certificate: &Certificate,
    root: &CertificateDer<'static>,
) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("a verifier");
    with_certificate(builder().with_client_cert_verifier(verifier), certificate)
}

type WithoutVerifier = rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>;

fn builder() -> WithoutVerifier {
    ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("defaults")
}

fn with_certificate(
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

/// A socket that records the received bytes.
struct Recording(TcpStream, Arc<Recorded>);

impl Read for Recording {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1
            .raw
            .lock()
            .expect("no panic while locked")
            .extend(&buffer[..n]);
        Ok(n)
    }
}

impl Write for Recording {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl RecordingServer {
    /// A TLS server with the configuration `choose(n)` for the n-th connection. It responds
    /// to everything it receives with AuthenticationOk and ReadyForQuery.
    pub(crate) fn tls(choose: impl Fn(usize) -> Arc<ServerConfig> + Send + Sync + 'static) -> Self {
        Self::start(move |stream, recorded, nth| {
            let connection = ServerConnection::new(choose(nth)).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(connection, Recording(stream, Arc::clone(recorded)));
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock)?;
            }
            recorded.handshakes.fetch_add(1, Ordering::SeqCst);
            let name = tls.conn.server_name().map(ToOwned::to_owned);
            let alpn = tls.conn.alpn_protocol().is_some();
            recorded
                .names
                .lock()
                .expect("no panic while locked")
                .push((name, alpn));
            serve(tls, recorded)
        })
    }

    /// A TLS server with the same `certificate` for every connection, see [`tls`](Self::tls).
    pub(crate) fn with_certificate(certificate: &Certificate) -> Self {
        let config = config(certificate);
        Self::tls(move |_| Arc::clone(&config))
    }

    /// A TLS server that completes the handshake, reads, and closes without close_notify.
    pub(crate) fn tls_that_closes(config: Arc<ServerConfig>) -> Self {
        Self::start(move |stream, recorded, _| {
            let connection =
                ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(connection, Recording(stream, Arc::clone(recorded)));
            tls.read(&mut [0; 4096]).map(drop)
        })
    }

    /// A plaintext server that runs `script`.
    pub(crate) fn plain(
        script: impl Fn(&mut dyn ReadWrite) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |stream, recorded, _| script(&mut Recording(stream, Arc::clone(recorded))))
    }

    /// A TCP proxy in front of `upstream`.
    pub(crate) fn proxy_to(upstream: SocketAddr) -> Self {
        Self::start(move |stream, recorded, _| {
            let server = TcpStream::connect(upstream)?;
            let (mut from, mut to) = (server.try_clone()?, stream.try_clone()?);
            let back = std::thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
            let _ = io::copy(&mut Recording(stream, Arc::clone(recorded)), &mut &server);
            let _ = server.shutdown(std::net::Shutdown::Write);
            let _ = back.join();
            Ok(())
        })
    }

    fn start(
        script: impl Fn(TcpStream, &Arc<Recorded>, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let recorded = Arc::new(Recorded::default());
        let (writing, count) = (Arc::clone(&recorded), AtomicUsize::new(0));
        let fake = FakeServer::start(move |stream| {
            let outcome = script(stream, &writing, count.fetch_add(1, Ordering::SeqCst));
            writing.ended.fetch_add(1, Ordering::SeqCst);
            outcome
        });
        Self { recorded, fake }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.fake.address()
    }

    /// The number of completed TLS handshakes.
    pub(crate) fn handshakes(&self) -> usize {
        self.recorded.handshakes.load(Ordering::SeqCst)
    }

    /// Plaintext that was received inside TLS.
    pub(crate) fn decrypted(&self) -> Vec<u8> {
        self.recorded
            .plain
            .lock()
            .expect("no panic while locked")
            .clone()
    }

    /// All bytes as they were received on the wire.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.recorded
            .raw
            .lock()
            .expect("no panic while locked")
            .clone()
    }

    /// The SNI of each handshake, and whether it had ALPN.
    pub(crate) fn server_names(&self) -> Vec<(Option<String>, bool)> {
        self.recorded
            .names
            .lock()
            .expect("no panic while locked")
            .clone()
    }

    /// Checks that nothing from the driver has arrived: no byte inside TLS, none of `secrets` on
    /// the wire, and no other protocol than TLS.
    pub(crate) fn assert_nothing_leaked(&self, what: &str, secrets: &[&str]) {
        // Once all connections have ended, no byte can still be in flight.
        let all_ended = || {
            let ended = self.recorded.ended.load(Ordering::SeqCst);
            (ended == self.fake.accepted()).then_some(())
        };
        poll_until(TIMEOUT, all_ended).expect("its connections end");
        assert_eq!(self.decrypted(), b"", "{what}: bytes inside TLS");
        let received = self.received();
        for secret in secrets {
            let found = received
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{what}: {secret} on the wire");
        }
        if let Some(first) = received.first() {
            assert_eq!(
                *first, 0x16,
                "{what}: the first byte is not a TLS handshake record"
            );
        }
    }
}

pub(crate) trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

fn serve(
    mut tls: StreamOwned<ServerConnection, Recording>,
    recorded: &Arc<Recorded>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = tls.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        recorded
            .plain
            .lock()
            .expect("no panic while locked")
            .extend(&buffer[..n]);
        let mut accept_login = message::tagged(b'R', &0_u32.to_be_bytes());
        accept_login.extend(message::tagged(b'Z', b"I"));
        tls.write_all(&accept_login)?;
    }
}

/// Responds to a ClientHello with an ErrorResponse in plaintext.
pub(crate) fn respond_with_error(stream: &mut dyn ReadWrite) -> io::Result<()> {
    let _ = stream.read(&mut [0; 512])?;
    stream.write_all(&crate::harness::fake_server::error_response(
        "08P01", "nonsense",
    ))
}

/// Reads everything and sends nothing.
pub(crate) fn never_respond(stream: &mut dyn ReadWrite) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

/// Closes after the first read.
pub(crate) fn close_after_read(stream: &mut dyn ReadWrite) -> io::Result<()> {
    let _ = stream.read(&mut [0; 512])?;
    Ok(())
}
