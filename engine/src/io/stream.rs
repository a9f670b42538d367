//! Connected sockets: the dial to Postgres, and one type for the two kinds of
//! stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpStream, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::io::buffer::Buffer;
use crate::io::peer_uid::peer_uid;

/// A peer that vanished is noticed after 60 s + 3 × 15 s; with unacknowledged bytes,
/// when the kernel gives up sending them (`tcp_retries2`, some 15 minutes).
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
pub(crate) const KEEPALIVE_RETRIES: u32 = 3;
/// Wait between two tries on a Unix socket whose accept queue is full: unlike
/// TCP, the kernel then says EAGAIN and offers nothing to wait on.
const UNIX_QUEUE_FULL_RETRY: Duration = Duration::from_millis(5);

/// Maximum number of bytes of a refused peer that are read and dropped.
const MAX_LINGER_BYTES: usize = 1024 * 1024;

/// Where Postgres listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket, e.g. `/run/postgresql/.s.PGSQL.5432`.
    Unix(PathBuf),
}

impl std::fmt::Display for PgAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PgAddress::Tcp(address) => address.fmt(f),
            PgAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

impl PgAddress {
    /// The socket address to connect to.
    ///
    /// # Errors
    /// A Unix path past 107 bytes (`sun_path`).
    pub fn sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            PgAddress::Tcp(address) => Ok(SockAddr::from(*address)),
            PgAddress::Unix(path) => SockAddr::unix(path),
        }
    }
}

/// What every TCP connection gets: no Nagle delay, and keepalive. One that stays on this
/// machine has no congestion, and pacing gains nothing: where the system's congestion
/// control is BBR, its timers are a fifth of a stream's CPU (docs/adr/0012-read-coalescing-for-streams.md).
pub(crate) fn tune(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    if address.ip().to_canonical().is_loopback() {
        // Every Linux has it; where it is not allowed it is not needed either.
        let _ = socket.set_tcp_congestion(b"reno");
    }
    Ok(())
}

/// A connected byte stream.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A [`Stream`] between two threads.
pub(crate) enum DetachedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl DetachedStream {
    pub(crate) fn on_this_thread(self) -> io::Result<Stream> {
        Ok(match self {
            DetachedStream::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            DetachedStream::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// Resets a TCP connection: its peer sees an error, and no end of the stream. Closing it would send FIN first, like a
/// complete stream.
#[allow(unsafe_code)]
pub(crate) fn reset(fd: RawFd) {
    // SAFETY: callers have registered the descriptor, and it is open until they remove it.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    // A Unix socket has no reset, and one that is closed already needs none.
    let _ = rustix::net::connect_unspec(socket);
}

/// The reading half of a [`Stream`].
pub(crate) enum ReadHalf {
    Tcp(OwnedReadHalf<TcpStream>),
    Unix(OwnedReadHalf<UnixStream>),
}

/// The writing half of a [`Stream`]; dropping it sends FIN.
pub(crate) enum WriteHalf {
    Tcp(OwnedWriteHalf<TcpStream>),
    Unix(OwnedWriteHalf<UnixStream>),
}

impl Stream {
    /// Connects, or fails by `deadline`.
    ///
    /// The connect is a non-blocking system call and not monoio's: the socket is tuned
    /// before it connects, on loopback it is connected when the call returns, and a full
    /// accept queue of a Unix socket is retried.
    pub(crate) async fn dial(endpoint: &PgAddress, deadline: Instant) -> io::Result<Self> {
        let address = endpoint.sock_addr()?;
        let socket = Socket::new(address.domain(), Type::STREAM.nonblocking().cloexec(), None)?;
        if let PgAddress::Tcp(address) = endpoint {
            // Before the connection is made: BBR's timers outlive a later change.
            tune(&socket, *address)?;
        }
        let mut in_progress = None;
        while let Err(error) = socket.connect(&address) {
            match error.raw_os_error() {
                Some(nix::libc::EINPROGRESS) => {
                    // monoio closes its streams itself: a second descriptor
                    // to ask how it went.
                    in_progress = Some(socket.try_clone()?);
                    break;
                }
                Some(nix::libc::EAGAIN) if Instant::now() < deadline => {
                    monoio::time::sleep(UNIX_QUEUE_FULL_RETRY).await;
                }
                _ => return Err(error),
            }
        }
        // io_uring answers EAGAIN for a non-blocking socket instead of waiting.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        let stream = match endpoint {
            PgAddress::Tcp(_) => Stream::Tcp(TcpStream::from_std(socket.into())?),
            PgAddress::Unix(_) => Stream::Unix(UnixStream::from_std(socket.into())?),
        };
        if let Some(socket) = in_progress {
            let left = deadline.saturating_duration_since(Instant::now());
            monoio::time::timeout(left, stream.writable())
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Ok(stream)
    }

    /// The same connection for another thread; this stream is to be dropped.
    ///
    /// By a second descriptor: monoio 0.2.4 gives its own away over uninitialised
    /// memory (`SharedFd::try_unwrap`).
    ///
    /// # Errors
    /// No descriptors are left.
    #[allow(unsafe_code)]
    pub(crate) fn detach(&self) -> io::Result<DetachedStream> {
        // SAFETY: `self` keeps the descriptor open meanwhile.
        let own = unsafe { BorrowedFd::borrow_raw(self.raw_fd()) };
        let copy = own.try_clone_to_owned()?;
        Ok(match self {
            Stream::Tcp(_) => DetachedStream::Tcp(copy.into()),
            Stream::Unix(_) => DetachedStream::Unix(copy.into()),
        })
    }

    /// The user of the process that listens on the Unix socket; `None` if the kernel does not
    /// say, as for a TCP connection.
    #[allow(unsafe_code)]
    pub(crate) fn listener_uid(&self) -> Option<u32> {
        // SAFETY: `self` keeps the descriptor open meanwhile.
        let own = unsafe { BorrowedFd::borrow_raw(self.raw_fd()) };
        peer_uid(&own)
    }

    /// Whether the peer has closed its side, or the connection has failed, whatever is left to read.
    #[allow(unsafe_code)]
    pub(crate) fn peer_has_left(&self) -> bool {
        let mut poll = nix::libc::pollfd {
            fd: self.raw_fd(),
            events: nix::libc::POLLRDHUP,
            revents: 0,
        };
        // SAFETY: one element, which lives until the call returns. It does not wait.
        let ready = unsafe { nix::libc::poll(&raw mut poll, 1, 0) };
        ready > 0
    }

    /// Fails the connection when sent bytes have not been acknowledged for `timeout`, or the peer has read nothing for as
    /// long while there are bytes for it. [tcp(7), TCP_USER_TIMEOUT]
    ///
    /// # Errors
    /// It is not a TCP connection.
    #[allow(unsafe_code)]
    pub(crate) fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        // SAFETY: `self` keeps the descriptor open meanwhile.
        let own = unsafe { BorrowedFd::borrow_raw(self.raw_fd()) };
        SockRef::from(&own).set_tcp_user_timeout(Some(timeout))
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.writable(true).await,
            Stream::Unix(stream) => stream.writable(true).await,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Reads once; 0 is the end of the stream.
    pub(crate) async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        match self {
            Stream::Tcp(stream) => stream.read(buffer).await,
            Stream::Unix(stream) => stream.read(buffer).await,
        }
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.write(bytes).await.0
    }

    /// Writes all of `bytes` and wipes them.
    pub(crate) async fn write_secret(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let (result, bytes) = self.write(bytes).await;
        drop(zeroize::Zeroizing::new(bytes));
        result
    }

    async fn write(&mut self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let (result, bytes) = match self {
            Stream::Tcp(stream) => stream.write_all(bytes).await,
            Stream::Unix(stream) => stream.write_all(bytes).await,
        };
        (result.map(drop), bytes)
    }

    /// Sends FIN and reads what the peer still has to say, until it closes too
    /// or the watchdog cuts it off. Closing over unread bytes would reset the
    /// connection and could discard our last bytes.
    pub(crate) async fn linger(&mut self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown().await,
            Stream::Unix(stream) => stream.shutdown().await,
        };
        let mut buffer = Buffer::take(crate::io::buffer::Size::Small);
        let mut left = MAX_LINGER_BYTES;
        loop {
            buffer.consume(usize::MAX);
            let (result, back) = self.read(buffer).await;
            buffer = back;
            match result {
                Ok(n) if n > 0 && n < left => left -= n,
                _ => return,
            }
        }
    }

    /// Both halves, to be used at the same time.
    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }
}

impl ReadHalf {
    /// Reads once; 0 is the end of the stream.
    #[inline]
    pub(crate) async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        match self {
            ReadHalf::Tcp(half) => half.read(buffer).await,
            ReadHalf::Unix(half) => half.read(buffer).await,
        }
    }

