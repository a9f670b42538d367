//! One connection, plain or TLS, over monoio's sockets.
//!
//! TLS is rustls' buffered connection with our own reads and writes instead of monoio-rustls 0.4.
//! That crate sends each full record in two pieces, so that a COPY IN would measure how a proxy
//! reads split records, and it keeps 32 KiB for each of 20,000 idle connections
//! (docs/adr/0009-load-generator-tls-client.md).

use std::io::{self, BufRead, Write as _};
use std::net::{Ipv4Addr, SocketAddr};

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

use crate::endpoint::{Endpoint, Opening};
use crate::error::{Error, Result, io_context};
use crate::message::SSL_REQUEST;

/// Default bytes of one read, see [`Stream::set_read_size`].
const READ: usize = 16 * 1024;
/// Maximum plaintext passed to rustls in one write. rustls buffers at most 64 KiB, and a larger
/// write fails.
const MAX_PLAINTEXT: usize = 48 * 1024;

/// One connection.
pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes read from the socket. Empty while no read is in progress.
    input: Vec<u8>,
    /// Decrypted bytes.
    plain: Vec<u8>,
    /// Bytes to write to the socket.
    output: Vec<u8>,
    read: usize,
}

/// A connection that is not open yet. The key share of its ClientHello is already computed.
pub struct PreparedConnection<'a> {
    endpoint: &'a Endpoint,
    tls: Option<Box<ClientConnection>>,
}

/// A connection whose first flight has been sent.
pub struct PendingHandshake {
    stream: Stream,
    opening: Opening,
    tls: Option<Box<ClientConnection>>,
}

impl<'a> PreparedConnection<'a> {
    /// Computes the key share.
    ///
    /// # Errors
    /// TLS errors.
    pub fn new(endpoint: &'a Endpoint) -> Result<Self> {
        let tls = match endpoint.opening {
            Opening::Plain => None,
            Opening::SslRequest | Opening::Direct | Opening::Raw => {
                let tls = ClientConnection::new(endpoint.tls.clone(), endpoint.name.clone())?;
                Some(Box::new(tls))
            }
        };
        Ok(Self { endpoint, tls })
    }

    /// Connects and sends the first flight: SSLRequest or ClientHello.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn start_handshake(self) -> Result<PendingHandshake> {
        let stream = Stream::connect(self.endpoint).await?;
        self.send_first_flight(stream).await
    }

    /// As [`Self::start_handshake`], from the address `source`: a single one has too few ports for tens of
    /// thousands of connections to one server.
    ///
    /// # Errors
    /// As [`Self::start_handshake`].
    pub async fn start_handshake_from(self, source: Ipv4Addr) -> Result<PendingHandshake> {
        let stream = Stream::connect_from(self.endpoint, source)?;
        self.send_first_flight(stream).await
    }

    async fn send_first_flight(self, mut stream: Stream) -> Result<PendingHandshake> {
        let Self { endpoint, mut tls } = self;
        let opening = endpoint.opening;
        match (opening, &mut tls) {
            (Opening::SslRequest, _) => stream.output.extend_from_slice(&SSL_REQUEST),
            (_, Some(tls)) => write_records(tls, &mut stream.output)?,
            (_, None) => {}
        }
        stream.flush().await?;
        Ok(PendingHandshake {
            stream,
            opening,
            tls,
        })
    }
}

impl PendingHandshake {
    /// Completes the TLS handshake.
    ///
    /// # Errors
    /// Connection and TLS errors; [`Error::Server`] if the server refuses TLS.
    pub async fn finish_handshake(self) -> Result<Stream> {
        let Self {
            mut stream,
            opening,
            tls,
        } = self;
        if opening == Opening::SslRequest {
            stream.read_ssl_response().await?;
        }
        stream.tls = tls;
        stream.complete_handshake().await?;
        Ok(stream)
    }
}

impl Stream {
    /// Connects and completes the TLS handshake.
    ///
    /// # Errors
    /// Connection and TLS errors; [`Error::Server`] if the server refuses TLS.
    pub async fn open(endpoint: &Endpoint) -> Result<Self> {
        PreparedConnection::new(endpoint)?
            .start_handshake()
            .await?
            .finish_handshake()
            .await
    }

