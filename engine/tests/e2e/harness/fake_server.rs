//! Fake servers on loopback: one that runs a script on each connection, and a TCP proxy that counts
//! connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::message;
use crate::harness::process::{POLL_INTERVAL, TIMEOUT};

/// A server on an unused port. It stops when dropped.
#[derive(Debug)]
pub(crate) struct FakeServer {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<AtomicUsize>,
}

impl FakeServer {
    /// Runs `script` on each connection, in a thread per connection.
    pub(crate) fn start(
        script: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // Accepted sockets inherit the size: the buffer of a server that does not read is full
        // soon.
        SockRef::from(&listener)
            .set_recv_buffer_size(64 * 1024)
            .expect("a live socket");
        let fake = Self {
            address: listener.local_addr().expect("a bound socket"),
            stopped: Arc::default(),
            connections: Arc::default(),
            accepted: Arc::default(),
        };
        let (stopped, connections) = (fake.stopped.clone(), fake.connections.clone());
        let accepted = fake.accepted.clone();
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let _ = stream.set_read_timeout(Some(TIMEOUT * 2));
                accepted.fetch_add(1, Ordering::SeqCst);
                if let Ok(clone) = stream.try_clone() {
                    let mut connections = connections.lock().expect("no panic while locked");
                    connections.push(clone);
                }
                let script = script.clone();
                thread::spawn(move || {
                    let clone = stream.try_clone();
                    let _ = script(stream);
                    if let Ok(stream) = clone {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        fake
    }

    /// Forwards each connection to `upstream`, so that [`accepted`](Self::accepted) counts them.
    pub(crate) fn proxy_to(upstream: SocketAddr) -> Self {
        Self::start(move |client| forward(client, upstream))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let mut connections = self.connections.lock().expect("no panic while locked");
        for stream in connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then sees `stopped`.
        let _ = TcpStream::connect(self.address);
    }
}

/// A port that refuses connections: it is bound, so that no other program can listen on it.
pub(crate) struct ClosedPort {
    address: SocketAddr,
    _socket: Socket,
}

impl ClosedPort {
    pub(crate) fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let address = socket.local_addr().expect("a bound socket").as_socket();
        Self {
            address: address.expect("IPv4"),
            _socket: socket,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A port that does not answer: its accept queue is full, so that the kernel drops further SYNs, as a host does that is gone.
pub(crate) struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl BlackHole {
    pub(crate) fn open() -> Self {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = socket();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).expect("a free port");
        listener.listen(0).expect("a listener");
        let address = listener.local_addr().expect("a bound socket").as_socket();
        let address = address.expect("IPv4");
        // The queue of a backlog of 0 has one place.
        let queued = [(); 4].map(|()| {
            let socket = socket();
            socket.set_nonblocking(true).expect("a live socket");
            let _ = socket.connect(&address.into());
            socket
        });
        let answer = TcpStream::connect_timeout(&address, Duration::from_millis(100));
        let error = answer.expect_err("the queue is full");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        Self {
            address,
            _listener: listener,
            _queued: queued.into(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Forwards `client` to `upstream` in both directions until both have closed.
pub(crate) fn forward(client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || copy(from, to));
    copy(client, server);
    let _ = back.join();
    Ok(())
}

/// Whether a connection is the sidecar's probe for the newest protocol version rather than a login.
/// Waits for the start-up packet's first 8 bytes and does not consume them.
pub(crate) fn is_version_probe(stream: &TcpStream) -> io::Result<bool> {
    let head = peek(stream, 8)?;
    Ok(message::be32(&head[4..]) == message::PROTOCOL_GREASE)
}

/// Whether a connection is the sidecar's own, a version probe or a login as the superuser, and not a
/// client's. Waits for the start-up packet and does not consume it.
pub(crate) fn is_of_sidecar(stream: &TcpStream) -> io::Result<bool> {
    let length = message::be32(&peek(stream, 8)?);
    let packet = peek(stream, length as usize)?;
    let superuser = b"user\0postgres\0";
    let is_superuser = packet
        .windows(superuser.len())
        .any(|part| part == superuser);
    Ok(is_superuser || message::be32(&packet[4..]) == message::PROTOCOL_GREASE)
}

/// Waits for `count` bytes and does not consume them.
fn peek(stream: &TcpStream, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut peeked = 0;
    while peeked < count {
        match stream.peek(&mut bytes)? {
            n if n > peeked => peeked = n,
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => thread::sleep(POLL_INTERVAL),
        }
    }
    Ok(bytes)
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Reads one packet of the start-up phase: its body without the length.
pub(crate) fn read_startup(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; message::be32(&length) as usize - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// Reads one tagged message and returns its body.
pub(crate) fn read_message(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut tag = [0];
    stream.read_exact(&mut tag)?;
    Ok((tag[0], read_startup(stream)?))
}

/// Reads and discards everything until the other side closes.
pub(crate) fn read_until_close(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

/// A FATAL ErrorResponse as Postgres writes it.
pub(crate) fn error_response(code: &str, text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    message::tagged(b'E', body.as_bytes())
}

/// Sends AuthenticationOk, one ParameterStatus, BackendKeyData and ReadyForQuery.
pub(crate) fn accept_login(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&message::tagged(b'R', &0_u32.to_be_bytes()))?;
    stream.write_all(&message::tagged(b'S', b"server_version\x0015.0\0"))?;
    stream.write_all(&message::tagged(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]))?;
    stream.write_all(&message::tagged(b'Z', b"I"))
}