    /// Waits until a read would bring something: bytes, the end, or an error. Who
    /// waits so holds no buffer, and pays half a microsecond for it.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        // On epoll `relaxed` would believe a readiness that the last read used up.
        const RELAXED: bool = false;
        match self {
            ReadHalf::Tcp(half) => tcp(half).readable(RELAXED).await,
            ReadHalf::Unix(half) => unix(half).readable(RELAXED).await,
        }
    }

    /// Reads what is there into `buffer`'s room; 0 is the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing is there.
    pub(crate) fn read_now(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        let fd = match self {
            ReadHalf::Tcp(half) => tcp(half).as_raw_fd(),
            ReadHalf::Unix(half) => unix(half).as_raw_fd(),
        };
        loop {
            // With io_uring the sockets are blocking ones.
            match recv(fd, buffer.room_mut(), MsgFlags::MSG_DONTWAIT) {
                Ok(n) => {
                    buffer.advance(n);
                    return Ok(n);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The stream in one of monoio's halves, which have no safe accessor for it.
///
/// Keeping the descriptor next to the half is not enough: `readable` is a method of the stream
/// and waits through its registration with the driver. A second registration would cost each
/// session another descriptor. The field is public, but its type is not promised: therefore
/// `Cargo.toml` pins monoio to this version.
#[allow(unsafe_code)]
fn tcp(half: &OwnedReadHalf<TcpStream>) -> &TcpStream {
    // SAFETY: the cell is alive as long as `half`, and only this thread has it. monoio 0.2.4's
    // own methods of a half borrow the stream in the same way, and none changes it: it is a
    // counted descriptor.
    unsafe { &*half.0.get() }
}

/// As [`tcp`].
#[allow(unsafe_code)]
fn unix(half: &OwnedReadHalf<UnixStream>) -> &UnixStream {
    // SAFETY: as above.
    unsafe { &*half.0.get() }
}

impl WriteHalf {
    /// Writes all that `buffer` holds and gives it back empty.
    #[inline]
    pub(crate) async fn write_all(&mut self, mut buffer: Buffer) -> (io::Result<()>, Buffer) {
        while !buffer.is_empty() {
            let (result, back) = match self {
                WriteHalf::Tcp(half) => half.write(buffer).await,
                WriteHalf::Unix(half) => half.write(buffer).await,
            };
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(n) => buffer.consume(n),
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends FIN: the peer reads the end of the stream.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(half) => half.shutdown().await,
            WriteHalf::Unix(half) => half.shutdown().await,
        }
    }
}
