//! A blocking PostgreSQL client that can break the protocol at every step.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::harness::message::{self, Message, PgError, SSL_REQUEST};
use crate::harness::process::{TIMEOUT, poll_until};
use crate::harness::scram::Exchange;
use crate::harness::{Harness, READER};

/// How a client starts TLS. libpq calls the first two `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsNegotiation {
    SslRequest,
    /// TLS without SSLRequest, with ALPN `postgresql`.
    Direct,
    /// TLS without SSLRequest and without ALPN, as the forwarder does it.
    Raw,
}

impl TlsNegotiation {
    pub(crate) const ALL: [Self; 3] = [Self::SslRequest, Self::Direct, Self::Raw];

    pub(crate) fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Self::Direct => Some(b"postgresql"),
            Self::SslRequest | Self::Raw => None,
        }
    }
}

impl fmt::Display for TlsNegotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SslRequest => "ssl_request",
            Self::Direct => "direct_tls",
            Self::Raw => "raw_tls",
        })
    }
}

/// How the server ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseKind {
    /// With end of stream; inside TLS with a close_notify alert before it.
    Clean,
    /// The TCP stream was reset, or ended without a close_notify.
    Abrupt,
}

/// A TCP connection that records what arrives.
#[derive(Debug)]
pub(crate) struct TcpClient {
    pub(crate) stream: TcpStream,
    pub(crate) received: Vec<u8>,
    /// The number of bytes that the kernel accepted.
    pub(crate) sent: usize,
}

impl TcpClient {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = connect_from(unique_source(), address).expect("the server accepts");
        stream.set_nodelay(true).expect("a live socket");
        Self::from_stream(stream)
    }

    /// Wraps a connection that is already open.
    pub(crate) fn from_stream(stream: TcpStream) -> Self {
        set_timeouts(&stream);
        Self {
            stream,
            received: Vec::new(),
            sent: 0,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Reads as many bytes as `expected` has, and compares them.
    pub(crate) fn expect_prefix(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        self.stream.read_exact(&mut bytes).expect("a response");
        assert_eq!(bytes, expected);
    }

    pub(crate) fn read_byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("a response");
        byte[0]
    }

    /// Reads everything up to the end of the stream.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("the server does not close: {e}; it sent {all:02x?}"),
        }
        self.close_write();
        all
    }

    /// Closes our direction: the sidecar waits for a client that may still be reading.
    fn close_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads one message in plaintext, and checks that the stream ends after it.
    pub(crate) fn read_final_message(&mut self) -> Message {
        let all = self.read_to_end();
        assert!(all.len() >= 5, "no message before the end: {all:02x?}");
        let length = message::be32(&all[1..]) as usize;
        assert_eq!(
            all.len(),
            length + 1,
            "one message and nothing else: {all:02x?}"
        );
        Message {
            tag: all[0],
            body: all[5..].to_vec(),
        }
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a live socket")
    }
}

/// A separate loopback address for every connection, so that the `peer` in a log line identifies
/// the connection.
fn unique_source() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0x7f01_0001);
    let address = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(address < 0x7fff_ffff, "127.0.0.0/8 is used up");
    SocketAddr::from((address.to_be_bytes(), 0))
}

/// Waits until a program that drains refuses connections.
pub(crate) fn await_refused_connection(address: SocketAddr) {
    let refused = || TcpStream::connect(address).is_err().then_some(());
    poll_until(TIMEOUT, refused)
        .unwrap_or_else(|| panic!("{address} still accepts connections during the drain"));
}

/// Sets the timeouts of reads and writes, so that a test fails instead of hanging.
pub(crate) fn set_timeouts(stream: &TcpStream) {
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(stream, Some(TIMEOUT)).expect("a live socket");
    }
}

fn connect_from(source: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&source.into())?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

impl Read for TcpClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        // Enough for any login. Bulk transfers are not recorded completely.
        if self.received.len() < 64 * 1024 {
            self.received.extend(&buffer[..n]);
        }
        Ok(n)
    }
}

impl Write for TcpClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.stream.write(bytes)?;
        self.sent += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A client inside TLS.
pub(crate) struct Client {
    pub(crate) tls: StreamOwned<ClientConnection, TcpClient>,
}

/// What the server sent up to ReadyForQuery.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartupResponse {
    pub(crate) negotiation: Option<(u32, Vec<String>)>,
    /// The SASL mechanisms that the server offered; empty if it asked for the password.
    pub(crate) mechanisms: Vec<String>,
    pub(crate) pid: u32,
    pub(crate) key: Vec<u8>,
    pub(crate) parameters: Vec<(String, String)>,
}