    async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let failed = || io_context(format!("cannot connect to {}", endpoint.address));
        let socket = TcpStream::connect_addr(endpoint.address).await;
        let socket = socket.map_err(failed())?;
        socket.set_nodelay(true).map_err(failed())?;
        Ok(Self::new(socket))
    }

    /// Begins to connect from the address `source`. The first write waits until the connection is established.
    fn connect_from(endpoint: &Endpoint, source: Ipv4Addr) -> Result<Self> {
        let connect = || -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            socket.set_tcp_nodelay(true)?;
            match socket.connect(&endpoint.address.into()) {
                Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
            // io_uring completes with EAGAIN on a non-blocking socket instead of waiting.
            socket.set_nonblocking(monoio::utils::is_legacy())?;
            TcpStream::from_std(socket.into())
        };
        connect().map(Self::new).map_err(io_context(format!(
            "cannot connect to {}",
            endpoint.address
        )))
    }

    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            tls: None,
            input: Vec::new(),
            plain: Vec::new(),
            output: Vec::new(),
            read: READ,
        }
    }

    /// Reads the response to an SSLRequest.
    async fn read_ssl_response(&mut self) -> Result<()> {
        // Exactly one byte: what follows belongs to the TLS handshake.
        let (result, response) = self.socket.read(vec![0; 1]).await;
        match (result.map_err(io_context("cannot read"))?, response.first()) {
            (1, Some(b'S')) => Ok(()),
            (0, _) => Err(closed()),
            _ => Err(Error::Server("the server refuses TLS".to_owned())),
        }
    }

    async fn complete_handshake(&mut self) -> Result<()> {
        while let Some(tls) = &mut self.tls {
            write_records(tls, &mut self.output)?;
            let handshaking = tls.is_handshaking();
            self.flush().await?;
            if !handshaking {
                break;
            }
            if self.fill().await? == 0 {
                return Err(closed());
            }
            self.decrypt()?;
        }
        Ok(())
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(tls) = &mut self.tls else {
            self.output.extend_from_slice(bytes);
            return self.flush().await;
        };
        for piece in bytes.chunks(MAX_PLAINTEXT) {
            tls.writer().write_all(piece).map_err(io_context("TLS"))?;
            write_records(tls, &mut self.output)?;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        let (result, mut output) = self.socket.write_all(output).await;
        output.clear();
        self.output = output;
        result.map(|_| ()).map_err(io_context("cannot write"))
    }

    /// Waits for plaintext and returns it. An empty slice means that the server closed the
    /// connection.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn receive(&mut self) -> Result<&[u8]> {
        // Postgres never sends first, so no plaintext is left over from the handshake.
        self.plain.clear();
        loop {
            if self.fill().await? == 0 {
                return Ok(&[]);
            }
            if self.tls.is_none() {
                return Ok(&self.input);
            }
            self.decrypt()?;
            // Session tickets carry no plaintext.
            if !self.plain.is_empty() {
                return Ok(&self.plain);
            }
        }
    }

    /// Reads once. A connection reset counts as end of stream: it occurs when the server closes
    /// while data is in flight.
    async fn fill(&mut self) -> Result<usize> {
        let mut input = std::mem::take(&mut self.input);
        input.clear();
        input.reserve(self.read);
        let (result, input) = self.socket.read(input).await;
        self.input = input;
        match result {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            result => result.map_err(io_context("cannot read")),
        }
    }

    /// Decrypts all bytes that were read, and appends the plaintext to `plain`.
    fn decrypt(&mut self) -> Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        let mut rest = self.input.as_slice();
        while !rest.is_empty() {
            tls.read_tls(&mut rest).map_err(io_context("TLS"))?;
            tls.process_new_packets()?;
            read_plaintext(tls, &mut self.plain)?;
        }
        Ok(())
    }

    /// Sets the size of following reads, for bulk data.
    pub fn set_read_size(&mut self, bytes: usize) {
        self.read = bytes;
    }

    /// Frees the buffers, for connections that become idle.
    pub fn release_buffers(&mut self) {
        self.input = Vec::new();
        self.plain = Vec::new();
        self.output = Vec::new();
    }

    /// Closes the connection, with close_notify if it uses TLS, and reads until the server has
    /// closed it too.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn close(mut self) -> Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            write_records(tls, &mut self.output)?;
        }
        // The server may already have closed.
        if self.flush().await.is_err() {
            return Ok(());
        }
        let _ = self.socket.shutdown().await;
        while self.fill().await? > 0 {}
        Ok(())
    }
}

/// Appends all pending TLS records to `output`.
fn write_records(tls: &mut ClientConnection, output: &mut Vec<u8>) -> Result<()> {
    while tls.wants_write() {
        tls.write_tls(output).map_err(io_context("TLS"))?;
    }
    Ok(())
}

fn read_plaintext(tls: &mut ClientConnection, plain: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut reader = tls.reader();
        match reader.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(bytes) => {
                let length = bytes.len();
                plain.extend_from_slice(bytes);
                reader.consume(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // End of stream without close_notify. The socket reports the end as well.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(io_context("TLS")(error)),
        }
    }
}

/// The error for a connection that the server closed.
pub(crate) fn closed() -> Error {
    Error::Server("the server closed the connection".to_owned())
}