impl Client {
    /// Connects and completes the TLS handshake.
    pub(crate) fn connect(
        harness: &Harness,
        address: SocketAddr,
        negotiation: TlsNegotiation,
    ) -> Self {
        let config = harness.certificates.client(negotiation.alpn());
        Self::connect_with(config, address, negotiation).expect("the TLS handshake succeeds")
    }

    pub(crate) fn connect_with(
        config: ClientConfig,
        address: SocketAddr,
        negotiation: TlsNegotiation,
    ) -> io::Result<Self> {
        let mut tcp = TcpClient::connect(address);
        if negotiation == TlsNegotiation::SslRequest {
            tcp.send(&SSL_REQUEST);
            let mut response = [0];
            tcp.stream.read_exact(&mut response)?;
            assert_eq!(&response, b"S", "the response to SSLRequest");
        }
        Self::handshake(config, tcp)
    }

    /// Completes the TLS handshake on an open connection.
    pub(crate) fn handshake(config: ClientConfig, tcp: TcpClient) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").expect("a good name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("good settings");
        let mut tls = StreamOwned::new(connection, tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Self { tls })
    }

    pub(crate) fn handshake_kind(&self) -> Option<rustls::HandshakeKind> {
        self.tls.conn.handshake_kind()
    }

    /// Our address, which is the `peer` in the sidecar's log.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.tls.sock.local_address()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes)?;
        self.tls.flush()
    }

    /// Reads one message; `Err` if the connection ended between messages.
    pub(crate) fn read(&mut self) -> Result<Message, CloseKind> {
        let mut head = [0; 5];
        match self.tls.read(&mut head[..1]) {
            Ok(0) => {
                self.tls.sock.close_write();
                return Err(CloseKind::Clean);
            }
            Ok(_) => {}
            Err(e) if is_abrupt_close(&e) => return Err(CloseKind::Abrupt),
            Err(e) => panic!("the server neither responds nor closes: {e}"),
        }
        self.tls.read_exact(&mut head[1..]).expect("a whole header");
        let mut body = vec![0; message::be32(&head[1..]) as usize - 4];
        self.tls.read_exact(&mut body).expect("a whole message");
        Ok(Message { tag: head[0], body })
    }

    /// Reads one message of the given type.
    pub(crate) fn expect(&mut self, tag: u8) -> Message {
        match self.read() {
            Ok(message) if message.tag == tag => message,
            Ok(message) if message.tag == b'E' => {
                panic!("expected {:?}, got {}", tag as char, message.error())
            }
            other => panic!("expected {:?}, got {other:?}", tag as char),
        }
    }

    /// Reads a FATAL ErrorResponse, and checks that the connection is closed cleanly after it.
    pub(crate) fn expect_fatal(&mut self) -> PgError {
        let error = self.expect(b'E').error();
        assert_eq!(error.severity, "FATAL", "{error}");
        assert_eq!(
            self.read(),
            Err(CloseKind::Clean),
            "the close after {error}"
        );
        error
    }

    /// Checks that no further message arrives, and returns how the server closed.
    pub(crate) fn expect_close(&mut self) -> CloseKind {
        match self.read() {
            Err(kind) => kind,
            Ok(message) => panic!("expected a close, got {message:?}"),
        }
    }

    /// Sends a StartupMessage for `user` and `database` and waits for the password request.
    pub(crate) fn start(&mut self, user: &str, database: &str) -> StartupResponse {
        self.start_with(
            message::PROTOCOL_3_0,
            &[("user", user), ("database", database)],
        )
    }

    pub(crate) fn start_with(
        &mut self,
        version: u32,
        parameters: &[(&str, &str)],
    ) -> StartupResponse {
        self.try_start_with(version, parameters)
            .expect("a password request")
    }

    /// As [`Self::start_with`], for a server that may refuse.
    pub(crate) fn try_start_with(
        &mut self,
        version: u32,
        parameters: &[(&str, &str)],
    ) -> Result<StartupResponse, PgError> {
        self.send(&message::startup(version, parameters));
        let mut response = StartupResponse::default();
        let mut next = self.read().expect("a response to the StartupMessage");
        if next.tag == b'v' {
            response.negotiation = Some(next.negotiation());
            next = self.read().expect("a password request");
        }
        if next.tag == b'E' {
            return Err(next.error());
        }
        response.mechanisms = next.mechanisms();
        Ok(response)
    }

    /// Authenticates as the server asked, and reads up to ReadyForQuery.
    pub(crate) fn authenticate(
        &mut self,
        secret: &str,
        response: StartupResponse,
    ) -> Result<StartupResponse, PgError> {
        let Some(exchange) = self.send_secret(secret, &response) else {
            return self.await_ready(response);
        };
        let answer = self.read().expect("an answer to the proof");
        if answer.tag == b'E' {
            let error = answer.error();
            assert_eq!(self.read(), Err(CloseKind::Clean), "the end after {error}");
            return Err(error);
        }
        assert_eq!(answer.authentication(), 12, "AuthenticationSASLFinal");
        exchange.finish(&answer.body[4..]);
        self.await_ready(response)
    }

    /// Sends the message that decides whether the login succeeds: the password, or the proof that
    /// we know it.
    pub(crate) fn send_secret(
        &mut self,
        secret: &str,
        response: &StartupResponse,
    ) -> Option<Exchange> {
        if response.mechanisms.is_empty() {
            self.send(&message::password(secret));
            return None;
        }
        let mut exchange = self.exchange(secret, &response.mechanisms);
        let challenge = self.read_challenge(&exchange).expect("a challenge");
        self.send(&exchange.proof(&challenge));
        Some(exchange)
    }

    /// Reads from AuthenticationOk up to ReadyForQuery, or the error and the end.
    pub(crate) fn await_ready(
        &mut self,
        mut response: StartupResponse,
    ) -> Result<StartupResponse, PgError> {
        let first = self.read().expect("a response to the password");
        if first.tag == b'E' {
            let error = first.error();
            assert_eq!(
                self.read(),
                Err(CloseKind::Clean),
                "the close after {error}"
            );
            return Err(error);
        }
        assert_eq!(first.authentication(), 0, "AuthenticationOk");
        loop {
            let next = self.read().expect("messages up to ReadyForQuery");
            match next.tag {
                b'S' => response.parameters.push(name_and_value(&next.body)),
                b'K' => {
                    response.pid = message::be32(&next.body);
                    response.key = next.body[4..].to_vec();
                }
                b'N' => {}
                b'E' => {
                    let error = next.error();
                    assert_eq!(
                        self.read(),
                        Err(CloseKind::Clean),
                        "the close after {error}"
                    );
                    return Err(error);
                }
                b'Z' => {
                    assert_eq!(next.body, b"I", "idle");
                    return Ok(response);
                }
                _ => panic!("unexpected message during a login: {next:?}"),
            }
        }
    }

    /// Performs the whole login.
    pub(crate) fn login(
        &mut self,
        user: &str,
        database: &str,
        secret: &str,
    ) -> Result<StartupResponse, PgError> {
        let response = self.start(user, database);
        self.authenticate(secret, response)
    }

    /// Logs in as `teesql_read` to the database `via_scram`.
    pub(crate) fn login_reader(&mut self) -> StartupResponse {
        let (role, secret) = READER;
        self.login(role, "via_scram", secret)
            .expect("the login succeeds")
    }

    /// Runs a simple query and returns its rows.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        self.send(&message::query(sql));
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let next = self.read().expect("messages up to ReadyForQuery");
            match next.tag {
                b'D' => rows.push(next.columns()),
                b'E' => error = Some(next.error()),
                b'Z' => return error.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Runs a query that returns one row with one column.
    pub(crate) fn query_value(&mut self, sql: &str) -> String {
        let rows = self.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        match &rows[..] {
            [row] => row[0].clone().expect("not NULL"),
            other => panic!("{sql}: expected one row, got {other:?}"),
        }
    }

    /// Sends Terminate and checks that the server closes cleanly.
    pub(crate) fn terminate(mut self) {
        self.send(&message::tagged(b'X', &[]));
        assert_eq!(
            self.expect_close(),
            CloseKind::Clean,
            "the close after Terminate"
        );
    }

    /// Closes the TCP connection without Terminate and without close_notify.
    pub(crate) fn disconnect(self) {
        let _ = self.tls.sock.stream.shutdown(Shutdown::Both);
    }

    /// Content type and length of each TLS record received: what an observer of the network sees.
    pub(crate) fn records_received(&self) -> Vec<(u8, usize)> {
        let mut rest = &self.tls.sock.received[..];
        let mut records = Vec::new();
        while rest.len() >= 5 {
            let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            records.push((rest[0], length));
            rest = rest.get(5 + length..).unwrap_or_default();
        }
        records
    }
}

fn name_and_value(body: &[u8]) -> (String, String) {
    let mut texts = body
        .split(|&byte| byte == 0)
        .map(|t| String::from_utf8_lossy(t).into_owned());
    (
        texts.next().unwrap_or_default(),
        texts.next().unwrap_or_default(),
    )
}

fn is_abrupt_close(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
